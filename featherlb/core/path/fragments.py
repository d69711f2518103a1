"""Which flow the fragments of a packet belong to. Only the first fragment has ports. Its flow is
remembered under the fields that all fragments of the packet share, so the later ones go where it
went, without reassembly. A fragment that overtakes the first is lost, and the packet with it: its
sender retransmits it or does without (RFC 3022 section 6.3). Times are in ticks of 0.1 s.
"""

from collections import OrderedDict

from featherlb.model.ticks import TICKS_PER_SECOND
from featherlb.net.packet import Packet

MAX_PACKETS = 4096
"""Packets whose fragments are followed at a time; beyond that, the oldest is forgotten."""
MEMORY = 5 * TICKS_PER_SECOND
"""How long a packet is remembered, in ticks: its fragments follow each other closely, and an
identification is soon used again (RFC 4963)."""

Key = tuple[int, int, int, int, int, int]
"""The fields that all fragments of a packet share: source and destination address (two words each),
identification, protocol."""


class Fragments:
    """A memory of packets, in the order in which their first fragments came."""

    def __init__(self) -> None:
        self._packets: OrderedDict[Key, tuple[int, int]] = OrderedDict()

    def remember(self, first: Packet, ref: int, ticks: int) -> None:
        """Note the flow and direction of the parsed first fragment: a reference of the table."""
        key = key_of(first)
        self._packets[key] = ref, ticks
        self._packets.move_to_end(key)
        if len(self._packets) > MAX_PACKETS:
            self._packets.popitem(last=False)

    def find(self, later: Packet, ticks: int) -> int:
        """The reference of the flow and direction that the parsed fragment belongs to, 0 if its
        packet's first fragment has not come."""
        ref, seen = self._packets.get(key_of(later), (0, 0))
        return ref if ticks - seen < MEMORY else 0


def key_of(packet: Packet) -> Key:
    """The key of the parsed fragment."""
    return (
        packet.src_high,
        packet.src_low,
        packet.dst_high,
        packet.dst_low,
        packet.identification,
        packet.protocol,
    )
