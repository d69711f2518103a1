"""The program that drops most SYNs of refused clients in the kernel (`bpf/turnstile.c`)."""

import struct
from collections.abc import Mapping

from featherlb.model import Address, Vip
from featherlb.system.vip_program import VipProgram, address_bytes

_TURN = struct.Struct("=QQQ")
"""struct turn."""
NANOSECONDS = 1_000_000_000


class Turnstile(VipProgram):
    """The program, loaded; it runs where it is attached. Clients are addresses, of IPv6 the first
    one of a network of 64 bits; services have numbers from 1."""

    def __init__(self) -> None:
        """Load it. HostError if this host can't have it."""
        super().__init__("turnstile")

    def serve(self, vips: Mapping[Vip, int]) -> None:
        """These VIPs, none of them a wildcard, are of the services with these numbers; 0 is for one
        that refuses nobody here, although it lies within another one. HostError if they are too
        many."""
        self.put(vips)

    def add(self, service: int, client: Address, rate: float) -> bool:
        """Let so many SYNs a second of this client pass, and no more; False if there is no room."""
        turn = _TURN.pack(int(NANOSECONDS / rate), 0, 0)
        try:
            self.maps["turns"].update(_key(service, client), turn)
        except OSError:
            return False
        return True

    def remove(self, service: int, client: Address) -> None:
        self.maps["turns"].delete(_key(service, client))

    def dropped(self, service: int, client: Address) -> int:
        """SYNs of this client since it was added."""
        turn = self.maps["turns"].look_up(_key(service, client))
        return 0 if turn is None else int(_TURN.unpack(turn)[2])


def _key(service: int, client: Address) -> bytes:
    return address_bytes(client) + struct.pack("=I", service)
