"""The core's side of flows that the kernel forwards.

The packet path comes here with the packet that opens a flow, and with out-of-state packets, which
the kernel does not assign to a flow. The core queues `commands`; an engine executes them and
reports the events below (`core/flows/kernel.py`). All policy is here: when to look up flows, how to
resolve a clash, which flows to adopt at the start. Times are in ticks of 0.1 s.
"""

from collections.abc import Set

import cython

from featherlb.core.flows.counters import Counters
from featherlb.core.flows.kernel import Commands, KernelFlow
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import Members
from featherlb.core.flows.snat_ports import PortAllocator
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.core.path.context import Context
from featherlb.core.path.outbox import Outbox
from featherlb.core.path.redispatch import Redispatch
from featherlb.core.path.services import Services
from featherlb.model import FIRST_UNPRIVILEGED_PORT, Hook, PacketInfo, Verdict
from featherlb.model.reason import Reason
from featherlb.model.shard import Shard
from featherlb.model.ticks import TICKS_PER_SECOND
from featherlb.net.build import tcp_reset
from featherlb.net.packet import Packet
from featherlb.net.protocols import ACK, RST, SYN, TCP, UDP

if not cython.compiled:
    from featherlb.core.flows.counters import COUNTERS, REFUSED, SYN_RETRIES, SYN_TIMEOUTS
    from featherlb.core.flows.kernel import UNKNOWN, UNKNOWN_SCALE
    from featherlb.core.flows.lifecycle import IS_REUSABLE
    from featherlb.core.flows.record import (
        ABANDONED,
        ANSWERED,
        FULL,
        IPV6,
        LOCAL_BACKEND,
        OFFLOADED,
        SPLICED,
        direction_of,
    )
    from featherlb.core.path.context import GO_ON
    from featherlb.net.packet import MASK32

YOUNG = 20
"""Age in ticks up to which a destroy event may be about the previous entry with the same tuple."""

MAX_ATTEMPTS = 9
"""Attempts to insert a flow, each after the second with another source port. If others hold half of
the ports, one flow in 250 finds none."""
SWEPT = 512
"""Flow records per call of `sweep`, at most: one or two milliseconds."""

SYN_SENT = int(State.SYN_SENT)
SYN_RECEIVED = int(State.SYN_RECEIVED)
SYN_RETRIED = int(State.SYN_RETRIED)
CLOSED = int(State.CLOSED)
REPLACED = int(State.REPLACED)
UDP_ONE_WAY = int(State.UDP_ONE_WAY)
UDP_TWO_WAY = int(State.UDP_TWO_WAY)
OUTPUT = int(Hook.OUTPUT)
NOT_READY = int(PacketInfo.CHECKSUM_NOT_READY)
GSO = int(PacketInfo.GSO)
CUT = int(PacketInfo.TRUNCATED)
FORWARD = int(Reason.FORWARD)
REPLY = int(Reason.REPLY)
INVALID = int(Reason.INVALID)
NO_ENTRY = int(Reason.NO_ENTRY)
NO_FLOW = int(Reason.NO_FLOW)
TRUNCATED = int(Reason.TRUNCATED)
TTL_EXCEEDED = int(Reason.TTL_EXCEEDED)
DROP = int(Verdict.DROP)
OFFLOAD = int(Verdict.OFFLOAD)
LOOK_UP = int(Verdict.LOOK_UP)


