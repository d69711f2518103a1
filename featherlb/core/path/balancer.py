"""The packet path. Sans-IO: packets come in as bytes in a buffer, verdicts go out.

Reads no clock, opens no socket, writes no log. It has five entry points: `handle_packet`,
`handle_timer`, `apply` and `update` (the services) and `set_topology` (where frames go); its parts
have more. `handle_packet` is a list of stages, which follow in the same order; docs/packet-path.md
explains them. Not thread-safe: a worker makes one call at a time.
"""

from array import array
from collections.abc import Collection, Sequence

import cython

from featherlb.core.flows.announcer import Announcer
from featherlb.core.flows.carried import Carried
from featherlb.core.flows.counters import Counters
from featherlb.core.flows.flight_recorder import FlightRecorder
from featherlb.core.flows.kernel import Commands
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import MAX_MEMBERS, Members, PoolMember
from featherlb.core.flows.memory import FlowMemory
from featherlb.core.flows.next_hops import NextHops
from featherlb.core.flows.port_holders import PortHolders
from featherlb.core.flows.snat_ports import PortAllocator
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.core.flows.tombstones import Tombstones
from featherlb.core.path.adopt import Adoption
from featherlb.core.path.budget import DatagramBudget
from featherlb.core.path.carrying import Carrying
from featherlb.core.path.claims import Claims
from featherlb.core.path.context import Context
from featherlb.core.path.cookies import Cookies
from featherlb.core.path.export import Views
from featherlb.core.path.faults import Faults
from featherlb.core.path.fragments import Fragments
from featherlb.core.path.icmp import IcmpHandler
from featherlb.core.path.liveness import Liveness
from featherlb.core.path.migrate import Migration
from featherlb.core.path.offloaded import OffloadedFlows
from featherlb.core.path.openings import Openings
from featherlb.core.path.outbox import Outbox
from featherlb.core.path.own_addresses import OwnAddresses
from featherlb.core.path.recording import Recording
from featherlb.core.path.redispatch import Attempt, Redispatch
from featherlb.core.path.replicas import Replicas
from featherlb.core.path.restore import Restoration
from featherlb.core.path.services import Services
from featherlb.core.path.splice import Splices
from featherlb.core.path.terminate import Termination
from featherlb.core.path.tracking import Tracker
from featherlb.core.pools.keys import KeyedFlow
from featherlb.core.pools.schedulers import NewFlow
from featherlb.model import (
    PRIVILEGED_SOURCE_PORTS,
    SOURCE_PORTS,
    Hook,
    PacketInfo,
    Protocol,
    Service,
    Timeouts,
    Topology,
    Verdict,
)
from featherlb.model.reason import Reason
from featherlb.model.shard import WHOLE, Shard
from featherlb.net.packet import Packet
from featherlb.net.protocols import ACK, SYN, TCP, UDP

if not cython.compiled:
    from featherlb.core.flows.counters import COUNTERS
    from featherlb.core.flows.next_hops import LINK_MASK, LINK_SHIFT
    from featherlb.core.flows.record import CARRIED, SPLICED, WATCHED, direction_of
    from featherlb.core.path.claims import FIND_OWNER, PENDING
    from featherlb.core.path.context import FIRST_FRAGMENT, GO_ON, ICMP_MESSAGE, LATER_FRAGMENT
    from featherlb.core.path.hooks import (
        DROP,
        PASS,
        REWRITE,
        VERIFY,
        for_flow,
        for_new,
        is_after_routing,
    )
    from featherlb.core.path.icmp import is_icmp
    from featherlb.core.path.nat import rewrite, rewrite_addresses
    from featherlb.net.packet import FRAGMENT, OK, UNSUPPORTED
    from featherlb.net.tcp_options import lower

MAX_EXPECTED = 64
"""Packets that one call of `expect_packets` may announce."""

LONG_HEADER = 0x80
"""In the first byte of a QUIC packet, while the connection opens (RFC 9000 section 17.2)."""

