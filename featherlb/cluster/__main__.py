"""`python -m featherlb.cluster`: the synchroniser's process, started by the supervisor."""

from featherlb.cluster.synchroniser import main

main()
