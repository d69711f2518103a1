"""Sends packets that featherlb generated or held, with their IP headers, from raw sockets.

The kernel routes them by their destination; the source may be an address that this host does not
have (a VIP that is only routed here). They pass the OUTPUT hook like any packet of this host.
"""

import socket
import sys
from secrets import randbits

from featherlb.net.fragment import cut6

LOOPBACK, LOOPBACK6 = "127.0.0.1", "::1"
USUAL_MTU = 1500
"""Bytes: a longer packet almost certainly arrived in fragments."""
LEAST_MTU = 1280
"""Bytes: the minimum MTU of IPv6 links (RFC 8200 section 5)."""


class RawSender:
    """Raw sockets of both address families; needs CAP_NET_RAW."""

    def __init__(self) -> None:
        self._ipv4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self._ipv6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.failed = 0
        """Packets that the kernel refused (no route, no buffer); they are lost."""

    def send(self, packet: bytes, mark: int = 0) -> None:
        """Send one IP packet with this packet mark; never blocks, never raises."""
        try:
            if packet[0] >> 4 == 4:
                sender, address = self._ipv4, socket.inet_ntop(socket.AF_INET, packet[16:20])
            else:
                sender, address = self._ipv6, socket.inet_ntop(socket.AF_INET6, packet[24:40])
            ancillary = [(socket.SOL_SOCKET, socket.SO_MARK, mark.to_bytes(4, sys.byteorder))]
            sender.sendmsg([packet], ancillary if mark else (), socket.MSG_DONTWAIT, (address, 0))
        except OSError:
            self.failed += 1

    def send_translated(self, packet: bytes) -> None:
        """Send one IP packet to a VIP, which connection tracking or a worker will translate at the
        OUTPUT hook; never blocks, never raises.

        Its destination needs no route, and its length doesn't matter: until it is translated, it is
        addressed to this host itself, in one piece, and the kernel routes it afterwards. Over IPv4
        the kernel then fragments it if necessary. Over IPv6 it fragments only what arrived in
        fragments, and sends the client an error for the rest; so a long packet is fragmented here,
        and the kernel reassembles it before connection tracking.
        """
        try:
            if packet[0] >> 4 == 4:
                self._ipv4.sendto(packet, socket.MSG_DONTWAIT, (LOOPBACK, 0))
            elif len(packet) <= USUAL_MTU:
                self._ipv6.sendto(packet, socket.MSG_DONTWAIT, (LOOPBACK6, 0))
            else:
                for piece in cut6(packet, LEAST_MTU, randbits(32)):
                    self._ipv6.sendto(piece, socket.MSG_DONTWAIT, (LOOPBACK6, 0))
        except OSError:
            self.failed += 1

    def close(self) -> None:
        self._ipv4.close()
        self._ipv6.close()
