"""What the kernel tells of its neighbours, as bytes."""

import socket
import struct
from ipaddress import ip_address

from featherlb.system.paths import Entry, parse_neighbour

NEW, DELETED = 28, 29
REACHABLE, STALE, FAILED, PERMANENT = 0x02, 0x04, 0x20, 0x80
PROXY = 0x08
MAC = b"\x02\0\0\0\0\1"


def message(address: str, state: int, mac: bytes = MAC, flags: int = 0) -> bytes:
    """As in linux/neighbour.h: struct ndmsg, then attributes that are padded to 4 bytes."""
    packed = ip_address(address).packed
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    header = struct.pack("=BxxxiHBB", family, 7, state, flags, 1)
    attributes = b""
    for kind, value in ((1, packed), (2, mac)):
        if value:
            attributes += struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    return header + attributes


def test_states() -> None:
    for address in ("10.0.1.2", "fe80::1"):
        key = 7, ip_address(address)
        for state in (REACHABLE, STALE):
            assert parse_neighbour(NEW, message(address, state)) == (key, Entry(MAC))
        assert parse_neighbour(NEW, message(address, PERMANENT)) == (key, Entry(MAC, fixed=True))
        assert parse_neighbour(NEW, message(address, FAILED)) == (key, Entry(None))
        assert parse_neighbour(NEW, message(address, FAILED, mac=b"")) == (key, Entry(None))
        assert parse_neighbour(DELETED, message(address, REACHABLE)) == (key, Entry(None))


def test_what_is_no_neighbour() -> None:
    assert parse_neighbour(NEW, message("10.0.1.2", 0, b"", PROXY)) is None
    bridge = struct.pack("=BxxxiHBB", socket.AF_BRIDGE, 7, REACHABLE, 0, 0)
    assert parse_neighbour(NEW, bridge + struct.pack("=HH", 10, 2) + MAC + b"\0\0") is None
    bare = struct.pack("=BxxxiHBB", socket.AF_INET, 7, REACHABLE, 0, 0)
    assert parse_neighbour(NEW, bare) is None
