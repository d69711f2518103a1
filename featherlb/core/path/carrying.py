"""Which flows the program of the datapath ebpf carries, and since when.

A flow is opened by a packet from the queue, which the core translates as on the datapath nfqueue.
Then the program gets the flow, unless it is one of those that need every packet here. Packets that
the program leaves alone (a SYN, a refusal, one with IP options) come through the queue further on:
the flow is taken from the program while one of them is handled. Times are in ticks of 0.1 s.
"""

import cython

from featherlb.core.flows.carried import Carried
from featherlb.core.flows.counters import Counters
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import Members, PoolMember
from featherlb.core.flows.snat_ports import PortAllocator
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.core.path.context import Context
from featherlb.core.path.services import Services
from featherlb.core.pools.pool import Pool
from featherlb.model import Verdict
from featherlb.model.shard import Shard
from featherlb.net.protocols import TCP, UDP

if not cython.compiled:
    from featherlb.core.flows.entry import (
        IPV6_ENTRY,
        LIFT_SYN_ACK,
        STATE_MASK,
        Entry,
        swap16,
        swap64,
    )
    from featherlb.core.flows.record import (
        CARRIED,
        COUNTED,
        FULL,
        IPV6,
        LOCAL_BACKEND,
        LOCAL_CLIENT,
        OFFLOADED,
        REPLY_ONLY,
        UNSURE,
        WATCHED,
        WIRED,
    )

    NOT_CARRIED = (
        LOCAL_BACKEND
        | LOCAL_CLIENT
        | REPLY_ONLY
        | COUNTED
        | WIRED
        | OFFLOADED
        | UNSURE
        | WATCHED
        | CARRIED
    )
    """Flags of flows that the program can't have, or has."""

SWEPT = 4096 if cython.compiled else 256
"""Flow records per call of `sweep`, at most: a millisecond."""

STATES = len(State)
IS_CARRIABLE = memoryview(
    bytearray(
        state
        in (
            State.SYN_SENT,
            State.SYN_RETRIED,
            State.SYN_RECEIVED,
            State.ESTABLISHED,
            State.FIN_WAIT,
            State.CLOSE_WAIT,
            State.UDP_ONE_WAY,
            State.UDP_TWO_WAY,
        )
        for state in State
    )
)
"""The states in which the program gets a flow. It has it until the end, whatever its state."""
SYN_SENT = int(State.SYN_SENT)
SYN_RECEIVED = int(State.SYN_RECEIVED)
UDP_ONE_WAY = int(State.UDP_ONE_WAY)
UDP_TWO_WAY = int(State.UDP_TWO_WAY)
REWRITTEN = int(Verdict.REWRITTEN)