class OffloadedFlows:
    """The flows that the kernel forwards, between the packet path and an engine.

    With the verdict LOOK_UP, `looked_up` is the flow whose look-up is queued: the engine executes
    the commands, then has the packet handled again. `opened` is the flow that the last packet
    opened, or 0.
    """

    def __init__(
        self,
        flows: FlowTable,
        services: Services,
        members: Members,
        lifecycle: Lifecycle,
        counters: Counters,
        outbox: Outbox,
        source_ports: PortAllocator,
        redispatch: Redispatch,
        commands: Commands,
    ) -> None:
        self.commands = commands
        self.looked_up = 0
        self.opened = 0
        self._next = 1
        self._refused: list[int] = []
        self._reinjected: list[tuple[int, bytes]] = []
        self._untracked: list[bytes] = []
        self._completed: dict[int, tuple[bytes, bytes]] = {}
        self._destroyed: dict[int, KernelFlow] = {}
        self._flows = flows
        self._services = services
        self._members = members
        self._lifecycle = lifecycle
        self._counters = counters
        self._outbox = outbox
        self._source_ports = source_ports
        self._redispatch = redispatch

    # For the packet path

    def handle(self, ctx: Context) -> int:
        """Decide on a packet of a flow that the kernel forwards; GO_ON if it opens a new flow.

        It got here because it may reopen the connection, or is out of state for the kernel, or
        because the backend refuses the connection with it.
        """
        packet = ctx.packet
        flows = self._flows
        flow = ctx.flow
        record = flows.at(flow)
        alive = flows.is_offloaded(flow)
        if ctx.reply and record.state in (SYN_SENT, SYN_RETRIED, REPLACED):
            verdict = self._redispatch.decide(ctx)
            if verdict:
                return verdict
            if packet.flags == RST | ACK:
                return self.pass_refusal(ctx, alive)
        if ctx.reply or packet.flags > SYN:
            if alive:
                return self._counters.drop(INVALID)
            self._outbox.refuse(ctx.ticks)
            return self._counters.drop(NO_FLOW)
        if self._members.by_id[record.member_id].pool.awaiting_rules:
            return self._counters.drop(INVALID)
        if self.looked_up != flow and self.is_open(flow):
            self.looked_up = flow
            self.look_up(flow)
            return LOOK_UP
        self.looked_up = 0
        if not alive or self._lifecycle.reopens(flow, ctx.ticks):
            self._lifecycle.close(flow)
            ctx.flow = 0
            return GO_ON
        if self.is_last_hop(ctx, record.flags):
            self._outbox.report_ttl_exceeded(record.vip_high, record.vip_low, ctx.ticks)
            return self._counters.drop(TTL_EXCEEDED)
        if record.state in (SYN_SENT, SYN_RETRIED):
            self._redispatch.decide(ctx)
            if not ctx.flow:  # another backend gets it
                return GO_ON
        if record.state == SYN_SENT and self._lifecycle.is_retransmission(flow, ctx.ticks):
            self.enter(flow, SYN_RETRIED, ctx.ticks)
            self._counters.fail(record, SYN_RETRIES)
        return self.forward(ctx)

    def pass_refusal(self, ctx: Context, alive: bool) -> int:
        """Leave a backend's RST, with which conntrack has ended the connection that was opening, to
        the kernel, which translates it."""
        if not alive:  # it was waited for (`finish`)
            self._counters.fail(self._flows.at(ctx.flow), REFUSED)
            self.disown(ctx.flow)
        self._counters.reasons[REPLY] += 1
        return OFFLOAD

    def is_open(self, flow: int) -> bool:
        """Whether the kernel forwards the flow, which was not closing at the last look-up. A
        closing flow needs none: only a packet that reopens it could change that, and it comes
        here."""
        flows = self._flows
        return flows.is_offloaded(flow) and flows.at(flow).queue != self._lifecycle.closed_queue

    def takes_hop(self, ctx: Context, flags: int) -> bool:
        """Whether a packet that this host forwards is sent as a copy, whose TTL the kernel does not
        decrement; `flags` are the flow's or the member's."""
        packet = ctx.packet
        return not (
            (packet.protocol == TCP and packet.flags == SYN)  # accepted, not copied
            or ctx.hook == OUTPUT
            or flags & LOCAL_BACKEND
        )

    def is_last_hop(self, ctx: Context, flags: int) -> bool:
        """Whether the packet must end here because its TTL has run out; `flags` as above."""
        return ctx.packet.ttl() <= 1 and self.takes_hop(ctx, flags)

    def hand_over(self, ctx: Context) -> int:
        """Have the kernel forward a new flow; returns the verdict on the packet that opens it."""
        self.commands.insert(self._flows, ctx.flow)
        self.opened = ctx.flow
        return self.forward(ctx)

    def forward(self, ctx: Context) -> int:
        """Leave the packet to the kernel. A SYN has not passed conntrack yet and is accepted; other
        packets have, without the flow's entry, so a copy is sent instead. A truncated packet can't
        be copied, but the kernel knows the flow and forwards the next packet."""
        packet = ctx.packet
        if ctx.info & CUT:
            return self._counters.drop(TRUNCATED)
        self._counters.reasons[FORWARD] += 1
        if packet.protocol == TCP and packet.flags == SYN:
            return OFFLOAD
        if ctx.info & GSO:
            return DROP  # its segment size is not known; TCP retransmits
        if self.takes_hop(ctx, self._flows.at(ctx.flow).flags):
            packet.decrement_ttl()
        if ctx.info & NOT_READY:
            packet.complete_checksum()
        self._reinjected.append((ctx.flow, packet.quote(packet.end - packet.ip)))
        return DROP

    # For connections that open with a cookie (`splice.py`)

    def is_splicing(self, flow: int) -> bool:
        """Whether the kernel doesn't know this flow yet, as it opens with a cookie, or will never
        know it, as another backend has replaced its own: its packets are translated here."""
        record = self._flows.at(flow)
        return bool(
            record.protocol == TCP
            and record.flags & SPLICED
            and record.flags & ABANDONED
            and record.state in (SYN_SENT, SYN_RETRIED, REPLACED)
        )

    def open_untracked(self, flow: int, ticks: int) -> None:
        """Keep a flow that has just been opened from the kernel until its backend has answered: it
        would send the SYN-ACK to the client."""
        record = self._flows.at(flow)
        if record.flags & OFFLOADED:
            record.flags |= ABANDONED
            self._lifecycle.enter(flow, record.state, ticks)

    def send_untracked(self, packet: bytes) -> None:
        """Send a translated SYN past connection tracking."""
        self._untracked.append(packet)

    def hand_over_spliced(
        self, flow: int, acknowledgement: bytes, window: bytes, ticks: int
    ) -> None:
        """Have the kernel forward a flow whose backend has answered. Then the segments that
        complete its handshake are sent, which the kernel translates: to the VIP in the client's
        name, and from the backend. They are the first that it sees, and it learns windows by them.
        """
        record = self._flows.at(flow)
        record.flags &= ~ABANDONED
        for reply in (0, 1):
            direction_of(record, reply).kernel_packets = 0
        record.forward_bytes = record.reply_bytes = 0
        self._lifecycle.enter(flow, record.state, ticks)
        self.commands.insert(self._flows, flow)
        self._completed[flow] = acknowledgement, window

    # For the engine

    def take_untracked(self) -> list[bytes]:
        """Translated packets to send past connection tracking, since the last call."""
        untracked = self._untracked
        if untracked:
            self._untracked = []
        return untracked

    def take_completed(self) -> list[tuple[bytes, bytes]]:
        """Pairs of segments since the last call: one to send to a VIP through conntrack, and then
        one to send from a backend through conntrack."""
        completed = self._completed
        if not completed:
            return []
        self._completed = {}
        return list(completed.values())

    def take_reinjected(self) -> list[bytes]:
        """Copies of packets to send through conntrack, since the last call."""
        reinjected = self._reinjected
        if reinjected:
            self._reinjected = []
        return [packet for _, packet in reinjected]

    def take_refused(self) -> list[int]:
        """Flows that the kernel has refused since the last call. They are removed, and the packets
        that opened them are to be dropped."""
        refused = self._refused
        if refused:
            self._refused = []
        return refused

    # Commands

    def look_up(self, flow: int) -> None:
        """Queue a look-up of a flow."""
        self.commands.look_up(self._flows, flow)

    def look_up_range(self, first: int, count: int) -> None:
        """Queue look-ups of the offloaded flows among `count` records, from number `first` on."""
        flows = self._flows
        for flow in range(first, min(first + count, flows.last_record() + 1)):
            if flows.is_offloaded(flow):
                self.commands.look_up(flows, flow)

    def look_up_all(self) -> None:
        """Queue look-ups of all offloaded flows."""
        self.look_up_range(1, self._flows.last_record())

    def sweep(self) -> None:
        """Queue look-ups of the next tenth of all flows, `SWEPT` at most: for counters, and for
        lost events."""
        last = self._flows.last_record()
        if self._next > last:
            self._next = 1
        count = min(SWEPT, last // 10 + 1)
        self.look_up_range(self._next, count)
        self._next += count

    # Events

    def refused(self, flow: int) -> None:
        """The kernel refused to insert this flow: the packet that opened it is dropped. The ends of
        a spliced one have a connection: both are reset."""
        completed = self._completed.pop(flow, None)
        if completed is not None:
            for segment in completed:
                self._outbox.add(reset_of(segment))
            self._counters.reasons[REPLY] -= 1
            self._counters.reasons[NO_ENTRY] += 1
            self._refused.append(flow)
            self.disown(flow)
            return
        reinjected = [(other, packet) for other, packet in self._reinjected if other != flow]
        # A datagram without a copy was truncated, and is already counted as dropped.
        if self._flows.at(flow).protocol != UDP or len(reinjected) < len(self._reinjected):
            self._counters.reasons[FORWARD] -= 1
            self._counters.reasons[NO_ENTRY] += 1
        self._reinjected = reinjected
        self._refused.append(flow)
        self.disown(flow)

    def exists(self, flow: int, attempts: int, other: KernelFlow | None) -> None:
        """The kernel could not insert the flow because an entry with one of its tuples exists:
        `other` has its forward tuple; None means that its reply tuple is in use. `attempts` inserts
        had failed before.

        If `other` is the flow itself, it stays. If it is an open connection that another process
        created, that one continues and the flow is removed. Otherwise the entry is deleted and the
        flow inserted again, from another source port if necessary and possible.
        """
        if not self._flows.is_offloaded(flow):
            return
        if attempts:
            if attempts >= MAX_ATTEMPTS - 1 or not self.change_port(flow):
                self.refused(flow)
                return
        elif other is not None:
            if self.is_same(flow, other):
                return
            connection = other.protocol == TCP and other.translated and other.state != UNKNOWN
            # The client of a spliced one has just proved that it has no other.
            ours = flow in self._completed
            if connection and not IS_REUSABLE[other.state] and not ours:
                self.disown(flow)
                return
        if not attempts:
            self.commands.delete(self._flows, flow)
        self.commands.insert(self._flows, flow, attempts + 1)

    def counters(self, flow: int, found: KernelFlow, ticks: int) -> None:
        """A look-up has found the flow."""
        self._destroyed.pop(flow, None)
        if self._flows.is_offloaded(flow):
            self.observe(flow, found, ticks)
            if self._flows.at(flow).protocol == TCP:
                self._lifecycle.judge(flow, ticks)

    def gone(self, flow: int, ticks: int) -> None:
        """A look-up has not found the flow: the kernel has removed it."""
        last = self._destroyed.pop(flow, None)
        if not self._flows.is_offloaded(flow):
            return
        if last is not None:
            self.finish(flow, last, ticks)
        elif self.is_opening(flow) and self._redispatch.may_leave(flow):
            self.await_refusal(flow, ticks)  # the event may be on its way
        else:
            self.disown(flow)

    def changed(self, found: KernelFlow, now: float) -> None:
        """The kernel reports a new state of a flow, without counters, at this time (seconds)."""
        flow = self.flow_of(found)
        if not flow:
            return
        record = self._flows.at(flow)
        answers = SYN_RECEIVED if record.state == SYN_SENT else UDP_TWO_WAY
        if found.state == answers and record.state in (SYN_SENT, UDP_ONE_WAY):
            self._counters.latencies.answered(flow, record.member_id, now)
        self.observe_state(flow, found, int(now * TICKS_PER_SECOND))

    def ended(self, last: KernelFlow, ticks: int) -> None:
        """The kernel has removed an entry with these final counters. If the flow is young, it may
        have been the previous entry with the same tuple: the flow is looked up."""
        flow = self.flow_of(last)
        if not flow:
            return
        if (ticks - self._flows.created[flow]) & MASK32 < YOUNG:
            self._destroyed[flow] = last.copy()
            self.look_up(flow)
        else:
            self.finish(flow, last, ticks)

    def found(self, entry: KernelFlow, services: Set[str], shard: Shard, ticks: int) -> bool:
        """The kernel already forwards this flow: adopt it if it is from a VIP of these services to
        one of its backends and in this worker's shard; returns whether it was adopted."""
        if entry.protocol not in (TCP, UDP) or not entry.translated:
            return False
        if not shard.has(entry.src_high, entry.src_low, entry.ports >> 16):
            return False
        pool = self._services.find(
            entry.dst_high, entry.dst_low, entry.protocol, entry.ports & 0xFFFF, False
        )
        if pool is None or not pool.offloaded or pool.service.name not in services:
            return False
        member = self._members.find(
            pool,
            entry.reply_src_high,
            entry.reply_src_low,
            entry.reply_ports >> 16,
            entry.ports & 0xFFFF,
        )
        flows = self._flows
        if member is None or flows.count == flows.capacity:
            return False
        if self.find(entry) or flows.find(
            entry.reply_src_high,
            entry.reply_src_low,
            entry.reply_dst_high,
            entry.reply_dst_low,
            entry.reply_ports,
            entry.protocol,
        ):
            return False
        flags = member.flags | OFFLOADED
        if entry.version == 6:
            flags |= IPV6
        if entry.protocol == TCP and entry.offset:
            flags |= SPLICED
        # Another allocator may have assigned its port.
        source = (entry.reply_dst_high, entry.reply_dst_low)
        port = entry.reply_ports & 0xFFFF
        if pool.full and self._source_ports.claim(member.target, source, port):
            flags |= FULL
        flow = flows.insert(
            entry.protocol,
            entry.src_high,
            entry.src_low,
            entry.dst_high,
            entry.dst_low,
            entry.ports,
            entry.reply_src_high,
            entry.reply_src_low,
            entry.reply_dst_high,
            entry.reply_dst_low,
            entry.reply_ports,
            self._lifecycle.offload_queue,
            ticks,
        )
        self._counters.latencies.forget(flow)
        flows.splices[flow] = entry.offset
        record = flows.at(flow)
        record.flags = flags
        record.state = SYN_SENT if entry.protocol == TCP else UDP_ONE_WAY
        record.member_id = member.id
        # Packets and bytes from before the adoption are not counted.
        direction_of(record, 0).kernel_packets = entry.packets & MASK32
        direction_of(record, 1).kernel_packets = entry.reply_packets & MASK32
        record.forward_bytes = entry.bytes
        record.reply_bytes = entry.reply_bytes
        self._lifecycle.count_active(member, record, 1)
        member.flows += 1
        if flags & FULL:
            self._lifecycle.rank(flow)
        self.observe(flow, entry, ticks)
        return True

    # Helpers

    def disown(self, flow: int) -> None:
        """Remove a flow that the kernel does not have, or whose entry is not ours."""
        if self.looked_up == flow:
            self.looked_up = 0
        self._flows.at(flow).flags |= ABANDONED
        self._lifecycle.close(flow)

    def is_opening(self, flow: int) -> bool:
        """Whether it is a connection that its backend has not answered."""
        return self._flows.at(flow).state in (SYN_SENT, SYN_RETRIED)

    def await_refusal(self, flow: int, ticks: int) -> None:
        """Keep an opening flow that the kernel no longer has: it has met the backend's RST, which
        rules queue for a worker to move the flow."""
        record = self._flows.at(flow)
        record.flags |= ABANDONED
        self._lifecycle.enter(flow, record.state, ticks)

    def abandon(self, flow: int, ticks: int) -> None:
        """Delete a connection from the kernel: it is closed here, and its packets are refused."""
        self.commands.delete(self._flows, flow)
        self.enter(flow, CLOSED, ticks)
        self._flows.at(flow).flags |= ABANDONED

    def is_same(self, flow: int, other: KernelFlow) -> bool:
        """Whether the entry is this flow with the same translation."""
        record = self._flows.at(flow)
        spliced = record.protocol == TCP and record.flags & SPLICED
        same: bool = (
            other.offset == (self._flows.splices[flow] & MASK32 if spliced else 0)
            and other.reply_src_low == record.backend_low
            and other.reply_src_high == record.backend_high
            and other.reply_dst_low == record.source_low
            and other.reply_dst_high == record.source_high
            and other.reply_ports >> 16 == record.backend_port
            and other.reply_ports & 0xFFFF == record.source_port
        )
        return same

    def change_port(self, flow: int) -> bool:
        """Give a new flow another SNAT port; False if it is established, not in `full` mode, or no
        port is free."""
        flows = self._flows
        record = flows.at(flow)
        if not record.flags & FULL:
            return False
        if record.state not in (SYN_SENT, UDP_ONE_WAY):
            return False
        target = self._members.by_id[record.member_id].target
        source = (record.source_high, record.source_low)
        before = record.source_port
        privileged = before < FIRST_UNPRIVILEGED_PORT
        found = self._source_ports.allocate(target, [source], privileged)
        if found is None:
            return False
        after = found[1]
        if not flows.set_source_port(flow, after):
            self._source_ports.release(target, source, after)
            return False
        self._source_ports.release(target, source, before)
        self._lifecycle.compute_deltas(flow)
        return True

    def observe(self, flow: int, entry: KernelFlow, ticks: int) -> None:
        """Apply an entry to its flow: counters, port, state."""
        self.count(flow, entry, ticks)
        self.observe_port(flow, entry)
        self.observe_state(flow, entry, ticks)
        if entry.scale != UNKNOWN_SCALE:
            self._members.by_id[self._flows.at(flow).member_id].scale = entry.scale

    def count(self, flow: int, entry: KernelFlow, ticks: int) -> None:
        """Count the packets and bytes that are new."""
        record = self._flows.at(flow)
        forward = direction_of(record, 0)
        reply = direction_of(record, 1)
        counters = self._counters
        at = record.member_id * COUNTERS
        packets = (entry.packets - forward.kernel_packets) & MASK32
        reply_packets = (entry.reply_packets - reply.kernel_packets) & MASK32
        if packets or reply_packets:
            counters.members[at] += packets
            counters.members[at + 1] += entry.bytes - forward.bytes
            counters.members[at + 2] += reply_packets
            counters.members[at + 3] += entry.reply_bytes - reply.bytes
            forward.kernel_packets = entry.packets & MASK32
            forward.bytes = entry.bytes
            reply.kernel_packets = entry.reply_packets & MASK32
            reply.bytes = entry.reply_bytes
            record.seen = ticks

    def observe_port(self, flow: int, entry: KernelFlow) -> None:
        """Where a client's own port is in use towards the backend, the kernel picks another one:
        replies come to that port."""
        record = self._flows.at(flow)
        port = entry.reply_ports & 0xFFFF
        if (
            port != record.source_port
            and entry.reply_ports >> 16 == record.backend_port
            and entry.reply_src_low == record.backend_low
            and entry.reply_dst_low == record.source_low
            and not record.flags & FULL
        ):
            self._flows.set_source_port(flow, port)

    def observe_state(self, flow: int, entry: KernelFlow, ticks: int) -> None:
        """Enter the state that the kernel reports, if it reports one."""
        if entry.answered:  # such as by a challenge ACK, which leaves the state as it is
            self._flows.at(flow).flags |= ANSWERED
        if entry.state != UNKNOWN:
            self.enter(flow, entry.state, ticks)

    def enter(self, flow: int, state: int, ticks: int) -> None:
        """Change the flow's state, if it is a new one."""
        before = self._flows.at(flow).state
        # The kernel has no separate state for a retransmitted SYN.
        if state != before and not (state == SYN_SENT and before == SYN_RETRIED):
            self._lifecycle.enter(flow, state, ticks)

    def finish(self, flow: int, last: KernelFlow, ticks: int) -> None:
        """A flow has ended with this final entry: count its outcome and remove it."""
        record = self._flows.at(flow)
        # A RST as the first reply: conntrack removes the entry at once, without setting
        # IPS_SEEN_REPLY (nf_conntrack_proto_tcp.c: nf_conntrack_tcp_packet).
        refused = self.is_opening(flow) and not last.answered and last.reply_packets > 0
        if refused and self._redispatch.may_leave(flow):
            self.count(flow, last, ticks)
            self.await_refusal(flow, ticks)
            return
        self.observe(flow, last, ticks)
        if refused:
            self._counters.fail(record, REFUSED)
        elif record.state in (SYN_SENT, SYN_RETRIED):
            self._counters.add(record.member_id, SYN_TIMEOUTS)
        self.disown(flow)

    def find(self, entry: KernelFlow) -> int:
        """The reference of the entry's forward tuple (`FlowTable.find`)."""
        return self._flows.find(
            entry.src_high,
            entry.src_low,
            entry.dst_high,
            entry.dst_low,
            entry.ports,
            entry.protocol,
        )

    def flow_of(self, entry: KernelFlow) -> int:
        """The offloaded flow of this entry, 0 if there is none."""
        flows = self._flows
        ref = self.find(entry)
        flow = ref >> 1
        if not ref or ref & 1 or not flows.is_offloaded(flow):
            return 0
        record = flows.at(flow)
        if (
            entry.reply_src_low != record.backend_low
            or entry.reply_ports >> 16 != record.backend_port
        ):
            return 0
        # The port that the kernel picked for a client may not be known yet (`observe_port`).
        if record.flags & FULL and entry.reply_ports & 0xFFFF != record.source_port:
            return 0
        return flow


def reset_of(segment: bytes) -> bytes:
    """The RST that answers this segment, which has an IP header."""
    packet = Packet()
    packet.attach(bytearray(segment))
    packet.parse(0, len(segment))
    return tcp_reset(packet)
