"""Packets that featherlb originates and that wait to be sent: RSTs, ICMP errors, echo replies.

What a remote host can cause is limited; beyond that it gets no answer.
"""

from featherlb.net.build import echo_reply, port_unreachable, tcp_reset, time_exceeded, too_big
from featherlb.net.packet import Packet
from featherlb.net.protocols import RST, UDP

MAX_WAITING = 512
"""Packets that wait to be sent; beyond that, refusals are silent, so a flood costs no memory."""
MAX_ICMP_ERRORS = 100
"""ICMP errors of our own per tick of 0.1 s (RFC 4443 section 2.4 f; Linux: 1000 a second)."""

MAX_REFUSED_CLIENTS = 100
"""Packets of clients beyond their limits that are answered, per tick: no flood causes another."""


class Outbox:
    """Answers to the packet that was parsed last."""

    def __init__(self, packet: Packet) -> None:
        self._packet = packet
        self._waiting: list[bytes] = []
        self._errors = 0
        self._ticks = 0
        self._refused_clients = 0
        self._refused_ticks = 0

    def take(self) -> list[bytes]:
        """Packets to send, with their IP headers, since the last call."""
        waiting = self._waiting
        if waiting:
            self._waiting = []
        return waiting

    def add(self, packet: bytes) -> None:
        """Send this packet regardless of the limit: an operator wants it."""
        self._waiting.append(packet)

    def refuse(self, ticks: int) -> None:
        """Refuse it with a RST or ICMP port unreachable, unless it must not be answered."""
        packet = self._packet
        if packet.protocol == UDP:
            if self.may_send_error(ticks):
                self._waiting.append(port_unreachable(packet))
        elif not packet.flags & RST and self.may_answer():
            self._waiting.append(tcp_reset(packet))

    def refuse_client(self, ticks: int) -> None:
        """Refuse a packet of a client that may not open a flow, as `refuse` does, unless too many
        have been."""
        if self._refused_ticks != ticks:
            self._refused_ticks, self._refused_clients = ticks, 0
        if self._refused_clients < MAX_REFUSED_CLIENTS:
            self._refused_clients += 1
            self.refuse(ticks)

    def echo(self) -> None:
        """Answer an ICMP echo request."""
        if self.may_answer():
            self._waiting.append(echo_reply(self._packet))

    def report_ttl_exceeded(self, high: int, low: int, ticks: int) -> None:
        """Send an ICMP time exceeded from this address (two words)."""
        if self.may_send_error(ticks):
            self._waiting.append(time_exceeded(self._packet, (high, low)))

    def report_too_big(self, high: int, low: int, mtu: int, ticks: int) -> None:
        """Send an ICMP fragmentation needed or packet too big, with `mtu` in bytes, from this
        address (two words)."""
        if self.may_send_error(ticks):
            self._waiting.append(too_big(self._packet, (high, low), mtu))

    def may_answer(self) -> bool:
        """Whether there is room for an answer, and the sender may get one."""
        return len(self._waiting) < MAX_WAITING and self._packet.has_unicast_source()

    def may_send_error(self, ticks: int) -> bool:
        """Whether an ICMP error may be sent now."""
        if self._ticks != ticks:
            self._ticks, self._errors = ticks, 0
        if self._errors >= MAX_ICMP_ERRORS or not self.may_answer():
            return False
        self._errors += 1
        return True
