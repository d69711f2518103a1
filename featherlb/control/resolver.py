"""Host names to addresses, remembered: a name that can't be resolved keeps its last answer.

Blocking: not for a running asyncio loop.
"""

import socket
from collections.abc import Sequence
from ipaddress import ip_address

from featherlb.config import BackendConfig
from featherlb.config.types import Host
from featherlb.model import Address, Endpoint


class Resolver:
    """The last answer for each name."""

    def __init__(self) -> None:
        self._answers: dict[str, Sequence[Address]] = {}

    def look_up(self, name: str) -> Sequence[Address]:
        """The addresses of a name now, in the resolver's order; the last ones if there are none
        now, and nothing if there never were."""
        if found := self.foresee(name):
            self._answers[name] = found
        return found

    def foresee(self, name: str) -> Sequence[Address]:
        """What `look_up` would answer; remembers nothing."""
        found, known = _ask(name), self._answers.get(name, ())
        # A resolver that rotates its answers has not changed them.
        return found if found and set(found) != set(known) else known

    def recall(self, name: str) -> Sequence[Address]:
        """The last answer; asks only for a name that is new."""
        return self._answers.get(name) or self.look_up(name)

    def addresses(self, host: Host) -> Sequence[Address]:
        """What a configured host stands for, by the last answer."""
        return self.recall(host) if isinstance(host, str) else [host]

    def endpoints(self, backend: BackendConfig) -> list[Endpoint]:
        """What a configured backend stands for, by the last answer."""
        _, port, last_port = backend.key
        return [Endpoint(address, port, last_port) for address in self.addresses(backend.host)]


def _ask(name: str) -> list[Address]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(ip_address(str(entry[4][0])) for entry in found))
