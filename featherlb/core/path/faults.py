"""Injects faults into flows, for an operator who wants to see how clients bear them.

A fault stands for a bad link between featherlb and a backend. The backend's packets meet it before
everything else, the client's packets after it, so states, re-dispatch and measurements see what
they would see of a real one. A flow is chosen once, when it opens, and carries the flag WATCHED:
packets of other flows never come here.

Which flows and which of their packets are chosen depends on the fault's seed alone.
"""

import random
import struct
from collections.abc import Sequence

import cython

from featherlb.core.flows.counters import Counters
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import Members, PoolMember
from featherlb.core.flows.table import FlowTable
from featherlb.core.path.context import Context
from featherlb.core.path.outbox import Outbox
from featherlb.core.path.terminate import Termination
from featherlb.core.path.tracking import Tracker
from featherlb.core.pools.schedulers.hashing import KeyedHash
from featherlb.model import Verdict
from featherlb.model.fault import Fault, FaultKind
from featherlb.model.reason import Reason
from featherlb.net.protocols import TCP

if not cython.compiled:
    from featherlb.core.flows.record import OFFLOADED, WATCHED, direction_of, ports_of
    from featherlb.core.path.context import GO_ON

OVERTAKEN = 0.02
"""Seconds for which a packet waits that others are to overtake."""
REORDERED = 25
"""Per cent of the packets that do."""
MAX_HELD = 4096
"""Packets that wait at most, each with a copy of its contents; others pass at once."""
FLOW = struct.Struct("!QQQQI")

HOLD = int(Verdict.HOLD)
INJECTED_FAULT = int(Reason.INJECTED_FAULT)


class Injected:
    """A fault in force, with the flows that it has chosen and the packets that it has met."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.service = fault.service
        self.backends = frozenset(fault.backends)
        self.until = fault.until
        self.drops = fault.kind is FaultKind.DROP
        self.resets = fault.kind is FaultKind.RESET
        self.delay = fault.delay if fault.kind is FaultKind.DELAY else OVERTAKEN
        self.part = {FaultKind.DROP: fault.loss, FaultKind.REORDER: REORDERED}.get(fault.kind, 100)
        self.flows = 0
        self.packets = 0
        self._limit = int(fault.share / 100 * (1 << 64))
        self._hash = KeyedHash(fault.seed.to_bytes(8, "big"), b"fault")
        self._random = random.Random(fault.seed).random

    def concerns(self, member: PoolMember, now: float) -> bool:
        """Whether the fault is in force for flows to this member."""
        return (
            now < self.until
            and member.pool.service.name == self.service
            and (not self.backends or member.scheduled.endpoint in self.backends)
        )

    def chooses(self, flow: bytes) -> bool:
        """Whether the fault befalls the flow with these bytes."""
        return self._hash(flow) < self._limit

    def meets(self) -> bool:
        """Whether the fault befalls the next packet of its flows."""
        if self.part < 100 and self._random() * 100 >= self.part:
            return False
        self.packets += 1
        return True


class Faults:
    """The faults in force. If several could choose a flow, the first one does.

    `active` says whether there are any. With the verdict HOLD, the engine keeps the packet until
    `due` (seconds), and hands it in again while `releasing` is set; `held` counts those that it
    has.
    """

    def __init__(
        self,
        flows: FlowTable,
        members: Members,
        lifecycle: Lifecycle,
        counters: Counters,
        outbox: Outbox,
        tracker: Tracker,
        termination: Termination,
    ) -> None:
        self.active = False
        self.releasing = False
        self.due = 0.0
        self.held = 0
        self._injected: list[Injected] = []
        self._flows = flows
        self._members = members
        self._lifecycle = lifecycle
        self._counters = counters
        self._outbox = outbox
        self._tracker = tracker
        self._termination = termination

    def inject(self, faults: Sequence[Fault]) -> None:
        """Have these in force, and no others; those that were continue."""
        before = {one.fault: one for one in self._injected}
        self._injected = [before.get(fault) or Injected(fault) for fault in faults]
        self.active = bool(faults)

    def expire(self, now: float) -> None:
        """No longer be active if the time of all faults is over; their counts stay."""
        self.active = any(now < one.until for one in self._injected)

    def counts(self) -> dict[int, tuple[int, int]]:
        """By the number of each fault: the flows that it has chosen, and the packets that it has
        met."""
        return {one.fault.number: (one.flows, one.packets) for one in self._injected}

    # For the packet path

    def begin(self, ctx: Context) -> int:
        """Choose the flow that the packet in hand has opened, or don't; returns the verdict on the
        packet."""
        found = self.find(ctx)
        if found is None:
            return GO_ON
        found.flows += 1
        self._flows.at(ctx.flow).flags |= WATCHED
        return self.apply(ctx, found)

    def find(self, ctx: Context) -> Injected | None:
        """The fault of the packet's flow; None once it has ended."""
        if not self.active:
            return None
        record = self._flows.at(ctx.flow)
        if record.flags & OFFLOADED:
            return None
        member = self._members.by_id[record.member_id]
        for one in self._injected:
            if one.concerns(member, ctx.now) and one.chooses(bytes_of(self._flows, ctx.flow)):
                return one
        return None

    def apply(self, ctx: Context, found: Injected) -> int:
        """Have the fault befall the packet, or not."""
        if found.resets:
            return self.reset(ctx, found)
        if found.drops:
            if not found.meets():
                return GO_ON
            if not ctx.reply:  # it was on its way
                self._tracker.follow(ctx)
            return self._counters.drop(INJECTED_FAULT)
        if not ctx.reply or self.releasing or self.held >= MAX_HELD or not found.meets():
            return GO_ON
        self.due = ctx.now + found.delay
        return HOLD

    def reset(self, ctx: Context, found: Injected) -> int:
        """Reset a connection with its first data, and refuse a datagram."""
        packet = ctx.packet
        flow = ctx.flow
        if packet.protocol == TCP:
            if packet.payload == packet.end:
                return GO_ON
            key = self._flows.records.key(flow)
            self._termination.terminate(flow, key, True, ctx.now)
        else:
            if not ctx.reply:
                self._outbox.refuse(ctx.ticks)
            self._lifecycle.close(flow)
        found.packets += 1
        return self._counters.drop(INJECTED_FAULT)


def bytes_of(flows: FlowTable, flow: int) -> bytes:
    """What distinguishes a flow from others of its protocol, whatever its backend: a flow that is
    re-dispatched stays chosen."""
    record = flows.at(flow)
    client, vip = (record.client_high, record.client_low), (record.vip_high, record.vip_low)
    return FLOW.pack(*client, *vip, ports_of(direction_of(record, 0)))
