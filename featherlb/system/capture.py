"""Captures the answers to packets that this host sent with a client's source address.

Packet sockets see what an interface receives before the host's filters and routing, including
packets for other hosts.
"""

import select
import socket
import struct
import time
from collections.abc import Collection
from contextlib import suppress
from ipaddress import ip_address
from typing import Self

from featherlb.model import Endpoint
from featherlb.net.protocols import ETHER_TYPES, TCP
from featherlb.system.packet_socket import PACKET_IGNORE_OUTGOING, SOL_PACKET

_ENOUGH = 128
"""Bytes to read of a packet: its headers."""

Pair = tuple[Endpoint, Endpoint]
"""Source and destination."""


class Capture:
    """Captures what interfaces receive. A context manager; needs CAP_NET_RAW."""

    def __init__(self, interfaces: Collection[tuple[str, int]]) -> None:
        """Each interface comes with the address family, 4 or 6."""
        self._sockets = []
        for interface, family in interfaces:
            link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
            link.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            link.bind((interface, ETHER_TYPES[family]))
            self._sockets.append(link)

    def wait_for(self, wanted: Collection[Pair], timeout: float) -> set[Pair]:
        """The TCP conversations of which a segment arrived within `timeout` seconds."""
        found: set[Pair] = set()
        deadline = time.monotonic() + timeout
        while len(found) < len(wanted) and (left := deadline - time.monotonic()) > 0:
            for link in select.select(self._sockets, [], [], left)[0]:
                # An interface that goes down receives nothing.
                with suppress(OSError):
                    pair = conversation(link.recv(_ENOUGH))
                    if pair is not None and pair in wanted:
                        found.add(pair)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._sockets:
            link.close()


def conversation(packet: bytes) -> Pair | None:
    """Source and destination of a TCP segment; None for anything else, IPv6 with extension
    headers included."""
    if len(packet) < 20:
        return None
    if packet[0] >> 4 == 4:
        protocol, start, at, size = packet[9], (packet[0] & 15) * 4, 12, 4
    else:
        protocol, start, at, size = packet[6], 40, 8, 16
    if protocol != TCP or len(packet) < start + 4:
        return None
    source, destination = struct.unpack_from("!HH", packet, start)
    return (
        Endpoint(ip_address(packet[at : at + size]), source),
        Endpoint(ip_address(packet[at + size : at + 2 * size]), destination),
    )
