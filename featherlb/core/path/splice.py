"""Connections that were opened with a cookie: their two halves have different sequence numbers.

The ACK that returns a cookie becomes the client's SYN again, as far as the cookie could tell it: it
is sent through this host's OUTPUT hook, and opens a flow as any SYN does. The client believes that
its connection is open, and waits for a window. The backend's SYN-ACK becomes the ACK that opens the
window, and an ACK in the client's name is sent as the SYN was.

The client has our SYN-ACK's sequence numbers, the backend its own. For the life of the flow, the
difference is added to the backend's sequence numbers and subtracted where the client acknowledges
them, in SACK blocks, too (RFC 2018). If the backend scales its window otherwise than our SYN-ACK
had announced, windows are converted as well. Sequence numbers in a flow's record are those that the
backend knows.

With the datapath `offload` the kernel adds and subtracts the difference. It learns of the flow when
the backend has answered; until then, packets are translated here, and the SYN is sent past
connection tracking. The kernel converts no windows: if the backend's scale is smaller than the one
that was announced, the client would send more than the backend can take, and the connection is
reset. The next ones are announced the right scale (`Cookies.set_shield`). If it is larger, the
client believes windows to be smaller than they are, which does no harm.
"""

from typing import Any

import cython

from featherlb.core.flows.counters import Counters
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import Members
from featherlb.core.flows.next_hops import NextHops
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.core.path.context import Context
from featherlb.core.path.cookies import Cookies
from featherlb.core.path.offloaded import OffloadedFlows
from featherlb.core.path.outbox import Outbox
from featherlb.core.path.redispatch import Redispatch
from featherlb.model import Hook, PacketInfo, Verdict
from featherlb.model.reason import Reason
from featherlb.model.ticks import TICKS_PER_SECOND
from featherlb.net.build import flow_reset, flow_segment
from featherlb.net.packet import Packet
from featherlb.net.protocols import ACK, RST, SYN

if not cython.compiled:
    from featherlb.core.flows.counters import SYN_TIMEOUTS
    from featherlb.core.flows.record import OFFLOADED, SPLICED, WIRED, direction_of, ports_of
    from featherlb.core.path.context import GO_ON
    from featherlb.core.path.hooks import is_after_routing
    from featherlb.core.path.redispatch import key_of
    from featherlb.core.path.terminate import towards
    from featherlb.net.checksum import MASK16, fold, update
    from featherlb.net.packet import MASK32
    from featherlb.net.tcp_options import (
        MAXIMUM_SEGMENT_SIZE,
        NO_OPERATION,
        SACK,
        SACK_PERMITTED,
        WINDOW_SCALE,
        option_from,
        window_scale,
    )

RETRIES = tuple(seconds * TICKS_PER_SECOND for seconds in (1, 2, 4, 8))
"""Ticks from one SYN to the next, and from the last one to the end of the wait."""
MAX_OPENINGS = 8192
"""Connections that may wait for their backends. Beyond that, cookies are not taken: a client that
has something to send returns its cookie again."""

NEW = int(State.NEW)
SYN_SENT = int(State.SYN_SENT)
SYN_RETRIED = int(State.SYN_RETRIED)
CLOSED = int(State.CLOSED)
COOKIE_ACK = int(Reason.COOKIE_ACK)
INVALID = int(Reason.INVALID)
WINDOW_SCALE_REASON = int(Reason.WINDOW_SCALE)
DROP = int(Verdict.DROP)
REWRITTEN = int(Verdict.REWRITTEN)
PREROUTING = int(Hook.PREROUTING)
NOT_READY = int(PacketInfo.CHECKSUM_NOT_READY)

# What stands behind the offset in a flow's splice: by how many bits windows are shifted.
REPLY_LEFT, REPLY_RIGHT, FORWARD_LEFT = 32, 36, 40


