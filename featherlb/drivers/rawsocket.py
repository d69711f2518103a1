"""Sends packets that featherlb itself made, with their IP headers, through raw sockets.

Imports the standard library only. The kernel routes them by their destination; the source may be
an address that this host does not have (a VIP that is only routed here). They pass the OUTPUT
hook like any packet of this host.
"""

import socket


class RawSender:
    """Raw sockets of both address families; needs CAP_NET_RAW."""

    def __init__(self) -> None:
        self._ipv4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._ipv6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.failed = 0
        """Packets that the kernel refused (no route, no buffer): they are as good as lost."""

    def send(self, packet: bytes) -> None:
        """Send one IP packet; never blocks, never raises."""
        try:
            if packet[0] >> 4 == 4:
                address = socket.inet_ntop(socket.AF_INET, packet[16:20])
                self._ipv4.sendto(packet, socket.MSG_DONTWAIT, (address, 0))
            else:
                address = socket.inet_ntop(socket.AF_INET6, packet[24:40])
                self._ipv6.sendto(packet, socket.MSG_DONTWAIT, (address, 0))
        except OSError:
            self.failed += 1

    def close(self) -> None:
        self._ipv4.close()
        self._ipv6.close()
