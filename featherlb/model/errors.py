"""What can go wrong, by whose turn it is to act. A packet never raises: it is answered with a
verdict and a counted reason. The exceptions here are for the operator (`ConfigError`, exit code
2) and for the machine (`HostError`, exit code 1). Their text is one sentence that names the
cause and the fix; the command line prints it as it is.
"""

from collections.abc import Sequence


class FeatherlbError(Exception):
    """Base of every error that the command line reports; `exit_code` is the process's."""

    exit_code = 1


class HostError(FeatherlbError):
    """The machine refuses: privileges, kernel features, addresses, ports, other instances."""

    exit_code = 1


class ConfigError(FeatherlbError):
    """The operator's input is wrong; carries every fault found, not just the first.

    `faults` are complete lines such as `lb.yaml:7: services[0].backends[1].weight: 0
    (expected an integer from 1 to 65535)`.
    """

    exit_code = 2

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)
