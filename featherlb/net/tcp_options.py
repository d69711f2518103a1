"""The maximum segment size that a SYN announces, lowered in place. For paths that lose packets of
full size without an ICMP error (tunnels, filters): what was never sent needs no error. The
option says how much its sender takes, so each side's SYN limits the other (RFC 9293 section
3.7.1). It is never raised, and none is added.
"""

import cython

from featherlb.net.packet import Packet

if not cython.compiled:
    from featherlb.net.checksum import fold, update
    from featherlb.net.packet import MASK16

# RFC 9293 section 3.1.
END_OF_OPTIONS, NO_OPERATION, MAXIMUM_SEGMENT_SIZE = 0, 1, 2


def lower(packet: Packet, limit: int, summed: bool) -> None:
    """Let the parsed SYN announce `limit` bytes at most.

    `summed` says that its checksum is complete; otherwise the caller computes it afterwards.
    Options behind a malformed one are not looked at.
    """
    at = packet.transport + 20
    while at < packet.payload:
        kind = packet.data[at]
        if kind == NO_OPERATION:
            at += 1
            continue
        if kind == END_OF_OPTIONS or at + 2 > packet.payload:
            return
        length = packet.data[at + 1]
        if length < 2 or at + length > packet.payload:
            return
        if kind == MAXIMUM_SEGMENT_SIZE:
            if length == 4:
                replace(packet, at + 2, limit, summed)
            return
        at += length


def replace(packet: Packet, at: int, limit: int, summed: bool) -> None:
    """Lower the value at this offset."""
    value = packet.read16(at)
    if value <= limit:
        return
    packet.write16(at, limit)
    if not summed:
        return
    if (at - packet.transport) & 1:  # its bytes stand in the other halves of two words
        value = (value & 0xFF) << 8 | value >> 8
        limit = (limit & 0xFF) << 8 | limit >> 8
    field = packet.transport + 16
    packet.write16(field, update(packet.read16(field), fold((value ^ MASK16) + limit)))