class Opening:
    """A connection whose backend has not answered yet.

    `hook` is the one where the client's packets arrive, `hop` the hop towards the client. `ends`
    are IP version, client, VIP and ports as for `flow_segment`. `first` is the sequence number of
    the client's SYN, `cookie` that of our answer, `window` that of the client's ACK, not scaled,
    `scale` the SYN's, and `offered` that of the answer, both -1 unless windows are scaled. The next
    SYN is due at the tick `due`.
    """

    def __init__(
        self, hook: int, hop: int, packet: Packet, cookies: Cookies, window: int, due: int
    ) -> None:
        self.hook = hook
        self.hop = hop
        client, vip = (packet.src_high, packet.src_low), (packet.dst_high, packet.dst_low)
        self.ends = (packet.version, client, vip, packet.ports)
        self.first = cookies.first
        self.cookie = cookies.cookie
        self.size = cookies.size
        self.offered = cookies.offered
        self.scale = cookies.scale if self.offered >= 0 else -1
        self.sack = cookies.sack
        self.window = window
        self.due = due
        self.tries = 0

    def syn(self) -> bytes:
        """The client's SYN, as far as the cookie could tell it."""
        options = bytes((MAXIMUM_SEGMENT_SIZE, 4)) + self.size.to_bytes(2, "big")
        if self.sack:
            options += bytes((NO_OPERATION, NO_OPERATION, SACK_PERMITTED, 2))
        if self.scale >= 0:
            options += bytes((NO_OPERATION, WINDOW_SCALE, 3, self.scale))
        window = min(self.window << max(self.scale, 0), MASK16)
        return flow_segment(*self.ends, self.first, 0, SYN, window, options)

    def acknowledgement(self) -> bytes:
        """The ACK that completes the backend's handshake, as the client would send it."""
        numbers = (self.first + 1) & MASK32, (self.cookie + 1) & MASK32
        return flow_segment(*self.ends, *numbers, ACK, self.window)

    def reset(self) -> bytes:
        """A RST to the client."""
        version, client, vip, ports = self.ends
        ports = (ports & MASK16) << 16 | ports >> 16
        return flow_reset(version, vip, client, ports, (self.cookie + 1) & MASK32)


