"""Tracks flows by their packets: the state of TCP connections, and the UDP responses that are still
to come."""

from array import array

import cython

from featherlb.core.flows.counters import Counters
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.next_hops import NextHops
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import TRANSITIONS, Event, State
from featherlb.core.path.context import Context
from featherlb.model import Hook, PacketInfo
from featherlb.net.protocols import ACK, FIN, RST, SYN

if not cython.compiled:
    from featherlb.core.flows.counters import DOUBTFUL, REFUSED, RESETS, RETRANSMITS, SYN_RETRIES
    from featherlb.core.flows.record import (
        BACKEND_SPOKE,
        CLIENT_SPOKE,
        COUNTED,
        UNSURE,
        direction_of,
    )
    from featherlb.core.flows.windows import (
        REPEATED,
        acknowledges_syn,
        admits,
        admits_reset,
        answer,
        begin,
        renew,
    )
    from featherlb.core.path.context import FIRST_FRAGMENT
    from featherlb.net.checksum import MASK16
    from featherlb.net.packet import MASK32

# The table of transitions as flat bytes, for the compiled build.
EVENTS = len(Event)
NEXT_STATE = memoryview(
    bytearray(state for by_direction in TRANSITIONS for row in by_direction for state in row)
)
EVENT_SYN, EVENT_SYN_ACK, EVENT_FIN, EVENT_RST, EVENT_ACK = (int(event) for event in Event)
NO_EVENT = -1
"""The segment doesn't change the state."""
EVENT_ANSWERED = -2
"""A backend that has lost the connection has opened another one for the client's SYN."""
REMEMBERED = 1024
"""SYNs of open connections to remember."""

NEW = int(State.NEW)
SYN_SENT = int(State.SYN_SENT)
SYN_RECEIVED = int(State.SYN_RECEIVED)
SYN_RETRIED = int(State.SYN_RETRIED)
ADOPTED = int(State.ADOPTED)
ESTABLISHED = int(State.ESTABLISHED)
CLOSED = int(State.CLOSED)
UDP_TWO_WAY = int(State.UDP_TWO_WAY)
WIRE = int(Hook.WIRE)
NOT_READY = int(PacketInfo.CHECKSUM_NOT_READY)


