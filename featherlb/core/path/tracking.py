"""What a packet tells about its flow: the TCP connection's state, and how many UDP responses are
still to come."""

import cython

from featherlb.core.flows.counters import Counters
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import TRANSITIONS, Event, State
from featherlb.core.path.context import Context

if not cython.compiled:
    from featherlb.core.flows.counters import REFUSED, RESETS, SYN_RETRIES
    from featherlb.core.flows.record import COUNTED, direction_of
    from featherlb.net.packet import ACK, FIN, MASK32, RST, SYN

# The table of transitions as flat bytes, for the compiled build.
EVENTS = len(Event)
NEXT_STATE = memoryview(
    bytearray(state for by_direction in TRANSITIONS for row in by_direction for state in row)
)
EVENT_SYN, EVENT_SYN_ACK, EVENT_FIN, EVENT_RST, EVENT_ACK = (int(event) for event in Event)

SYN_SENT = int(State.SYN_SENT)
SYN_RECEIVED = int(State.SYN_RECEIVED)
SYN_RETRIED = int(State.SYN_RETRIED)
CLOSED = int(State.CLOSED)


class Tracker:
    """Follows the state of flows by their packets."""

    def __init__(self, flows: FlowTable, lifecycle: Lifecycle, counters: Counters) -> None:
        self._flows = flows
        self._lifecycle = lifecycle
        self._counters = counters

    def follow(self, ctx: Context) -> None:
        """Take the packet into account: state, timeout, expected sequence numbers."""
        packet = ctx.packet
        flows = self._flows
        flow = ctx.flow
        reply = ctx.reply
        record = flows.at(flow)
        state = record.state
        flags = packet.flags
        if flags & RST:
            if not reply and self.resets_another(ctx, state):
                return
            event = EVENT_RST
        elif flags & SYN:
            event = EVENT_SYN_ACK if flags & ACK else EVENT_SYN
        elif flags & FIN:
            event = EVENT_FIN
        else:
            event = EVENT_ACK
        following = NEXT_STATE[(state * 2 + reply) * EVENTS + event]
        if flags & ACK:
            direction_of(record, reply).expected = packet.acknowledgement
        if following == state:
            flows.touch(flow, ctx.ticks)
            return
        self._lifecycle.enter(flow, following, ctx.ticks)
        if following == SYN_RETRIED:
            self._counters.add(record.member_id, SYN_RETRIES)
        elif following == CLOSED and reply:
            refused = state in (SYN_SENT, SYN_RETRIED)
            self._counters.add(record.member_id, REFUSED if refused else RESETS)

    def resets_another(self, ctx: Context, state: int) -> bool:
        """Whether the client's RST is of the connection that it had by the same port before.

        A late packet of that one, met by the client's new SYN, makes it send such a RST, and then
        the SYN again: if the flow were closed, that would open it at another backend, and cut the
        client off from the one whose SYN-ACK is under way. What nobody has answered needs no RST,
        and the sequence numbers of a new connection begin beyond those of the old one.
        """
        if state in (SYN_SENT, SYN_RETRIED):
            return True
        expected = self._flows.at(ctx.flow).backend_expects
        return state == SYN_RECEIVED and (ctx.packet.sequence - expected) & MASK32 >= 1 << 31

    def is_last_response(self, ctx: Context) -> bool:
        """Count a datagram of a flow that expects a number of responses; True if none is to come
        any more."""
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