class Splices:
    """Opens such connections, and translates their packets. `openings` are those whose backends
    have not answered yet, by the client's tuple."""

    def __init__(
        self,
        packet: Packet,
        flows: FlowTable,
        lifecycle: Lifecycle,
        next_hops: NextHops,
        counters: Counters,
        outbox: Outbox,
        redispatch: Redispatch,
        cookies: Cookies,
        members: Members,
        offload: OffloadedFlows,
    ) -> None:
        self.openings: dict[tuple[int, int, int, int, int, int], Opening] = {}
        self._packet = packet
        self._flows = flows
        self._lifecycle = lifecycle
        self._next_hops = next_hops
        self._counters = counters
        self._outbox = outbox
        self._redispatch = redispatch
        self._cookies = cookies
        self._members = members
        self._offload = offload
        self._answered: Opening | None = None

    # For the packet path: opening

    def begin(self, ctx: Context) -> int:
        """Send the SYN of the client whose ACK, in hand, has returned a cookie; the verdict on the
        ACK."""
        key = key_of(self._packet)
        if key not in self.openings and len(self.openings) < MAX_OPENINGS:
            cookies = self._cookies
            cookies.returned += 1
            packet = self._packet
            opening = Opening(
                PREROUTING if is_after_routing(ctx.hook) else ctx.hook,
                self._next_hops.ingress,
                packet,
                cookies,
                packet.read16(packet.transport + 14),
                ctx.ticks + RETRIES[0],
            )
            self.openings[key] = opening
            self._redispatch.reinject(opening.syn())
        return self._counters.drop(COOKIE_ACK)

    def find(self, packet: Packet) -> Opening | None:
        """The connection that the parsed packet of a client opens, if it has returned a cookie."""
        return self.openings.get(key_of(packet))

    def opened(self, ctx: Context, opening: Opening) -> None:
        """Note that the SYN has opened the flow."""
        record = self._flows.at(ctx.flow)
        record.flags |= SPLICED
        self._flows.splices[ctx.flow] = 0
        if record.flags & WIRED:
            self._next_hops.clients[ctx.flow] = opening.hop
        self._offload.open_untracked(ctx.flow, ctx.ticks)

    def forget(self, packet: Packet) -> None:
        """No backend takes the connection that the parsed SYN was to open: the client is told."""
        opening = self.openings.pop(key_of(packet), None)
        if opening is not None:
            self._outbox.add(opening.reset())

    # For the packet path: packets of such a flow

    def receive(self, ctx: Context) -> int:
        """Decide on a packet, before its connection is followed; from then on, it has the numbers
        that the backend knows."""
        if self.openings and self._flows.at(ctx.flow).state in (NEW, SYN_SENT, SYN_RETRIED):
            opening = self.find_by_flow(ctx.flow)
            if opening is not None:
                return self.wait(ctx, opening)
        if not ctx.reply:
            self.translate(ctx)
        return GO_ON

    def send(self, ctx: Context) -> int:
        """Give a reply that was followed the numbers that the client knows; the verdict on it if it
        can't have them."""
        record = self._flows.at(ctx.flow)
        if self.openings and self._packet.flags & SYN:
            opening = self.find_by_flow(ctx.flow)
            if opening is not None:
                del self.openings[self.key_of_flow(ctx.flow)]
                if record.flags & OFFLOADED:
                    return self.check_scale(ctx, opening)
                self.join(ctx, opening)
        self.translate(ctx)
        if record.flags & OFFLOADED and record.state == CLOSED:
            self._outbox.add(flow_reset(*towards(record, 0), self._packet.sequence))
        return GO_ON

    def leave(self, ctx: Context) -> int:
        """The verdict on a packet of such a flow that was rewritten and counted. With `offload` it
        has met connection tracking, which doesn't know the flow: another one goes in its place."""
        if not self._flows.at(ctx.flow).flags & OFFLOADED:
            return REWRITTEN
        packet = self._packet
        if self._answered is not None:
            self.hand_over(ctx, self._answered)
            self._answered = None
        elif not ctx.reply:
            self._offload.send_untracked(packet.quote(packet.end - packet.ip))
        return DROP

    def find_by_flow(self, flow: int) -> Opening | None:
        """The flow's connection, if its backend has not answered yet."""
        return self.openings.get(self.key_of_flow(flow))

    def key_of_flow(self, flow: int) -> tuple[int, int, int, int, int, int]:
        record = self._flows.at(flow)
        return (
            record.client_high,
            record.client_low,
            record.vip_high,
            record.vip_low,
            ports_of(direction_of(record, 0)),
            record.protocol,
        )

    def wait(self, ctx: Context, opening: Opening) -> int:
        """Decide on a packet that comes while the backend's answer is awaited."""
        packet = self._packet
        expected = (opening.first + 1) & MASK32
        if not ctx.reply:
            if packet.flags == SYN and packet.sequence == opening.first:
                return GO_ON
            if packet.flags & RST and packet.sequence == expected:
                del self.openings[self.key_of_flow(ctx.flow)]
                self._lifecycle.close(ctx.flow)
            return self._counters.drop(COOKIE_ACK)
        if not packet.flags & ACK or packet.acknowledgement != expected:
            if packet.flags & ACK and not packet.flags & RST:
                # Of a connection that the client had before: it would reset that (RFC 9293 section
                # 3.10.7.3), and its next SYN is taken.
                ends = towards(self._flows.at(ctx.flow), 1)
                self._outbox.add(flow_reset(*ends, packet.acknowledgement))
            return self._counters.drop(INVALID)
        if packet.flags & RST:
            # The client has a connection: only the number that it expects can end it.
            del self.openings[self.key_of_flow(ctx.flow)]
            self._flows.splices[ctx.flow] = (opening.cookie + 1 - packet.sequence) & MASK32
            return GO_ON
        return GO_ON if packet.flags & SYN else self._counters.drop(INVALID)

    def join(self, ctx: Context, opening: Opening) -> None:
        """Take the numbers from the backend's SYN-ACK, have it acknowledged, and make it the ACK
        that opens the window to the client."""
        packet = self._packet
        flow = ctx.flow
        scale = window_scale(packet)
        splice = (opening.cookie - packet.sequence) & MASK32
        if opening.scale >= 0:
            # A backend that doesn't scale takes the client's windows as they are.
            if scale > opening.offered:
                shift = scale - opening.offered
                splice |= shift << REPLY_LEFT
            else:
                shift = opening.offered - max(scale, 0)
                splice |= shift << REPLY_RIGHT
            if scale < 0:
                shift = opening.scale
                splice |= shift << FORWARD_LEFT
        self._flows.splices[flow] = splice
        self._redispatch.reinject(opening.acknowledgement())

        at = packet.transport
        packet.sequence = (packet.sequence + 1) & MASK32
        packet.flags = ACK
        packet.write32(at + 4, packet.sequence)
        packet.data[at + 13] = ACK
        if opening.scale >= 0 and scale > 0:
            # The window of a SYN is not scaled, that of another segment is; then it is converted
            # as that of any other.
            packet.write16(at + 14, packet.read16(at + 14) >> scale)
        for i in range(at + 20, packet.payload):
            packet.data[i] = NO_OPERATION
        if not ctx.info & NOT_READY:
            packet.complete_checksum()

    def check_scale(self, ctx: Context, opening: Opening) -> int:
        """Whether the kernel can forward the flow whose SYN-ACK is in hand; the verdict if not."""
        record = self._flows.at(ctx.flow)
        if opening.scale >= 0:
            scale = window_scale(self._packet)
            member = self._members.by_id[record.member_id]
            member.scale = scale
            if scale < opening.offered:
                self._outbox.add(opening.reset())
                self._outbox.add(flow_reset(*towards(record, 1), (opening.first + 1) & MASK32))
                self._lifecycle.close(ctx.flow)
                return self._counters.drop(WINDOW_SCALE_REASON)
        self._answered = opening
        return GO_ON

    def hand_over(self, ctx: Context, opening: Opening) -> None:
        """Have the kernel forward the flow from the backend's SYN-ACK on. In its place the backend
        sends a segment that opens the window."""
        packet = self._packet
        record = self._flows.at(ctx.flow)
        scale = window_scale(packet)
        self._flows.splices[ctx.flow] = (opening.cookie - packet.sequence) & MASK32
        record.scales = opening.scale << 4 | scale if opening.scale >= 0 else 0
        numbers = (packet.sequence + 1) & MASK32, (opening.first + 1) & MASK32
        # The window of a SYN is not scaled, that of another segment is.
        window = packet.read16(packet.transport + 14) >> (scale if opening.scale >= 0 else 0)
        self._offload.hand_over_spliced(
            ctx.flow,
            opening.acknowledgement(),
            flow_segment(*from_backend(record), *numbers, ACK, window),
            ctx.ticks,
        )

    # Translation

    def translate(self, ctx: Context) -> None:
        """Translate the sequence numbers and the window of the packet in hand."""
        packet = self._packet
        at = packet.transport
        splice = self._flows.splices[ctx.flow]
        offset = splice & MASK32
        summed = not ctx.info & NOT_READY
        if ctx.reply:
            packet.sequence = (packet.sequence + offset) & MASK32
            replace32(packet, at + 4, packet.sequence, summed)
            left, right = splice >> REPLY_LEFT & 15, splice >> REPLY_RIGHT & 15
        else:
            if packet.flags & ACK:
                packet.acknowledgement = (packet.acknowledgement - offset) & MASK32
                replace32(packet, at + 8, packet.acknowledgement, summed)
                if packet.payload > at + 20:
                    self.translate_blocks(offset, summed)
            left, right = splice >> FORWARD_LEFT & 15, 0
        if (left or right) and not packet.flags & (SYN | RST):
            window = packet.read16(at + 14)
            replace16(packet, at + 14, min(window << left >> right, MASK16), summed)

    def translate_blocks(self, offset: int, summed: bool) -> None:
        """Subtract the offset from the edges of the segment's SACK blocks (RFC 2018 section 3)."""
        packet = self._packet
        at = option_from(packet, packet.transport + 20)
        while at:
            end = at + packet.data[at + 1]
            if packet.data[at] == SACK:
                for edge in range(at + 2, end - 3, 4):
                    replace32(packet, edge, (packet.read32(edge) - offset) & MASK32, summed)
            at = option_from(packet, end)

    # Timers

    def handle_timer(self, ticks: int) -> None:
        """Retransmit SYNs; end the connections whose backends don't answer."""
        for key, opening in list(self.openings.items()):
            if ticks < opening.due:
                continue
            opening.tries += 1
            if opening.tries < len(RETRIES):
                opening.due = ticks + RETRIES[opening.tries]
                self._redispatch.reinject(opening.syn())
                continue
            del self.openings[key]
            self._outbox.add(opening.reset())
            high, low, vip_high, vip_low, ports, protocol = key
            flow = self._flows.find(high, low, vip_high, vip_low, ports, protocol) >> 1
            if flow and self._flows.at(flow).flags & SPLICED:
                self._counters.add(self._flows.at(flow).member_id, SYN_TIMEOUTS)
                self._lifecycle.close(flow)


