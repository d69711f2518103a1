"""`python -m featherlb.worker FD`: a worker process, started by the supervisor."""

from featherlb.worker.loop import main

main()