NEW = int(State.NEW)
SYN_SENT = int(State.SYN_SENT)
SYN_RETRIED = int(State.SYN_RETRIED)
ESTABLISHED = int(State.ESTABLISHED)
REPLACED = int(State.REPLACED)
REPLICA = int(State.REPLICA)
UDP_ONE_WAY = int(State.UDP_ONE_WAY)
PREROUTING = int(Hook.PREROUTING)
OUTPUT = int(Hook.OUTPUT)
WIRE = int(Hook.WIRE)
NOT_READY = int(PacketInfo.CHECKSUM_NOT_READY)
TRUNCATED = int(PacketInfo.TRUNCATED)
TRUNCATED_REASON = int(Reason.TRUNCATED)
COPY = int(Reason.COPY)
MALFORMED = int(Reason.MALFORMED)
BAD_CHECKSUM = int(Reason.BAD_CHECKSUM)
INVALID = int(Reason.INVALID)
MARTIAN = int(Reason.MARTIAN)
TTL_EXCEEDED = int(Reason.TTL_EXCEEDED)
TOO_BIG = int(Reason.TOO_BIG)
NO_NEXT_HOP = int(Reason.NO_NEXT_HOP)
NO_BACKEND = int(Reason.NO_BACKEND)
NO_FLOW = int(Reason.NO_FLOW)
POOL_FULL = int(Reason.POOL_FULL)
TUPLE_IN_USE = int(Reason.TUPLE_IN_USE)
NOT_ALLOWED = int(Reason.NOT_ALLOWED)
UDP_FLOOD = int(Reason.UDP_FLOOD)
REWRITTEN = int(Verdict.REWRITTEN)


