"""Fragments packets that exceed the MTU (RFC 791 section 3.2, RFC 8200 section 4.5).

Rare: TCP, and UDP through Linux sockets, use path MTU discovery. In IPv6 only the source fragments.
"""

import struct
from collections.abc import Iterator

from featherlb.net.protocols import FRAGMENT_HEADER, HOP_BY_HOP, ROUTING

_MORE = 0x2000
_OFFSET = 0x1FFF
_COPIED = 0x80
"""Bit of an option's type: it is copied into all fragments."""


def cut(packet: bytes, mtu: int) -> Iterator[bytes]:
    """The fragments of the IPv4 packet (which may be one itself), none longer than `mtu` bytes."""
    length = (packet[0] & 15) * 4
    header, data = packet[:length], packet[length:]
    (field,) = struct.unpack_from("!H", packet, 6)
    offset, more = (field & _OFFSET) * 8, field & _MORE
    at = 0
    while at < len(data):
        room = (mtu - len(header)) & ~7
        part = data[at : at + room]
        last = at + room >= len(data)
        flags = more if last else _MORE
        yield _finished(header, len(part), flags | (offset + at) >> 3) + part
        at += room
        if at == room:
            header = header[:20] + _copied_options(packet[20:length])


def cut6(packet: bytes, mtu: int, identification: int) -> Iterator[bytes]:
    """The fragments of the IPv6 packet, none longer than `mtu` bytes; `identification` has 32
    bits."""
    kind_at, at = 6, 40
    while packet[kind_at] in (HOP_BY_HOP, ROUTING):
        kind_at, at = at, at + (packet[at + 1] + 1) * 8
    header, data = bytearray(packet[:at]), packet[at:]
    kind, header[kind_at] = header[kind_at], FRAGMENT_HEADER
    room = (mtu - len(header) - 8) & ~7
    for start in range(0, len(data), room):
        part = data[start : start + room]
        struct.pack_into("!H", header, 4, len(header) - 40 + 8 + len(part))
        more = start + room < len(data)
        yield bytes(header) + struct.pack("!BxHI", kind, start | more, identification) + part


def sum_up(packet: bytearray, start: int, field: int) -> None:
    """Complete a checksum over the bytes from offset `start` on, whose field holds the
    pseudo-header sum (include/uapi/linux/virtio_net.h, VIRTIO_NET_HDR_F_NEEDS_CSUM)."""
    # Zero means "none" in UDP (RFC 768), and is the same number as its complement.
    struct.pack_into("!H", packet, field, ~_sum(bytes(packet[start:])) & 0xFFFF or 0xFFFF)


def _finished(header: bytes, size: int, flags: int) -> bytes:
    words = bytearray(header)
    words[0] = 0x40 | len(header) // 4
    struct.pack_into("!H", words, 2, len(header) + size)
    struct.pack_into("!H", words, 6, flags)
    struct.pack_into("!H", words, 10, 0)
    struct.pack_into("!H", words, 10, ~_sum(bytes(words)) & 0xFFFF)
    return bytes(words)


def _copied_options(options: bytes) -> bytes:
    """The options that all fragments have, padded."""
    kept = b""
    at = 0
    while at < len(options) and options[at]:
        size = 1 if options[at] == 1 else max(2, options[at + 1] if at + 1 < len(options) else 2)
        if options[at] & _COPIED:
            kept += options[at : at + size]
        at += size
    return kept + bytes(-len(kept) % 4)


def _sum(data: bytes) -> int:
    """RFC 1071: the ones' complement sum of 16-bit words."""
    number = int.from_bytes(data + bytes(len(data) & 1), "big")
    return number % 0xFFFF or (0xFFFF if number else 0)
