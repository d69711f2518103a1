"""Errors of the operator's input (`ConfigError`, exit code 2) and of the host (`HostError`, 1).

Their text is one sentence with the cause and the fix, which the command line prints. A packet never
raises: it gets a verdict and a counted reason.
"""

from collections.abc import Sequence


class FeatherlbError(Exception):
    """Base of all errors that the command line reports, with the process's exit code."""

    exit_code = 1


class HostError(FeatherlbError):
    """The host refuses: privileges, kernel features, addresses, ports, other instances."""

    exit_code = 1


class ConfigError(FeatherlbError):
    """The operator's input is faulty; has all faults, not just the first.

    `faults` are complete lines such as `lb.yaml:7: services[0].backends[1].weight: 0
    (expected an integer from 1 to 65535)`.
    """

    exit_code = 2

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)