class Balancer:
    """Decides what happens to each packet.

    Its parts have entry points of their own: `outbox` has packets to send, `offload` is for the
    engine of offloaded flows, `carrying` for that of carried ones, `claims` for engines that look
    up who has a tuple, `views` shows flows and counts, `recording` records packets, `termination`
    ends flows for an operator, `restoration` restores those of a predecessor, `redispatch` has
    clients' packets to send to a VIP a second time, `faults` injects faults, `cookies` hears
    whether the kernel answers SYNs, `announcer` has what other nodes are to know of flows, and
    `replicas` takes what they announce.
    """

    def __init__(
        self,
        *,
        memory: FlowMemory,
        secret: bytes,
        hash_key: bytes,
        cookie_key: bytes,
        timeouts: Timeouts,
        source_ports: range = SOURCE_PORTS,
        privileged_ports: range = PRIVILEGED_SOURCE_PORTS,
        shard: Shard = WHOLE,
        adopt_until: float = 0.0,
        recorder: FlightRecorder | None = None,
    ) -> None:
        """`memory`, all zeros, limits the flows. `secret` is the process's randomness (16 bytes or
        more); `hash_key` keys placement and must be the same where nodes are to agree.
        `cookie_key` (16 bytes) keys SYN cookies, and is the same for all workers.
        `source_ports` are for `full` NAT, `privileged_ports` for its clients with such a port, and
        `shard` has the replies of all others.
        Until `adopt_until` on the clock of `handle_packet`, connections from before the start are
        also adopted by their replies. `recorder` notes decisions."""
        flows = self.flows = FlowTable(memory, secret)
        packet = self.packet = Packet()
        next_hops = self.next_hops = NextHops(memory, MAX_MEMBERS)
        counters = self.counters = Counters()
        recorder = self.recorder = recorder or FlightRecorder()
        outbox = self.outbox = Outbox(packet)
        seed = int.from_bytes(secret, "big")
        ports = PortAllocator(seed, source_ports, privileged_ports)
        port_holders = PortHolders(flows.capacity)
        members = self.members = Members(next_hops, counters, ports, port_holders, recorder)
        services = self.services = Services(members, next_hops, ports, seed=seed, hash_key=hash_key)
        commands = Commands()
        carried = Carried(flows, counters)
        announcer = self.announcer = Announcer(flows)
        lifecycle = self.lifecycle = Lifecycle(
            flows,
            packet,
            next_hops,
            members,
            counters,
            ports,
            port_holders,
            commands,
            carried,
            announcer,
            recorder,
            timeouts,
        )
        self.carrying = Carrying(flows, services, members, lifecycle, counters, ports, carried)
        self.migration = Migration(flows, members, lifecycle, commands, self.carrying)
        self.restoration = Restoration(
            flows, services, members, lifecycle, self.migration, announcer, next_hops, ports
        )
        self.replicas = Replicas(flows, members, lifecycle, self.restoration, announcer, shard)
        redispatch = self.redispatch = Redispatch(
            flows, members, next_hops, lifecycle, counters, outbox, commands, carried, recorder
        )
        self.offload = OffloadedFlows(
            flows, services, members, lifecycle, counters, outbox, ports, redispatch, commands
        )
        self.icmp = IcmpHandler(flows, next_hops, services, counters, outbox, redispatch, lifecycle)
        self.own_addresses = OwnAddresses()
        self.openings = Openings(services, carried, self.own_addresses, shard, counters, seed)
        self.budget = DatagramBudget(lifecycle, flows.capacity, timeouts.udp_one_way)
        self.context = Context(packet)
        self.tracker = Tracker(flows, lifecycle, counters, next_hops)
        self.fragments = Fragments()
        self.tombstones = Tombstones()
        claims = self.claims = Claims(flows, packet, shard, seed)
        self.adoption = Adoption(flows, members, self.tombstones, lifecycle, claims, adopt_until)
        cookies = self.cookies = Cookies(
            packet, flows, lifecycle, next_hops, counters, outbox, cookie_key, timeouts.half_open
        )
        self.splices = Splices(
            packet,
            flows,
            lifecycle,
            next_hops,
            counters,
            outbox,
            redispatch,
            cookies,
            members,
            self.offload,
        )
        self.termination = Termination(flows, lifecycle, self.offload, self.tombstones, outbox)
        self.faults = Faults(
            flows, members, lifecycle, counters, outbox, self.tracker, self.termination
        )
        self.liveness = Liveness(flows, lifecycle, outbox)
        self.views = Views(flows, services, members, counters, lifecycle, redispatch, ports)
        self.recording = Recording(flows, members, services, counters, self.context, packet)
        self.tags = memoryview(array("Q", bytes(8 * MAX_EXPECTED)))
        self.attach(bytearray(64))

    # Entry points

    def attach(self, buffer: bytearray) -> None:
        """Packets are in this buffer from now on."""
        self.buffer = buffer
        self.packet.attach(buffer)
        self.icmp.attach(buffer)

    def expect_packets(self, offsets: memoryview, lengths: memoryview, count: int) -> None:
        """Announce the packets that `handle_packet` is called for next, `MAX_EXPECTED` at most.

        Optional: it only prefetches the memory of their flows. Both views are of the type `q`.
        """
        packet = self.packet
        flows = self.flows
        for i in range(count):
            self.tags[i] = 0
            if packet.parse(offsets[i], lengths[i]) == OK:
                self.tags[i] = flows.tag(
                    packet.src_high,
                    packet.src_low,
                    packet.dst_high,
                    packet.dst_low,
                    packet.ports,
                    packet.protocol,
                )
                flows.fetch_entry(self.tags[i])
        for i in range(count):
            flows.fetch_record(self.tags[i])

    def look_up_ahead(self, offsets: memoryview, lengths: memoryview, count: int) -> None:
        """Queue look-ups of the offloaded flows that the announced packets could reopen, so that
        one exchange with the kernel serves the batch. Optional: `handle_packet` requests the
        look-ups that are missing.
        """
        packet = self.packet
        for i in range(count):
            if self.tags[i] and packet.parse(offsets[i], lengths[i]) == OK and packet.flags <= SYN:
                ref = self.find()
                if ref and not ref & 1 and self.offload.is_open(ref >> 1):
                    self.offload.look_up(ref >> 1)

    def handle_packet(self, offset: int, length: int, hook: int, info: int, now: float) -> int:
        """Decide on the IP packet at `offset` of the buffer, rewriting it in place.

        `length` is in bytes; for a truncated packet (`info`), before truncation. `hook` is a
        `model.Hook`, `info` bits of `model.PacketInfo`, `now` seconds of a monotonic clock.
        Returns a `model.Verdict`. Never raises because of a packet's contents.
        """
        ctx = self.context
        ctx.begin(offset, length, hook, info, now)
        self.recorder.now = now
        verdict = self.parse(ctx)
        if verdict:
            return verdict
        if ctx.kind == ICMP_MESSAGE:
            return self.icmp.handle(ctx)
        if ctx.kind == LATER_FRAGMENT:  # of a frame: the kernel reassembles before its hooks
            return self.look_up_fragment(ctx) or self.route(ctx) or self.translate_fragment(ctx)
        verdict = (
            self.look_up(ctx)  # passes the packet at hooks that do not rewrite it: hooks.py
            or (GO_ON if ctx.flow else self.admit(ctx) or self.schedule(ctx))
            or (self.offload.hand_over(ctx) if ctx.offloaded else GO_ON)  # the kernel translates it
            or (self.route(ctx) if hook == WIRE else GO_ON)  # the kernel routes all others
            or self.translate(ctx)
        )
        if self.carrying.carried.active:
            self.carrying.settle(ctx, verdict)
        return verdict

    def opened(self, index: int, length: int, now: float) -> None:
        """Open the flow that the program in the kernel has opened with this entry. The headers of
        the packet, which has `length` bytes, are at the beginning of the buffer. If the flow can't
        be, its next packet comes here."""
        self.recorder.now = now
        if not self.take_opened(index, length, now):
            self.carrying.carried.reject(index)

    def review_openings(self) -> None:
        """Have a worker open flows while it has to see every packet that opens one. Call it every
        0.1 s, and when packets are recorded or faults are injected."""
        reason = ""
        if self.faults.active:
            reason = "faults are injected"
        elif self.recording.active:
            reason = "packets are captured"
        flooded = set()
        if self.cookies.flooded:
            flooded.add(Protocol.TCP)
        if self.lifecycle.unanswered >= self.budget.limit:
            flooded.add(Protocol.UDP)
        self.openings.suspend(reason, frozenset(flooded))

    def take_opened(self, index: int, length: int, now: float) -> bool:
        """Whether the flow could be opened (`opened`)."""
        ctx = self.context
        packet = self.packet
        ctx.begin(0, length, PREROUTING, 0, now)
        if packet.parse(0, length) != OK:
            return False
        ref = self.find()
        if ref:
            if self.carrying.has(ref >> 1, index):
                return True  # it was adopted
            if ref & 1 or not self.lifecycle.reopens(ref >> 1, ctx.ticks):
                return False
            self.lifecycle.close(ref >> 1)
        port = packet.ports & 0xFFFF
        pool = self.services.find(packet.dst_high, packet.dst_low, packet.protocol, port, False)
        if pool is None:
            return False
        member = self.carrying.backend_of(index, pool)
        if member is None:
            return False
        flow = self.lifecycle.open(
            pool,
            member,
            packet.src_high,
            packet.src_low,
            packet.dst_high,
            packet.dst_low,
            packet.ports,
            PREROUTING,
            packet.ports >> 16,
            NEW if packet.protocol == TCP else UDP_ONE_WAY,
            ctx.ticks,
        )
        if flow < 0:
            return False
        ctx.flow = flow
        self.counters.latencies.sent(flow, now)
        if packet.protocol == TCP:
            self.cookies.are_wanted(pool)  # it looks for a flood
        if packet.protocol == TCP and self.tombstones:
            self.tombstones.forget(
                (packet.src_high, packet.src_low, packet.dst_high, packet.dst_low, packet.ports)
            )
        if pool.keeps_openings and packet.flags == SYN:
            # A device would have completed its sum.
            if packet.transport_checksum(
                packet.src_high, packet.src_low, packet.dst_high, packet.dst_low
            ):
                ctx.info = NOT_READY
            self.redispatch.keep(ctx)
        self.tracker.follow(ctx)
        self.carrying.opened(flow, index)
        return True

    def handle_timer(self, now: float) -> bool:
        """End flows whose timeout has passed, and probe silent ones; True if more are due. Call it
        every 0.1 s or so."""
        self.counters.latencies.now = now
        self.recorder.now = now
        more = self.lifecycle.expire(int(now * 10))
        self.liveness.probe()
        if self.redispatch.pending:
            self.redispatch.expire(int(now * 10))
        self.cookies.handle_timer(int(now * 10))
        if self.splices.openings:
            self.splices.handle_timer(int(now * 10))
        if self.faults.active:
            self.faults.expire(now)
        if self.announcer.node:
            self.announcer.handle_timer(int(now * 10))
        return more

    def apply(self, services: Sequence[Service], rules_applied: bool = True) -> None:
        """Serve these services from now on; flows of backends that leave are kept.

        Unless `rules_applied`, the host still has the rules of before, and this is called again
        with the same services once it has the new ones. Until then a service that changes to or
        from the datapath `offload` opens no flow: conntrack would see its first packet where it
        must not, or would miss it.
        """
        gone = self.services.pools.keys() - {service.name for service in services}
        self.update(services, gone, rules_applied)

    def update(
        self, services: Sequence[Service], gone: Collection[str] = (), rules_applied: bool = True
    ) -> None:
        """Like `apply`, but the services that are neither named here nor `gone` stay as they are,
        and cost nothing."""
        switched, moved = self.services.update(services, gone, rules_applied)
        if moved:
            self.adoption.index(self.services.pools.values())
            self.own_addresses.replace(self.services.addresses | self.next_hops.addresses)
        if switched:
            self.migration.migrate(switched)
        for service in services:
            pool = self.services.pools[service.name]
            if pool.gate.uncounted:
                self.lifecycle.recount(pool)
        self.openings.update()

    def set_topology(self, topology: Topology) -> None:
        """Route frames by this topology from now on."""
        self.next_hops.set_topology(topology)
        self.members.update_next_hops()
        self.own_addresses.replace(self.services.addresses | self.next_hops.addresses)

    # Stages

    def parse(self, ctx: Context) -> int:
        """Read the headers. Every length is checked, nothing else is trusted."""
        packet = ctx.packet
        reason = packet.parse(ctx.offset, ctx.length)
        # At its own hooks the kernel has checked it.
        if ctx.hook == WIRE and reason != MALFORMED and not packet.is_header_intact():
            return self.counters.drop(BAD_CHECKSUM)
        return GO_ON if reason == OK else self.parse_further(ctx, reason)

    def parse_further(self, ctx: Context, reason: int) -> int:
        """Handle a packet without a TCP or UDP header; `reason` says why it has none."""
        packet = ctx.packet
        if reason == FRAGMENT and ctx.hook == WIRE:
            reason = packet.parse_fragment(ctx.offset)
            if reason in (OK, FRAGMENT):
                ctx.kind = FIRST_FRAGMENT if reason == OK else LATER_FRAGMENT
                return GO_ON
        elif reason == UNSUPPORTED and is_icmp(packet):
            ctx.kind = ICMP_MESSAGE
            return GO_ON
        if reason == UNSUPPORTED and ctx.hook == WIRE:
            return self.counters.pass_on()
        # After the routing decision, other connections' packets from a backend's port arrive, too.
        if is_after_routing(ctx.hook) and not self.is_ours(ctx):
            return self.counters.pass_on()
        return self.counters.drop(reason)

    def look_up(self, ctx: Context) -> int:
        """Find the flow, in either direction. A packet that is rewritten at this hook continues,
        and so does one that may open a flow."""
        packet = ctx.packet
        ref = self.find()
        flow = ref >> 1
        reply = ref & 1
        if not ref:
            # A backend's segment may belong to a connection from before the start.
            if ctx.hook not in (PREROUTING, OUTPUT) and ctx.now < self.adoption.until:
                flow = self.adoption.adopt(ctx)
                if flow < 0:
                    return FIND_OWNER
                ctx.flow = flow
                ctx.reply = 1 if flow else 0
            return GO_ON
        ctx.flow = flow
        ctx.reply = reply
        record = self.flows.at(flow)
        if record.flags & CARRIED:
            self.carrying.take(flow)
        action = for_flow(record.flags, reply, ctx.hook)
        if action == VERIFY:
            if not self.offload.is_splicing(flow):
                if packet.flags == ACK and self.reopens_by_cookie(ctx):
                    return GO_ON
                return self.offload.handle(ctx)
        elif action != REWRITE:
            return self.counters.drop(COPY) if action == DROP else self.counters.pass_on()
        if record.state == REPLICA:
            self.replicas.meet(ctx)
        # A SYN, or a datagram (which has no flags), may reopen it.
        if not reply and packet.flags <= SYN and self.lifecycle.reopens(flow, ctx.ticks):
            self.lifecycle.close(flow)
            ctx.flow = 0
        elif reply and packet.flags & SYN and self.lifecycle.yields(flow, ctx.ticks):
            self.lifecycle.close(flow)
            ctx.flow = 0
            ctx.reply = 0
        elif ctx.info & TRUNCATED:
            return self.counters.drop(TRUNCATED_REASON)
        elif record.flags & WATCHED:
            return self.look_up_watched(ctx)
        elif record.state != ESTABLISHED:
            if record.state in (SYN_SENT, SYN_RETRIED, REPLACED):
                return self.redispatch.decide(ctx)
            if packet.flags == ACK:
                self.reopens_by_cookie(ctx)
        return GO_ON

    def reopens_by_cookie(self, ctx: Context) -> bool:
        """Whether the client's ACK in hand reopens its flow, which is closed then. Its SYN would
        have done so, but a program in the kernel has answered that with a cookie, which comes back.
        """
        if ctx.reply:
            return False
        pool = self.members.by_id[self.flows.at(ctx.flow).member_id].pool
        if not self.lifecycle.reopens(ctx.flow, ctx.ticks) or not self.cookies.accepts(ctx, pool):
            return False
        self.lifecycle.close(ctx.flow)
        ctx.flow = 0
        return True

    def look_up_watched(self, ctx: Context) -> int:
        """The rest of `look_up` for a flow that an injected fault has chosen, or that tells its
        connection IDs. A fault lies on the link to the backend: its packets meet the fault first,
        the client's at last."""
        fault = self.faults.find(ctx)
        if not self.learn_ids(ctx) and fault is None:
            self.flows.at(ctx.flow).flags &= ~WATCHED
        if ctx.reply and fault is not None and (verdict := self.faults.apply(ctx, fault)):
            return verdict
        if self.flows.at(ctx.flow).state in (SYN_SENT, SYN_RETRIED, REPLACED):
            verdict = self.redispatch.decide(ctx)
            if verdict or not ctx.flow:
                return verdict
        return GO_ON if ctx.reply or fault is None else self.faults.apply(ctx, fault)

    def learn_ids(self, ctx: Context) -> bool:
        """Note the connection ID in a server's packet; whether the flow may tell others."""
        packet = ctx.packet
        member = self.members.by_id[self.flows.at(ctx.flow).member_id]
        ids = member.pool.connection_ids
        if ids is None:
            return False
        if not ctx.reply:
            return True
        if packet.payload == packet.end or not packet.data[packet.payload] & LONG_HEADER:
            return False
        ids.learn(bytes(packet.data[packet.payload : packet.end]), member.scheduled)
        return True

    def admit(self, ctx: Context) -> int:
        """Whether a packet without a flow may open one, in `ctx.pool`."""
        packet = ctx.packet
        wire = ctx.hook == WIRE
        port = packet.ports & 0xFFFF
        pool = self.services.find(packet.dst_high, packet.dst_low, packet.protocol, port, wire)
        if pool is None:
            return self.counters.pass_on()
        action = for_new(pool, ctx.hook)
        if action == PASS:
            return self.counters.pass_on()
        if pool.awaiting_rules:
            return self.turn_away(ctx, INVALID)
        if action == DROP:  # the frame opens the flow, though it may be handled after this copy
            return self.counters.drop(COPY)
        if ctx.info & TRUNCATED and not pool.offloaded:
            return self.turn_away(ctx, TRUNCATED_REASON)
        # The kernel would drop it or its answer behind the hook, and the backend seem to be dead.
        if ctx.hook != OUTPUT and (
            packet.is_martian() or self.own_addresses.has(packet.src_high, packet.src_low)
        ):
            return self.turn_away(ctx, MARTIAN)
        if wire and packet.ttl() <= 1:
            return self.drop_ttl_exceeded(ctx, packet.dst_high, packet.dst_low)
        if packet.protocol == TCP and pool.cookies_allowed and ctx.hook != OUTPUT:
            if packet.flags == SYN:
                if self.cookies.are_wanted(pool):
                    ctx.pool = pool
                    verdict = self.pass_gate(ctx, False) if pool.guarded else GO_ON
                    return verdict or self.cookies.answer(ctx)
            elif self.cookies.accepts(ctx, pool):
                return self.splices.begin(ctx)
        # A packet that is here for the second time has been counted.
        if (
            packet.protocol == UDP
            and ctx.hook != OUTPUT
            and not pool.one_packet
            and self.claims.member is None
            and not self.budget.allows(ctx.ticks)
        ):
            return self.turn_away(ctx, UDP_FLOOD)
        # Mid-stream segments are adopted if the same backend is certain to be chosen again.
        if packet.protocol == TCP and (packet.flags != SYN or self.tombstones):
            key = (packet.src_high, packet.src_low, packet.dst_high, packet.dst_low, packet.ports)
            if packet.flags == SYN:
                self.tombstones.forget(key)
            elif pool.all_ports and not wire:
                # It may be of a connection that this host has from the VIP's address.
                return self.counters.pass_on()
            elif packet.flags & SYN or not pool.adopts or self.tombstones.holds(key, ctx.ticks):
                return self.refuse(ctx, NO_FLOW)
        ctx.pool = pool
        if not pool.guarded:
            return GO_ON
        verdict = self.pass_gate(ctx, True)
        if verdict and self.splices.openings:
            self.splices.forget(packet)
        return verdict

    def schedule(self, ctx: Context) -> int:
        """Choose a backend and a source port, and open the flow."""
        packet = ctx.packet
        pool = ctx.pool
        claims = self.claims
        redispatch = self.redispatch
        hook = PREROUTING if is_after_routing(ctx.hook) else ctx.hook
        port = packet.ports >> 16
        attempt = None
        if redispatch.pending:  # others have not taken the flow
            attempt = redispatch.find(packet)
            if attempt is not None:
                hook = attempt.hook
        opening = None
        if self.splices.openings and packet.flags == SYN and ctx.hook == OUTPUT:
            opening = self.splices.find(packet)
            if opening is not None:
                hook = opening.hook
        member = claims.member
        if member is not None:  # the packet is handed in again
            port = claims.answered_port()
        else:
            claims.tries = 0
            member = self.choose(ctx, attempt)
            if member is None:
                if attempt is not None:
                    redispatch.forget(packet)
                reason = POOL_FULL if pool.usable else NO_BACKEND
                if opening is not None:
                    self.splices.forget(packet)
                    return self.turn_away(ctx, reason)
                return self.refuse(ctx, reason)
            if pool.offloaded:
                if self.offload.is_last_hop(ctx, member.flags):
                    return self.drop_ttl_exceeded(ctx, packet.dst_high, packet.dst_low)
            elif claims.active and self.lifecycle.keeps_client(pool, hook):
                port = claims.ask(member, port)
        flow = -TUPLE_IN_USE
        while port >= 0:
            flow = self.lifecycle.open(
                pool,
                member,
                packet.src_high,
                packet.src_low,
                packet.dst_high,
                packet.dst_low,
                packet.ports,
                hook,
                port,
                NEW if packet.protocol == TCP else UDP_ONE_WAY,
                ctx.ticks,
            )
            if flow != -TUPLE_IN_USE:
                break
            port = claims.other_port(member)
        if port == PENDING:
            return FIND_OWNER
        if flow < 0:
            return self.turn_away(ctx, -flow)
        ctx.flow = flow
        self.counters.latencies.sent(flow, ctx.now)
        if packet.flags == SYN and (pool.keeps_openings or opening is not None):
            redispatch.keep(ctx)
        if attempt is not None:
            redispatch.opened(ctx, attempt)
        if opening is not None:
            self.splices.opened(ctx, opening)
        if pool.connection_ids is not None:
            self.flows.at(flow).flags |= WATCHED
        ctx.offloaded = self.flows.is_offloaded(flow)
        return self.faults.begin(ctx) if self.faults.active else GO_ON

    def route(self, ctx: Context) -> int:
        """Set `next_hops.egress` and decrement the TTL, as a router does."""
        packet = ctx.packet
        flow = ctx.flow
        next_hops = self.next_hops
        record = self.flows.at(flow)
        if ctx.reply:
            hop = next_hops.towards_client(flow, record.client_high, record.client_low)
            if not hop:
                return self.counters.drop(NO_NEXT_HOP)
        else:
            next_hops.learn(flow, record.client_high, record.client_low)
            hop = next_hops.members[record.member_id]
        if packet.ttl() <= 1:
            return self.drop_ttl_exceeded(ctx, record.vip_high, record.vip_low)
        # A GSO packet leaves as segments.
        length = (
            packet.payload - packet.ip + next_hops.gso_size if next_hops.gso_size else ctx.length
        )
        mtu = next_hops.mtu[hop >> LINK_SHIFT & LINK_MASK]
        next_hops.egress = hop
        if length > mtu > 0:
            if not packet.may_be_fragmented() or (next_hops.gso_size and packet.protocol != TCP):
                self.outbox.report_too_big(record.vip_high, record.vip_low, mtu, ctx.ticks)
                return self.counters.drop(TOO_BIG)
            if next_hops.gso_size:  # shorter segments; other packets are fragmented by the driver
                next_hops.gso_size -= length - mtu
        packet.decrement_ttl()
        return GO_ON

    def translate(self, ctx: Context) -> int:
        """Follow the connection's state, rewrite the packet, count it."""
        packet = ctx.packet
        spliced = packet.protocol == TCP and self.flows.at(ctx.flow).flags & SPLICED != 0
        if spliced:
            verdict = self.splices.receive(ctx)
            if verdict:
                return verdict
        self.tracker.follow(ctx)
        if spliced and ctx.reply:
            verdict = self.splices.send(ctx)
            if verdict:
                return verdict
        if packet.flags & SYN:
            self.clamp_mss(ctx)
        rewrite(packet, self.flows, ctx.flow, ctx.reply, ctx.info)
        if ctx.kind == FIRST_FRAGMENT:
            self.fragments.remember(packet, ctx.flow << 1 | ctx.reply, ctx.ticks)
        self.count(ctx)
        if packet.protocol == UDP and self.tracker.is_last_response(ctx):
            self.lifecycle.close(ctx.flow)
        return self.splices.leave(ctx) if spliced else REWRITTEN

    # Stages of later fragments

    def look_up_fragment(self, ctx: Context) -> int:
        """Find the flow of the packet's first fragment."""
        packet = ctx.packet
        ref = self.fragments.find(packet, ctx.ticks)
        record = self.flows.at(ref >> 1)
        direction = direction_of(record, ref & 1)
        # The flow may have ended, and its record may have been reused.
        if (
            not ref
            or record.protocol != packet.protocol
            or direction.src_high != packet.src_high
            or direction.src_low != packet.src_low
            or direction.dst_high != packet.dst_high
            or direction.dst_low != packet.dst_low
        ):
            return self.counters.drop(FRAGMENT)
        if packet.ttl() <= 1:  # no error about it (RFC 1122 section 3.2.2)
            return self.counters.drop(TTL_EXCEEDED)
        ctx.flow = ref >> 1
        ctx.reply = ref & 1
        return GO_ON

    def translate_fragment(self, ctx: Context) -> int:
        """Rewrite the addresses and count the fragment; the connection's state doesn't change."""
        self.flows.touch(ctx.flow, ctx.ticks)
        rewrite_addresses(ctx.packet, self.flows, ctx.flow, ctx.reply)
        self.count(ctx)
        return REWRITTEN

    # Helpers of the stages

    def pass_gate(self, ctx: Context, opens: bool) -> int:
        """Whether the client may open a flow, by the conditions of the service; `opens` says
        whether it does."""
        packet = ctx.packet
        # It may be the packet's second time here.
        if self.claims.member is not None or (
            self.redispatch.pending and self.redispatch.find(packet) is not None
        ):
            return GO_ON
        reason = ctx.pool.gate.refusal(packet.src_high, packet.src_low, ctx.now, opens)
        if not reason:
            return GO_ON
        # A segment of a connection that was forgotten comes again, when there may be room for it.
        if reason < 0 and (packet.flags == SYN or packet.protocol == UDP or reason == -NOT_ALLOWED):
            self.outbox.refuse_client(ctx.ticks)
        return self.turn_away(ctx, abs(reason))

    def choose(self, ctx: Context, attempt: Attempt | None) -> PoolMember | None:
        """The member for a new flow, which may be another `attempt` to open it, or for a connection
        that is open already."""
        packet = ctx.packet
        fields = (
            packet.protocol,
            packet.version,
            packet.number(packet.src_high, packet.src_low),
            packet.ports >> 16,
            packet.number(packet.dst_high, packet.dst_low),
            packet.ports & 0xFFFF,
        )
        if ctx.pool.key is not None and attempt is None:
            payload = bytes(packet.data[packet.payload : packet.end])
            chosen = ctx.pool.pick_keyed(KeyedFlow(*fields, payload=payload), ctx.ticks)
            return None if chosen is None else self.members.by_id[chosen.index]
        new_flow = NewFlow(*fields)
        if packet.protocol == TCP and packet.flags != SYN:
            chosen = ctx.pool.consistent_choice(new_flow)
        elif attempt is not None:
            chosen = attempt.choose(ctx.pool, new_flow, ctx.ticks)
        else:
            chosen = ctx.pool.pick(new_flow, ctx.ticks)
        return None if chosen is None else self.members.by_id[chosen.index]

    def find(self) -> int:
        """The reference of the parsed packet's flow and direction (`FlowTable.find`)."""
        packet = self.packet
        return self.flows.find(
            packet.src_high,
            packet.src_low,
            packet.dst_high,
            packet.dst_low,
            packet.ports,
            packet.protocol,
        )

    def is_ours(self, ctx: Context) -> bool:
        """Whether a packet that can't be handled belongs to a flow, or to a service that the kernel
        forwards, as far as its headers can be read."""
        packet = ctx.packet
        version = self.buffer[ctx.offset] >> 4
        if not packet.parse_quoted(version, ctx.offset, ctx.offset + ctx.length):
            return False
        port = packet.ports & 0xFFFF
        pool = self.services.find(packet.dst_high, packet.dst_low, packet.protocol, port, False)
        return bool(self.find()) or (pool is not None and pool.offloaded)

    def refuse(self, ctx: Context, reason: int) -> int:
        """Drop the packet, and answer with a RST or ICMP port unreachable unless it must not
        be answered."""
        self.outbox.refuse(ctx.ticks)
        return self.turn_away(ctx, reason)

    def turn_away(self, ctx: Context, reason: int) -> int:
        """Drop a packet that would open a flow."""
        self.recorder.refuse(ctx.packet, reason)
        return self.counters.drop(reason)

    def drop_ttl_exceeded(self, ctx: Context, high: int, low: int) -> int:
        """Drop the packet, and send an ICMP time exceeded from this address (two words)."""
        self.outbox.report_ttl_exceeded(high, low, ctx.ticks)
        return self.counters.drop(TTL_EXCEEDED)

    def clamp_mss(self, ctx: Context) -> None:
        """Clamp the MSS option of a SYN to the service's limit."""
        limit = self.members.by_id[self.flows.at(ctx.flow).member_id].pool.service.mss
        if limit is not None:
            lower(ctx.packet, limit, not ctx.info & NOT_READY)

    def count(self, ctx: Context) -> None:
        """Count a translated packet."""
        record = self.flows.at(ctx.flow)
        counters = self.counters
        at = record.member_id * COUNTERS + 2 * ctx.reply
        counters.members[at] += 1
        counters.members[at + 1] += ctx.length
        direction_of(record, ctx.reply).bytes += ctx.length
        counters.reasons[ctx.reply] += 1
