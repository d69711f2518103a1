"""Options of a SYN: the window scale, SACK permitted, and the maximum segment size.

The MSS is lowered in place, for paths that drop full-size packets without an ICMP error (tunnels,
filters). The option limits what the other side sends, so both SYNs are clamped (RFC 9293 section
3.7.1). It is never raised or added.
"""

import cython

from featherlb.net.packet import Packet

if not cython.compiled:
    from featherlb.net.checksum import MASK16, fold, update

# RFC 9293 section 3.1.
END_OF_OPTIONS, NO_OPERATION, MAXIMUM_SEGMENT_SIZE = 0, 1, 2
# RFC 7323 sections 2.2 and 2.3.
WINDOW_SCALE, LARGEST_SCALE = 3, 14
# RFC 2018 sections 2 and 3.
SACK_PERMITTED, SACK = 4, 5


def lower(packet: Packet, limit: int, summed: bool) -> None:
    """Clamp the MSS of the parsed SYN to `limit` bytes.

    `summed` means that its checksum is complete and is updated; otherwise the caller computes it
    later.
    """
    at = find(packet, MAXIMUM_SEGMENT_SIZE, 4)
    if at:
        replace(packet, at + 2, limit, summed)


def window_scale(packet: Packet) -> int:
    """The window scale of the parsed SYN, 14 at most; -1 if it has none."""
    at = find(packet, WINDOW_SCALE, 3)
    if not at:
        return -1
    return min(packet.data[at + 2], LARGEST_SCALE)


def segment_size(packet: Packet) -> int:
    """The MSS of the parsed SYN in bytes, 0 if it has none."""
    at = find(packet, MAXIMUM_SEGMENT_SIZE, 4)
    return packet.read16(at + 2) if at else 0


def permits_sack(packet: Packet) -> bool:
    """Whether the parsed SYN permits SACK."""
    return find(packet, SACK_PERMITTED, 2) > 0


def find(packet: Packet, wanted: int, size: int) -> int:
    """The offset of the first option of this kind if it has this many bytes, or 0. Options after a
    malformed one are ignored."""
    at = option_from(packet, packet.transport + 20)
    while at:
        length = packet.data[at + 1]
        if packet.data[at] == wanted:
            return at if length == size else 0
        at = option_from(packet, at + length)
    return 0


def option_from(packet: Packet, at: int) -> int:
    """The offset of the option at `at`, or of the first one behind padding; 0 if none follows that
    is whole. Its second byte is its length."""
    while at < packet.payload and packet.data[at] == NO_OPERATION:
        at += 1
    if at + 2 > packet.payload or packet.data[at] == END_OF_OPTIONS:
        return 0
    length = packet.data[at + 1]
    return at if length >= 2 and at + length <= packet.payload else 0


def replace(packet: Packet, at: int, limit: int, summed: bool) -> None:
    """Lower the value at this offset."""
    value = packet.read16(at)
    if value <= limit:
        return
    packet.write16(at, limit)
    if not summed:
        return
    if (at - packet.transport) & 1:  # its bytes are in the other halves of two words
        value = (value & 0xFF) << 8 | value >> 8
        limit = (limit & 0xFF) << 8 | limit >> 8
    field = packet.transport + 16
    packet.write16(field, update(packet.read16(field), fold((value ^ MASK16) + limit)))
