"""The program that answers SYNs with cookies in the kernel (`bpf/shield.c`). Where there can be no
such program, the workers answer."""

import struct
from collections.abc import Mapping
from typing import NamedTuple

from featherlb.model import Vip
from featherlb.system.vip_program import VipProgram

NOT_SCALED = 15


class Offer(NamedTuple):
    """What answers offer: the MSS in bytes, 0 where there are none, and the window scale, -1 for
    none."""

    size: int
    scale: int


class Shield(VipProgram):
    """The program, loaded; it runs where it is attached."""

    def __init__(self, key: bytes) -> None:
        """Load it, with the workers' `cookie_key`. HostError if this host can't have it."""
        super().__init__("shield")
        self.maps["keys"].update(bytes(4), struct.pack("=QQ", *struct.unpack("<QQ", key)))

    def serve(self, vips: Mapping[Vip, Offer]) -> None:
        """Answer the SYNs to these VIPs, none of them a wildcard; an MSS of 0 is for a VIP that
        isn't answered, although it lies within another one. HostError if they are too many."""
        self.put({vip: _number(offer) for vip, offer in vips.items()})

    def answered(self) -> int:
        """SYNs since the program was loaded."""
        value = self.maps["answered"].look_up(bytes(4)) or b""
        return sum(count for (count,) in struct.iter_unpack("=Q", value))


def _number(offer: Offer) -> int:
    """The value of the map `vips`."""
    scale = NOT_SCALED if offer.scale < 0 else offer.scale
    return scale << 16 | offer.size if offer.size else 0
