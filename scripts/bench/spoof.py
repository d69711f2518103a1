"""`python -m scripts.bench.spoof LINK MAC VIP PORT RATE SECONDS [COUNT]`: spoofed SYNs.

Sends COUNT of them, or those of so many seconds, from this namespace's link to the balancer's MAC
address, and prints how many went out. Their sources are in 198.18.0.0/15, which is reserved for
benchmarks (RFC 2544).
"""

import ctypes
import random
import socket
import struct
import sys
import time
from ipaddress import IPv4Address, IPv4Network

from featherlb.net.checksum import fold, sum_bytes

FRAMES = 1 << 15
"""Different SYNs; after these the first one comes again, with another address in it."""
BATCH = 64
SOURCES = "198.18.0.0/15"
_FIRST = int(IPv4Network(SOURCES).network_address)
SYN = 0x02
OPTIONS = bytes.fromhex("020405b40402080a00000000000000000103030a")
"""Linux's: an MSS of 1460, SACK permitted, a timestamp, a window scale of 10."""


class _Message(ctypes.Structure):
    """struct mmsghdr (recvmmsg(2)), whose datagram is one piece and has no address."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("pieces", ctypes.c_void_p),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("sent", ctypes.c_uint32),
    )


class _Piece(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def frame(source_mac: bytes, mac: bytes, vip: IPv4Address, port: int) -> bytes:
    """A SYN from a random address and port."""
    source = struct.pack("!I", _FIRST | random.getrandbits(17))
    ports = (random.randrange(1024, 65536), port)
    header = struct.pack("!HHIIBBHHH", *ports, random.getrandbits(32), 0, 10 << 4, SYN, 64240, 0, 0)
    segment = bytearray(header + OPTIONS)
    pseudo = source + vip.packed + struct.pack("!HH", socket.IPPROTO_TCP, len(segment))
    struct.pack_into("!H", segment, 16, _checksum(pseudo + segment))
    length = 20 + len(segment)
    ip = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, 64, socket.IPPROTO_TCP, 0))
    ip += source + vip.packed
    struct.pack_into("!H", ip, 10, _checksum(ip))
    return mac + source_mac + b"\x08\x00" + bytes(ip) + bytes(segment)


def _checksum(data: bytes | bytearray) -> int:
    return fold(sum_bytes(bytearray(data), 0, len(data))) ^ 0xFFFF


def main() -> None:
    link, mac, vip, port, rate, seconds, *limit = sys.argv[1:]
    count = int(limit[0]) if limit else sys.maxsize
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    out.bind((link, 0))
    own = out.getsockname()[4]
    frames = [
        frame(own, bytes.fromhex(mac.replace(":", "")), IPv4Address(vip), int(port))
        for _ in range(FRAMES)
    ]
    size = len(frames[0])
    memory = ctypes.create_string_buffer(b"".join(frames))
    first = ctypes.addressof(memory)
    pieces = (_Piece * FRAMES)(*(_Piece(first + size * i, size) for i in range(FRAMES)))
    at, step = ctypes.addressof(pieces), ctypes.sizeof(_Piece)
    messages = (_Message * FRAMES)(
        *(_Message(pieces=at + step * i, count=1) for i in range(FRAMES))
    )
    sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
    print("ready", flush=True)
    begin = time.monotonic()
    end = begin + float(seconds)
    sent = 0
    while sent < count and (now := time.monotonic()) < end:
        due = (now - begin) * float(rate)
        if sent >= due:
            time.sleep(BATCH / float(rate))
            continue
        batch = ctypes.byref(messages, ctypes.sizeof(_Message) * (sent % FRAMES))
        wanted = min(BATCH, count - sent, FRAMES - sent % FRAMES)
        sent += max(sendmmsg(out.fileno(), batch, wanted, 0), 0)
    print(sent, flush=True)


if __name__ == "__main__":
    main()