class Carrying:
    """Gives flows to the program and takes them back.

    `taken` is the flow whose packet is being handled, if the program carries it, else 0.
    """

    def __init__(
        self,
        flows: FlowTable,
        services: Services,
        members: Members,
        lifecycle: Lifecycle,
        counters: Counters,
        source_ports: PortAllocator,
        carried: Carried,
    ) -> None:
        self.carried = carried
        self.taken = 0
        self._next = 1
        self._flows = flows
        self._services = services
        self._members = members
        self._lifecycle = lifecycle
        self._counters = counters
        self._source_ports = source_ports

    # For the packet path

    def take(self, flow: int) -> None:
        """Take a flow from the program while a packet of it is handled."""
        self.taken = flow
        self.carried.take(flow)
        self._lifecycle.catch_up(flow)

    def settle(self, ctx: Context, verdict: int) -> None:
        """After a packet: let the program carry its flow, on or from now on."""
        flow = self.taken
        if flow:
            self.taken = 0
            if self._flows.at(flow).flags & CARRIED:  # it may have ended
                self.carried.resume(flow, ctx.ticks)
        elif ctx.flow and verdict == REWRITTEN and self.may_give(ctx.flow):
            self.give(ctx.flow, ctx.ticks)

    def may_give(self, flow: int) -> bool:
        """Whether the program can carry a flow that it has not."""
        record = self._flows.at(flow)
        if record.flags & NOT_CARRIED or not record.protocol or not IS_CARRIABLE[record.state]:
            return False
        carries: bool = self._members.by_id[record.member_id].pool.carries
        return carries

    def give(self, flow: int, ticks: int) -> None:
        """Have the program carry a flow. SYN-ACKs are clamped here."""
        member = self._members.by_id[self._flows.at(flow).member_id]
        options = 0 if member.pool.service.mss is None else LIFT_SYN_ACK
        self.carried.give(flow, options, ticks)

    # Flows that the program opens

    def backend_of(self, index: int, pool: Pool) -> PoolMember | None:
        """The backend of the flow that the program has opened with this entry, if it is one of the
        pool's."""
        entry = self.carried.entries.at(index)
        if entry.member >= len(self._members.by_id):
            return None
        member: PoolMember = self._members.by_id[entry.member]
        if (
            member.pool is not pool
            or self._members.retired[entry.member]
            or member.high != swap64(entry.backend[0])
            or member.low != swap64(entry.backend[1])
        ):
            return None
        return member

    def has(self, flow: int, index: int) -> bool:
        """Whether the program carries this flow with this entry."""
        return bool(self.carried.entry_of[flow] == index)

    def opened(self, flow: int, index: int) -> None:
        """Take over this flow, which the program has opened with this entry."""
        self.carried.bind_opened(flow, index)
        self._lifecycle.catch_up(flow)

    # For the engine

    def start(self, memory: memoryview, shard: Shard, ticks: int) -> tuple[int, int]:
        """Use the entries in this memory. Flows that the program carries already are adopted, if
        they fit the services; the others end. Returns how many."""
        carried = self.carried
        carried.attach(memory, shard.worker, shard.workers)
        adopted = ended = 0
        for index in range(1, carried.entries.count):
            entry = carried.entries.at(index)
            if not entry.live or not shard.has(
                swap64(entry.client[0]), swap64(entry.client[1]), swap16(entry.client_port)
            ):
                continue
            if self.adopt(index, ticks):
                adopted += 1
            else:
                entry.worker = carried.worker
                entry.live = 0
                ended += 1
        carried.release_rest()
        return adopted, ended

    def adopt(self, index: int, ticks: int) -> bool:
        """Have the flow that the program carries with this entry; False if there is no such flow in
        these services."""
        carried = self.carried
        flows = self._flows
        entry = carried.entries.at(index)
        forward = carried.find(entry, 0)
        if forward:
            flow = forward >> 1
            if forward & 1 or carried.find(entry, 1) != flow << 1 | 1:
                return False
            if flows.at(flow).flags & CARRIED or not self._carries(flow):
                return False
        else:
            flow = self.insert(entry, ticks)
            if not flow:
                return False
        record = flows.at(flow)
        record.flags &= ~UNSURE
        carried.bind(flow, index)
        self._lifecycle.catch_up(flow)
        return True

    def _carries(self, flow: int) -> bool:
        carries: bool = self._members.by_id[self._flows.at(flow).member_id].pool.carries
        return carries

    def insert(self, entry: "Entry", ticks: int) -> int:
        """A flow for an entry that has none; 0 if its VIP or its backend is no longer served."""
        flows = self._flows
        state = entry.state & STATE_MASK
        vip_port = swap16(entry.vip_port)
        vip_high, vip_low = swap64(entry.vip[0]), swap64(entry.vip[1])
        client_high, client_low = swap64(entry.client[0]), swap64(entry.client[1])
        source_high, source_low = swap64(entry.source[0]), swap64(entry.source[1])
        backend_high, backend_low = swap64(entry.backend[0]), swap64(entry.backend[1])
        pool = self._services.find(vip_high, vip_low, entry.protocol, vip_port, False)
        if pool is None or not pool.carries or state >= STATES or flows.count == flows.capacity:
            return 0
        backend_port = swap16(entry.backend_port)
        member = self._members.find(pool, backend_high, backend_low, backend_port, vip_port)
        if member is None or self.carried.find(entry, 1):
            return 0
        source_port = swap16(entry.source_port)
        flags = member.flags
        if entry.options & IPV6_ENTRY:
            flags |= IPV6
        source = (source_high, source_low)
        if pool.full:
            if source not in member.sources:
                return 0
            if not self._source_ports.claim(member.target, source, source_port):
                return 0
            flags |= FULL
        elif source != (client_high, client_low):
            return 0
        seen = min(entry.seen, ticks)
        flow = flows.insert(
            entry.protocol,
            client_high,
            client_low,
            vip_high,
            vip_low,
            swap16(entry.client_port) << 16 | vip_port,
            backend_high,
            backend_low,
            source_high,
            source_low,
            backend_port << 16 | source_port,
            self._lifecycle.closed_queue,
            seen,
        )
        record = flows.at(flow)
        record.flags = flags
        record.state = state
        record.member_id = member.id
        # What was carried before is not counted again for the backend, but is of the flow.
        record.forward_bytes = entry.bytes[0]
        record.reply_bytes = entry.bytes[1]
        if entry.protocol == TCP:
            record.client_expects = entry.expected[0]
            record.backend_expects = entry.expected[1]
            record.ends[0] = entry.ends[0]
            record.ends[1] = entry.ends[1]
            record.scales = entry.scales
        self._lifecycle.restore(flow, member, seen)
        return flow

    def catch_up_range(self, first: int, count: int) -> None:
        """Update the carried flows among `count` records, from number `first` on."""
        flows = self._flows
        for flow in range(first, min(first + count, flows.last_record() + 1)):
            if flows.at(flow).flags & CARRIED and flows.at(flow).protocol:
                self._lifecycle.catch_up(flow)

    def catch_up_all(self) -> None:
        """Update all carried flows."""
        if self.carried.carried:
            self.catch_up_range(1, self._flows.last_record())

    def noticed(self, index: int, before: int, after: int, now: float) -> None:
        """At this time, the program has changed the state of the flow with this entry."""
        flow = self.carried.flow_of[index] if 0 < index < self.carried.entries.count else 0
        if not flow:
            return
        answered = before == SYN_SENT and after == SYN_RECEIVED
        if answered or (before == UDP_ONE_WAY and after == UDP_TWO_WAY):
            latencies = self._counters.latencies
            latencies.answered(flow, self._flows.at(flow).member_id, now)
        self._lifecycle.catch_up(flow)

    def sweep(self) -> None:
        """Update the next `SWEPT` flows, and count the last packets of those that have ended."""
        last = self._flows.last_record()
        if self._next > last:
            self._next = 1
        if self.carried.carried:
            self.catch_up_range(self._next, SWEPT)
        self._next += SWEPT
        self.carried.reclaim()

    def recall(self) -> None:
        """Take back what the program must not carry any longer: flows of services with another
        datapath, and flows of datagrams whose backend has left, as the next one goes elsewhere."""
        flows = self._flows
        if not self.carried.carried:
            return
        for flow in range(1, flows.last_record() + 1):
            record = flows.at(flow)
            if not record.protocol or not record.flags & CARRIED:
                continue
            retired = record.protocol == UDP and self._members.retired[record.member_id]
            if retired or not self._carries(flow):
                self.release(flow)

    def release(self, flow: int) -> None:
        """Take a flow from the program for good; it goes on through the queue."""
        self.carried.take(flow)
        self._lifecycle.catch_up(flow)
        self.carried.end(flow)
