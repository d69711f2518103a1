"""Single packets: sent as they are, and captured as they are, on a node's interface."""

import socket
import sys
from types import TracebackType
from typing import Self

from scapy.layers.inet import IP
from scapy.packet import Packet

from featherlb.lab import Lab, Node
from tests.builders import pseudo_sum

ETH_P_IP = 0x0800
ETH_P_ALL = 0x0003
SOL_PACKET, PACKET_AUXDATA = 263, 8
CHECKSUM_NOT_READY = 8
"""TP_STATUS_CSUMNOTREADY (include/uapi/linux/if_packet.h)."""


def send(lab: Lab, packets: list[bytes]) -> None:
    """Send IPv4 packets from the client to the balancer, nothing added and nothing corrected."""
    mac = bytes.fromhex(
        lab.balancer.run(["cat", "/sys/class/net/front/address"]).stdout.strip().replace(":", "")
    )
    with lab.client.call(socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, 0) as wire:
        for packet in packets:
            wire.sendto(packet, ("eth0", ETH_P_IP, 0, 0, mac))


class Capture:
    """Everything that an interface receives and sends, from `__enter__` on, as on a cable."""

    def __init__(self, node: Node, interface: str) -> None:
        self.node = node
        self.interface = interface

    def __enter__(self) -> Self:
        self._socket = self.node.call(
            socket.socket, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.bind((self.interface, ETH_P_ALL))
        self._socket.setblocking(False)
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._seen: list[tuple[bytes, bool]] = []
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def packets(self, address: str) -> list[Packet]:
        """The IPv4 packets so far with this source or destination."""
        while True:
            try:
                data, ancillary, _, origin = self._socket.recvmsg(1 << 16, 64)
            except BlockingIOError:
                break
            if origin[1] == ETH_P_IP:
                status = int.from_bytes(ancillary[0][2][:4], sys.byteorder)
                self._seen.append((data, bool(status & CHECKSUM_NOT_READY)))
        wanted = socket.inet_aton(address)
        # Only these are taken apart: all of a load would take seconds.
        return [
            IP(completed(data) if unfinished else data)
            for data, unfinished in self._seen
            if wanted in (data[12:16], data[16:20])
        ]


def completed(data: bytes) -> bytes:
    """A packet whose transport checksum the kernel has left for the network card to compute, which
    it does from the pseudo-header's sum in the field."""
    packet = IP(data)
    assert packet.payload.chksum == pseudo_sum(data)
    del packet.payload.chksum
    return bytes(packet)


def with_right_checksums(packet: Packet) -> bytes:
    """The packet as scapy would have written its IP and transport checksums."""
    copy = packet.copy()
    del copy.chksum
    if copy.payload.fields.get("chksum") is not None:
        del copy.payload.chksum
    return bytes(copy)
