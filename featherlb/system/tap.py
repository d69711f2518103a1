"""A tap: copies of the IP packets that this network namespace receives and sends, on all links.

What the kernel forwards passes no program; a packet socket sees it on its way in and on its way
out. The socket's filter lets in packets from or to some addresses only, so other traffic costs the
kernel the filter's few instructions, and only while the tap is open.
"""

import socket
import struct
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from featherlb.model import Address
from featherlb.net.protocols import ETHER_TYPES
from featherlb.system import bpf, packet_socket, socket_buffers
from featherlb.system.packet_socket import PACKET_AUXDATA, PACKET_STATISTICS, SOL_PACKET

_BUFFER = 4 << 20
"""Bytes of kernel memory for packets that have not been read."""
_AT_ONCE = 2000
"""Packets to read in one call, so that nothing else waits for long."""
_LOOPBACK = 772  # ARPHRD_LOOPBACK
_ALL_PROTOCOLS = 3  # ETH_P_ALL: the only kind of packet socket that sees what is sent
_OUTGOING = 4  # PACKET_OUTGOING
_OTHER_HOST = 3  # PACKET_OTHERHOST
_SO_TIMESTAMPNS = 35  # include/uapi/asm-generic/socket.h, with struct timespec of the machine
_AUXILIARY = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata (include/uapi/linux/if_packet.h)
_ETHER_TYPE = 0xFFFFF000  # SKF_AD_OFF + SKF_AD_PROTOCOL
_CHUNK = 200
"""Comparisons that a conditional jump of BPF can cross."""


@dataclass(frozen=True, slots=True)
class Tapped:
    """A packet: seconds since the epoch, whether it is on its way out, its length, and its first
    bytes, from the IP header on."""

    time: float
    leaving: bool
    length: int
    data: bytes


class Tap:
    """Packets from or to these addresses."""

    def __init__(self, addresses: Collection[Address], length: int) -> None:
        """`length` bytes of each are read. OSError without CAP_NET_RAW."""
        self._length = length
        # On all links from now on; what comes before the filter is of no flow, or belongs here.
        protocol = socket.htons(_ALL_PROTOCOLS)
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, protocol)
        try:
            packet_socket.attach_filter(self._socket, build(addresses, length))
            socket_buffers.enlarge(self._socket, _BUFFER, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def read(self) -> Iterator[Tapped]:
        """What has arrived since the last call."""
        for _ in range(_AT_ONCE):
            try:
                data, attached, _flags, address = self._socket.recvmsg(self._length, 256)
            except BlockingIOError:
                return
            except OSError:  # a link has gone down, which is told once
                continue
            _link, _protocol, kind, hardware, *_ = address
            # The loopback link has each packet twice.
            if kind == _OTHER_HOST or (kind == _OUTGOING and hardware == _LOOPBACK):
                continue
            moment, length = time.time(), len(data)
            for level, what, value in attached:
                if level == socket.SOL_SOCKET and what == _SO_TIMESTAMPNS:
                    seconds, fraction = struct.unpack_from("=qq", value)
                    moment = seconds + fraction / 1e9
                elif level == SOL_PACKET and what == PACKET_AUXDATA:
                    length = _AUXILIARY.unpack_from(value)[1]
            yield Tapped(moment, kind == _OUTGOING, length, data)

    def missed(self) -> int:
        """Packets since the last call that found the buffer full."""
        counted = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        dropped: int = struct.unpack("=II", counted)[1]
        return dropped

    def close(self) -> None:
        self._socket.close()


def build(addresses: Collection[Address], length: int) -> bytes:
    """The filter: packets of which one end has one of these addresses; all IP packets if there are
    too many addresses for a filter."""
    try:
        return _build(addresses, length)
    except ValueError:
        return _build((), length)


def _build(addresses: Collection[Address], length: int) -> bytes:
    program = bpf.Program()
    program.do(bpf.LOAD_HALF, _ETHER_TYPE)
    for version, kind in ETHER_TYPES.items():
        program.go_if(bpf.IF_EQUAL, kind, f"version {version}")
    program.go("none")
    for version in ETHER_TYPES:
        program.label(f"version {version}")
        # Of an IPv6 address the last word: what is let in for nothing is sorted out later.
        numbers = sorted({int(one) & 0xFFFF_FFFF for one in addresses if one.version == version})
        if not addresses:
            program.go("all")
        for at in (12, 16) if version == 4 else (20, 36):
            program.do(bpf.LOAD, at)
            for start in range(0, len(numbers), _CHUNK):
                following = program.new_label()
                found = program.new_label()
                program.go_if_among(numbers[start : start + _CHUNK], found)
                program.go(following)
                program.label(found)
                program.go("all")
                program.label(following)
        program.go("none")
    program.label("all")
    program.do(bpf.RETURN, length)
    program.label("none")
    program.do(bpf.RETURN, 0)
    return program.assemble()
