"""Which flow the fragments of a packet belong to. Only the first fragment has ports. Which flow it
belongs to is remembered under what all fragments of the packet have in common, so that the
others go where it went, without being put together. Those that overtake the first are lost, and
the packet with them: its sender sends it again or does without (RFC 3022 section 6.3). Times are
in ticks of 0.1 s.
"""

from collections import OrderedDict

from featherlb.model.ticks import TICKS_PER_SECOND
from featherlb.net.packet import Packet

MAX_PACKETS = 4096
"""Packets whose fragments are followed at a time; beyond them the first one is forgotten."""
MEMORY = 5 * TICKS_PER_SECOND
"""How long: fragments come right after each other, and a number is used again soon (RFC 4963)."""

Key = tuple[int, int, int, int, int, int]
"""What all fragments of a packet have in common: the words of the source's and the destination's
address, identification, protocol."""


class Fragments:
    """A memory of packets, in the order in which their first fragments came."""

    def __init__(self) -> None:
        self._packets: OrderedDict[Key, tuple[int, int]] = OrderedDict()

    def remember(self, first: Packet, ref: int, ticks: int) -> None:
        """The parsed first fragment is of this flow and direction."""
        key = key_of(first)
        self._packets[key] = ref, ticks
        self._packets.move_to_end(key)
        if len(self._packets) > MAX_PACKETS:
            self._packets.popitem(last=False)

    def find(self, later: Packet, ticks: int) -> int:
        """The reference of the flow and direction that the parsed fragment belongs to, 0 if its
        packet's first one wasn't there."""
        ref, seen = self._packets.get(key_of(later), (0, 0))
        return ref if ticks - seen < MEMORY else 0


def key_of(packet: Packet) -> Key:
    """Of the parsed fragment."""
    return (
        packet.src_high,
        packet.src_low,
        packet.dst_high,
        packet.dst_low,
        packet.identification,
        packet.protocol,
    )
