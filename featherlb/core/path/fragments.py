"""Forwards fragments without reassembly. Only the first fragment has ports: its flow is remembered
under the fields that all fragments of the packet share, so later ones follow it. A fragment that
arrives before the first is dropped, and the packet with it; the sender retransmits or does without
(RFC 3022 section 6.3). Times are in ticks of 0.1 s.
"""

from collections import OrderedDict

from featherlb.model.ticks import TICKS_PER_SECOND
from featherlb.net.packet import Packet

MAX_PACKETS = 4096
"""Fragmented packets to remember; beyond that, the oldest is forgotten."""
MEMORY = 5 * TICKS_PER_SECOND
"""Ticks for which a packet is remembered: fragments arrive close together, and identifications are
soon reused (RFC 4963)."""

Key = tuple[int, int, int, int, int, int]
"""The fields that all fragments of a packet share: source and destination address (two words each),
identification, protocol."""


class Fragments:
    """Fragmented packets, in the order in which their first fragments arrived."""

    def __init__(self) -> None:
        self._packets: OrderedDict[Key, tuple[int, int]] = OrderedDict()

    def remember(self, first: Packet, ref: int, ticks: int) -> None:
        """Note the flow and direction of the parsed first fragment (a `FlowTable` reference)."""
        key = key_of(first)
        self._packets[key] = ref, ticks
        self._packets.move_to_end(key)
        if len(self._packets) > MAX_PACKETS:
            self._packets.popitem(last=False)

    def find(self, later: Packet, ticks: int) -> int:
        """The reference noted for the parsed fragment's packet, 0 if its first fragment has not
        arrived."""
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
