"""`python -m featherlb`: the same as the `featherlb` command."""

from featherlb.cli import main

main()
