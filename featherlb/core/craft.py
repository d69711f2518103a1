"""Packets that featherlb itself originates: TCP resets. Imports `checksum` and `packet`.

Not on the fast path. What is made here leaves through a raw socket with its IP header.
"""

import struct

from featherlb.core.checksum import fold, sum_bytes
from featherlb.core.packet import Packet

_RST, _ACK, _SYN, _FIN = 0x04, 0x10, 0x02, 0x01
_TTL = 64
_TCP = 6


def tcp_reset(packet: Packet) -> bytes:
    """The RST that answers the parsed segment as its receiver, with IP header.

    Sequence numbers as RFC 9293 section 3.10.7.1 demands of a closed connection; the caller
    makes sure that the segment is no RST itself.
    """
    length = packet.end - packet.payload + bool(packet.flags & _SYN) + bool(packet.flags & _FIN)
    if packet.flags & _ACK:
        sequence, acknowledgement, flags = packet.acknowledgement, 0, _RST
    else:
        sequence, flags = 0, _RST | _ACK
        acknowledgement = (packet.sequence + length) & 0xFFFFFFFF
    source = _wire_address(packet.version, packet.dst_high, packet.dst_low)
    destination = _wire_address(packet.version, packet.src_high, packet.src_low)
    header = struct.pack(
        "!HHIIBBHHH",
        packet.ports & 0xFFFF,
        packet.ports >> 16,
        sequence,
        acknowledgement,
        5 << 4,
        flags,
        0,
        0,
        0,
    )
    pseudo = source + destination + struct.pack("!II", len(header), _TCP)
    segment = bytearray(header)
    struct.pack_into("!H", segment, 16, _checksum(pseudo + header))
    return _ip_header(packet.version, source, destination, len(segment)) + bytes(segment)


def _wire_address(version: int, high: int, low: int) -> bytes:
    if version == 4:
        return struct.pack("!I", low & 0xFFFFFFFF)
    return struct.pack("!QQ", high, low)


def _ip_header(version: int, source: bytes, destination: bytes, length: int) -> bytes:
    if version == 6:
        return struct.pack("!IHBB", 6 << 28, length, _TCP, _TTL) + source + destination
    dont_fragment = 0x4000
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, dont_fragment, _TTL, _TCP, 0)
    header += source + destination
    return header[:10] + struct.pack("!H", _checksum(header)) + header[12:]


def _checksum(data: bytes) -> int:
    return fold(sum_bytes(bytearray(data), 0, len(data))) ^ 0xFFFF