class Tracker:
    """Tracks the state of flows by their packets."""

    def __init__(
        self, flows: FlowTable, lifecycle: Lifecycle, counters: Counters, next_hops: NextHops
    ) -> None:
        self._flows = flows
        self._next_hops = next_hops
        self._lifecycle = lifecycle
        self._counters = counters
        # The latest SYNs to connections that were open already: flow and sequence number.
        self._syn_flows = memoryview(array("I", bytes(4 * REMEMBERED)))
        self._syn_sequences = memoryview(array("I", bytes(4 * REMEMBERED)))

    def follow(self, ctx: Context) -> None:
        """Update the flow's state, timeout and sequence numbers."""
        packet = ctx.packet
        flows = self._flows
        flow = ctx.flow
        reply = ctx.reply
        record = flows.at(flow)
        state = record.state
        flags = packet.flags
        event = EVENT_ACK
        if flags & RST:
            event = self.judge_reset(ctx, state)
        elif flags & SYN:
            event = self.judge_syn(ctx, state)
        elif flags:
            if flags & FIN:
                event = EVENT_FIN
            more = MASK16 if ctx.kind == FIRST_FRAGMENT else 0
            admitted = admits(record, reply, packet, more)
            if admitted == REPEATED:
                self._counters.add(record.member_id, RETRANSMITS + reply)
            if not admitted:
                if event == EVENT_FIN or state == SYN_RECEIVED:
                    self._counters.add(record.member_id, DOUBTFUL)
                event = NO_EVENT
            elif state == CLOSED and self.lives(ctx):
                self._lifecycle.enter(flow, ESTABLISHED, ctx.ticks)
                return
        # Else it is a datagram.
        following = state
        if event == EVENT_ANSWERED:
            following = SYN_RECEIVED
        elif event != NO_EVENT:
            following = NEXT_STATE[(state * 2 + reply) * EVENTS + event]
        if following == state:
            if record.queue != self._lifecycle.silent_queue:
                flows.touch(flow, ctx.ticks)
            elif not reply or flags != ACK or packet.payload != packet.end:
                self._lifecycle.wake(flow, ctx.ticks)
            # Else the backend has answered a probe of ours.
            return
        self._lifecycle.enter(flow, following, ctx.ticks)
        if following == SYN_RETRIED:
            self._counters.fail(record, SYN_RETRIES)
        elif following == UDP_TWO_WAY:
            self._counters.latencies.answered(flow, record.member_id, ctx.now)
        elif following == CLOSED and reply:
            if state in (SYN_SENT, SYN_RETRIED):
                self._counters.fail(record, REFUSED)
            else:
                self._counters.add(record.member_id, RESETS)

    def judge_reset(self, ctx: Context, state: int) -> int:
        """The event that a RST is: none if it can't be real.

        To an unanswered SYN, the backend's is real if it acknowledges the SYN (RFC 9293 section
        3.10.7.3). The client's belongs to its previous connection from the same port then: a late
        segment of that one makes the client send such a RST and retransmit its SYN. If the RST
        closed the flow, the SYN would open another one at another backend, while the first
        backend's SYN-ACK is on its way. An unanswered SYN needs no RST.
        """
        packet = ctx.packet
        record = self._flows.at(ctx.flow)
        opening = state in (SYN_SENT, SYN_RETRIED)
        if opening and not ctx.reply:
            return NO_EVENT
        if not opening:
            real = admits_reset(record, ctx.reply, packet)
        else:
            # Who has sent the SYN knows its number, but is on another link than the backend.
            real = acknowledges_syn(record, packet) and (
                ctx.hook != WIRE or self._next_hops.comes_from(record.member_id)
            )
        # Its receiver drops it if it is damaged.
        if real and not ctx.info & NOT_READY and ctx.kind != FIRST_FRAGMENT:
            real = not packet.transport_checksum(
                packet.src_high, packet.src_low, packet.dst_high, packet.dst_low
            )
        if not real:
            self._counters.add(record.member_id, DOUBTFUL)
            return NO_EVENT
        record.flags &= ~(CLIENT_SPOKE | BACKEND_SPOKE)
        return EVENT_RST

    def judge_syn(self, ctx: Context, state: int) -> int:
        """The event that a SYN or SYN-ACK is."""
        packet = ctx.packet
        record = self._flows.at(ctx.flow)
        opening = state in (SYN_SENT, SYN_RETRIED)
        following = (packet.sequence + 1) & MASK32
        if packet.flags & ACK:
            if not ctx.reply:
                return EVENT_SYN_ACK
            if opening or state == ADOPTED:
                if state == SYN_SENT and acknowledges_syn(record, packet):
                    self._counters.latencies.answered(ctx.flow, record.member_id, ctx.now)
                answer(record, packet)
            elif self.answers_syn(ctx):
                renew(record, packet)
                return EVENT_ANSWERED
            elif state == SYN_RECEIVED and following != record.client_expects:
                record.flags |= UNSURE  # SYN cookies: the client may answer either
            elif state == SYN_RECEIVED:
                self._counters.add(record.member_id, RETRANSMITS + 1)
        elif not ctx.reply and (following != record.backend_expects or state == NEW):
            if opening or state in (NEW, ADOPTED):
                begin(record, packet)
            else:
                self.remember_syn(ctx)
                self._counters.add(record.member_id, DOUBTFUL)
        if packet.flags & ACK:
            return EVENT_SYN_ACK
        if state == SYN_SENT and not self._lifecycle.is_retransmission(ctx.flow, ctx.ticks):
            return NO_EVENT
        return EVENT_SYN

    def remember_syn(self, ctx: Context) -> None:
        """Note a SYN of a connection that is open: if its backend has lost it, it opens another."""
        at = ctx.flow % REMEMBERED
        self._syn_flows[at] = ctx.flow
        self._syn_sequences[at] = ctx.packet.sequence

    def answers_syn(self, ctx: Context) -> bool:
        """Whether a SYN-ACK acknowledges such a SYN."""
        at = ctx.flow % REMEMBERED
        following = (self._syn_sequences[at] + 1) & MASK32
        return self._syn_flows[at] == ctx.flow and ctx.packet.acknowledgement == following

    def lives(self, ctx: Context) -> bool:
        """Whether both ends have sent something else than a RST since the flow was reset, including
        the packet in hand."""
        record = self._flows.at(ctx.flow)
        record.flags |= BACKEND_SPOKE if ctx.reply else CLIENT_SPOKE
        return record.flags & BACKEND_SPOKE != 0 and record.flags & CLIENT_SPOKE != 0

    def is_last_response(self, ctx: Context) -> bool:
        """Count a datagram of a flow that expects a number of responses; True after the last."""
        record = self._flows.at(ctx.flow)
        if not record.flags & COUNTED:
            return False
        responses = direction_of(record, 1)
        awaited = responses.awaited
        if not ctx.reply:
            awaited = min(awaited + record.responses, MASK32)
        elif awaited:
            awaited -= 1
        responses.awaited = awaited
        return not awaited
