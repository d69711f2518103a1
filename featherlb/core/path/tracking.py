"""Tracks flows by their packets: the state of TCP connections, and the UDP responses that are still
to come."""

import cython

from featherlb.core.flows.counters import Counters
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import TRANSITIONS, Event, State
from featherlb.core.path.context import Context
from featherlb.net.protocols import ACK, FIN, RST, SYN

if not cython.compiled:
    from featherlb.core.flows.counters import REFUSED, RESETS, SYN_RETRIES
    from featherlb.core.flows.record import COUNTED, direction_of
    from featherlb.net.packet import MASK32

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
    """Tracks the state of flows by their packets."""

    def __init__(self, flows: FlowTable, lifecycle: Lifecycle, counters: Counters) -> None:
        self._flows = flows
        self._lifecycle = lifecycle
        self._counters = counters

    def follow(self, ctx: Context) -> None:
        """Update the flow's state, timeout and expected sequence numbers."""
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
            if record.queue != self._lifecycle.silent_queue:
                flows.touch(flow, ctx.ticks)
            elif not reply or flags != ACK or packet.payload != packet.end:
                self._lifecycle.wake(flow, ctx.ticks)
            # Else the backend has answered a probe of ours.
            return
        self._lifecycle.enter(flow, following, ctx.ticks)
        if following == SYN_RETRIED:
            self._counters.add(record.member_id, SYN_RETRIES)
        elif following == CLOSED and reply:
            refused = state in (SYN_SENT, SYN_RETRIED)
            self._counters.add(record.member_id, REFUSED if refused else RESETS)

    def resets_another(self, ctx: Context, state: int) -> bool:
        """Whether the client's RST belongs to its previous connection from the same port.

        A late segment of that connection makes the client, which is in SYN-SENT again, send such a
        RST and retransmit its SYN. If the RST closed the flow, the SYN would open another one at
        another backend, while the first backend's SYN-ACK is on its way. An unanswered SYN needs no
        RST, and a new connection's sequence numbers are beyond those of the old one.
        """
        if state in (SYN_SENT, SYN_RETRIED):
            return True
        expected = self._flows.at(ctx.flow).backend_expects
        return state == SYN_RECEIVED and (ctx.packet.sequence - expected) & MASK32 >= 1 << 31

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