def from_backend(record: Any) -> tuple[int, tuple[int, int], tuple[int, int], int]:
    """IP version, source, destination and ports of a flow's packets as its backend sends them."""
    version, destination, source, ports = towards(record, 1)
    return version, source, destination, (ports & MASK16) << 16 | ports >> 16


def replace16(packet: Packet, at: int, value: int, summed: bool) -> None:
    """Replace two bytes at an even offset of the TCP header; `summed` if its checksum is complete
    and has to be updated."""
    if summed:
        field = packet.transport + 16
        delta = fold((packet.read16(at) ^ MASK16) + value)
        packet.write16(field, update(packet.read16(field), delta))
    packet.write16(at, value)


def replace32(packet: Packet, at: int, value: int, summed: bool) -> None:
    """The same with four bytes, at any offset."""
    if summed:
        before = packet.read32(at)
        total = (
            (before >> 16 ^ MASK16) + (before & MASK16 ^ MASK16) + (value >> 16) + (value & MASK16)
        )
        delta = fold(total)
        if (at - packet.transport) & 1:  # its bytes are in the other halves of their words
            delta = (delta & 0xFF) << 8 | delta >> 8
        field = packet.transport + 16
        packet.write16(field, update(packet.read16(field), delta))
    packet.write32(at, value)
