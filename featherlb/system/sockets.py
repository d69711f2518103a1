"""Listening sockets of this host, from /proc.

Network namespaces are the calling thread's.
"""

import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from featherlb.model import Address, Endpoint, Protocol

_NET = Path("/proc/thread-self/net")
_FILES = {Protocol.TCP: ("tcp", "tcp6"), Protocol.UDP: ("udp", "udp6")}
# Kernel socket states (include/net/tcp_states.h): a TCP socket listens in TCP_LISTEN, an
# unconnected UDP socket is in TCP_CLOSE.
_WAITING = {Protocol.TCP: "0A", Protocol.UDP: "07"}


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that waits for connections or datagrams."""

    protocol: Protocol
    endpoint: Endpoint
    inode: int

    def accepts(self, address: Address) -> bool:
        """Whether packets to that address of this host reach it (`::` also accepts IPv4)."""
        own = self.endpoint.address
        if own.is_unspecified:
            return own.version == 6 or address.version == 4
        return own == address

    def owner(self) -> str:
        """Name and pid of a process that has it open; other users' processes need root."""
        target = f"socket:[{self.inode}]"
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                for descriptor in os.listdir(process / "fd"):
                    # Possibly closed since it was listed.
                    with suppress(FileNotFoundError):
                        if os.readlink(process / "fd" / descriptor) == target:
                            name = (process / "comm").read_text().strip()
                            return f"{name} (pid {process.name})"
        return "another process"


def listeners(protocols: Iterable[Protocol] = tuple(Protocol)) -> list[Listener]:
    """The listening sockets of this network namespace."""
    found = []
    for protocol in protocols:
        for name in _FILES[protocol]:
            with suppress(FileNotFoundError):
                for line in (_NET / name).read_text().splitlines()[1:]:
                    fields = line.split()
                    if fields[3] == _WAITING[protocol]:
                        endpoint = _parse_endpoint(fields[1])
                        found.append(Listener(protocol, endpoint, int(fields[9])))
    return found


def _parse_endpoint(text: str) -> Endpoint:
    """Read /proc/net/tcp's `0100007F:1F90`: 32-bit words in this machine's byte order."""
    host, _, port = text.partition(":")
    words = [int(host[at : at + 8], 16) for at in range(0, len(host), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    address: Address
    if len(packed) == 4:
        address = IPv4Address(packed)
    else:
        address = IPv6Address(packed)
        address = address.ipv4_mapped or address
    return Endpoint(address, int(port, 16))
