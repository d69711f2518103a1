"""The packet path. Sans-IO: packets come in as bytes in a buffer, verdicts go out.

Reads no clock, opens no socket, writes no log. Driven by four doors: `handle_packet`,
`handle_timer`, `apply` (the services) and `set_topology` (where frames go); others are those of its
parts. The numbers of the stages are those of docs/packet-path.md. Not thread-safe: a worker calls
one door at a time.
"""

from array import array
from collections.abc import Sequence

import cython

from featherlb.core.flows.conntrack import Requests
from featherlb.core.flows.counters import Counters
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import MAX_MEMBERS, Members
from featherlb.core.flows.memory import FlowMemory
from featherlb.core.flows.next_hops import Hops
from featherlb.core.flows.snat_ports import PortAllocator
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import TRANSITIONS, Event, State
from featherlb.core.flows.tombstones import EndedConnections
from featherlb.core.path.adopt import Adoption
from featherlb.core.path.export import Views
from featherlb.core.path.fragments import Fragments
from featherlb.core.path.icmp import IcmpHandler
from featherlb.core.path.migrate import Handover
from featherlb.core.path.offloaded import Offload
from featherlb.core.path.outbox import Answers
from featherlb.core.path.restore import Takeover
from featherlb.core.path.services import Services
from featherlb.core.path.terminate import Ending
from featherlb.core.pools.schedulers import NewFlow
from featherlb.model import (
    SOURCE_PORTS,
    Hook,
    PacketInfo,
    Service,
    Timeouts,
    Topology,
    Verdict,
)
from featherlb.model.reason import Reason
from featherlb.net.packet import Packet

if not cython.compiled:
    from featherlb.core.flows.counters import COUNTERS, REFUSED, RESETS, SYN_RETRIES
    from featherlb.core.flows.next_hops import SLOT_MASK, SLOT_SHIFT
    from featherlb.core.flows.record import COUNTED, FULL, OFFLOADED, WIRED, direction_of
    from featherlb.core.path.icmp import is_icmp
    from featherlb.core.path.nat import translate, translate_addresses
    from featherlb.net.packet import (
        ACK,
        FIN,
        FRAGMENT,
        MASK32,
        OK,
        RST,
        SYN,
        TCP,
        UDP,
        UNSUPPORTED,
    )
    from featherlb.net.tcp_options import lower

MAX_EXPECTED = 64
"""Packets that can be expected at once."""

# The table of transitions as flat bytes, for the compiled build.
EVENTS = len(Event)
NEXT_STATE = memoryview(
    bytearray(state for by_direction in TRANSITIONS for row in by_direction for state in row)
)
EVENT_SYN, EVENT_SYN_ACK, EVENT_FIN, EVENT_RST, EVENT_ACK = (int(event) for event in Event)

NEW = int(State.NEW)
SYN_SENT = int(State.SYN_SENT)
SYN_RECEIVED = int(State.SYN_RECEIVED)
SYN_RETRIED = int(State.SYN_RETRIED)
CLOSED = int(State.CLOSED)
UDP_ONE_WAY = int(State.UDP_ONE_WAY)
PREROUTING = int(Hook.PREROUTING)
OUTPUT = int(Hook.OUTPUT)
WIRE = int(Hook.WIRE)
NOT_READY = int(PacketInfo.CHECKSUM_NOT_READY)
TRUNCATED = int(PacketInfo.TRUNCATED)
TRUNCATED_REASON = int(Reason.TRUNCATED)
COPY = int(Reason.COPY)
INVALID = int(Reason.INVALID)
MARTIAN = int(Reason.MARTIAN)
TTL_EXCEEDED = int(Reason.TTL_EXCEEDED)
TOO_BIG = int(Reason.TOO_BIG)
NO_NEXT_HOP = int(Reason.NO_NEXT_HOP)
NO_BACKEND = int(Reason.NO_BACKEND)
NO_FLOW = int(Reason.NO_FLOW)
POOL_FULL = int(Reason.POOL_FULL)
REWRITTEN = int(Verdict.REWRITTEN)


class Balancer:
    """Decides what happens to each packet.

    Of its parts, `answers` has packets to send, `offload` is for conntrack's driver, `views` shows
    flows and counts, `ending` ends flows by hand, and `takeover` has those of a predecessor.
    """

    def __init__(
        self,
        *,
        memory: FlowMemory,
        secret: bytes,
        hash_key: bytes,
        timeouts: Timeouts,
        source_ports: range = SOURCE_PORTS,
        adopt_until: float = 0.0,
    ) -> None:
        """`memory`, all zeros, limits the flows. `secret` is the process's randomness (16 bytes or
        more); `hash_key` keys placement and must be the same where nodes are to agree.
        `source_ports` are for `full` NAT. Until the time `adopt_until` of the clock of
        `handle_packet`, connections from before are recognised by their replies, too."""
        flows = self.flows = FlowTable(memory, secret)
        packet = self.packet = Packet()
        hops = self.hops = Hops(memory, MAX_MEMBERS)
        counters = self.counters = Counters()
        answers = self.answers = Answers(packet)
        seed = int.from_bytes(secret, "big")
        ports = PortAllocator(seed, source_ports)
        members = self.members = Members(hops, counters, ports)
        services = self.services = Services(members, hops, ports, seed=seed, hash_key=hash_key)
        requests = Requests()
        lifecycle = self.lifecycle = Lifecycle(
            flows, packet, hops, members, counters, ports, requests, timeouts
        )
        self.offload = Offload(
            flows, packet, services, members, lifecycle, counters, answers, ports, requests
        )
        self.handover = Handover(flows, members, lifecycle, requests)
        self.takeover = Takeover(flows, services, members, lifecycle, self.handover, hops, ports)
        self.icmp = IcmpHandler(packet, flows, hops, services, counters, answers)
        self.fragments = Fragments()
        self.ended = EndedConnections()
        self.adoption = Adoption(flows, packet, members, self.ended, lifecycle, adopt_until)
        self.ending = Ending(flows, lifecycle, self.offload, self.ended, answers)
        self.views = Views(flows, services, members, counters, lifecycle)
        self.tags = memoryview(array("Q", bytes(8 * MAX_EXPECTED)))
        self.refusal = 0
        self.attach(bytearray(64))

    # Doors

    def attach(self, buffer: bytearray) -> None:
        """Packets stand in this buffer from now on."""
        self.buffer = buffer
        self.packet.attach(buffer)
        self.icmp.attach(buffer)

    def expect_packets(self, offsets: memoryview, lengths: memoryview, count: int) -> None:
        """Say that `handle_packet` comes for these packets, `MAX_EXPECTED` at most.

        It need not be called: the flows' memory is only loaded while there is other work. Both
        views are of the type `q`.
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

    def ask_ahead(self, offsets: memoryview, lengths: memoryview, count: int) -> None:
        """Gather questions to conntrack, as `offload`'s requests, about the flows that expected
        packets could open anew. It need not be called: `handle_packet` asks by itself then.
        """
        packet = self.packet
        for i in range(count):
            if self.tags[i] and packet.parse(offsets[i], lengths[i]) == OK and packet.flags <= SYN:
                ref = self.find()
                if ref and not ref & 1 and self.offload.is_open(ref >> 1):
                    self.offload.inquire(ref >> 1)

    def handle_packet(self, offset: int, length: int, hook: int, info: int, now: float) -> int:
        """Decide on the IP packet at `offset` of the buffer, rewriting it in place.

        `length` is in bytes; of a truncated packet (`info`) it is the length before it was cut.
        `hook` is a `model.Hook`, `info` bits of `model.PacketInfo`, `now` seconds of a monotonic
        clock. The answer is a `model.Verdict`. Never raises for what a packet contains.
        """
        packet = self.packet
        flows = self.flows
        ticks = int(now * 10)

        # 1. Parse: every length is checked, nothing else is trusted.
        reason = packet.parse(offset, length)
        first = hook == WIRE and reason == FRAGMENT
        if first:
            reason = packet.parse_fragment(offset)
            if reason == FRAGMENT:
                return self.handle_fragment(length, ticks)
        if reason != OK:
            # 7. ICMP: an error belongs to the flow of the packet that it quotes.
            if reason == UNSUPPORTED and is_icmp(packet) and not first:
                return self.icmp.handle(hook, info)
            if reason == UNSUPPORTED and hook == WIRE:
                return self.counters.pass_on()
            # Behind the routing decision come the packets of others, from a backend's port.
            if hook not in (PREROUTING, OUTPUT, WIRE) and not self.knows(offset, length):
                return self.counters.pass_on()
            return self.counters.drop(reason)

        # 2. Find the flow, in either direction. A reply in `dnat` mode is rewritten after the
        # routing decision, everything else before it; in frames all are, in both directions.
        early = hook in (PREROUTING, OUTPUT)
        wire = hook == WIRE
        ref = self.find()
        flow = ref >> 1
        reply = ref & 1
        record = flows.at(flow)
        if ref and record.flags & OFFLOADED and not wire:
            verdict = self.offload.meet(flow, reply, info, ticks)
            if verdict >= 0:
                return verdict
            ref = 0
        elif ref:
            if record.flags & WIRED:
                if not wire:
                    return self.counters.drop(COPY)
            else:
                late = reply and not record.flags & FULL
                if wire or early == late:
                    return self.counters.pass_on()
            # What may open a flow: a SYN, or a datagram (which has no flags).
            if not reply and packet.flags <= SYN and self.lifecycle.reopens(flow):
                self.lifecycle.close(flow)
                ref = 0
        elif not early:
            if now < self.adoption.until:
                flow = self.adoption.join(hook, info, ticks)
            if flow:
                ref = flow << 1 | 1
                reply = 1

        # 3. to 5. Of no flow: it may open one.
        if not ref:
            flow = self.open(hook, info, ticks)
            if not flow:
                return self.refusal
            if flows.at(flow).flags & OFFLOADED:
                return self.offload.begin(flow, info)
        elif info & TRUNCATED:
            return self.counters.drop(TRUNCATED_REASON)

        # 8. Route: a frame needs a next hop, and has one hop less.
        if wire and not self.route(flow, reply, length, ticks):
            return self.refusal

        # 6. Follow the connection's state, translate, count.
        self.track(flow, reply, ticks)
        if packet.flags & SYN:
            self.limit_segments(flow, info)
        translate(packet, flows, flow, reply, info)
        if wire:
            packet.use_hop()
            if first:
                self.fragments.remember(packet, flow << 1 | reply, ticks)
        self.count(flow, reply, length)
        if packet.protocol == UDP and self.answered(flow, reply):
            self.lifecycle.close(flow)
        return REWRITTEN

    def handle_timer(self, now: float) -> bool:
        """End flows whose timeout has passed; True if more are due. Call it every 0.1 s or so."""
        return self.lifecycle.expire(int(now * 10))

    def apply(self, services: Sequence[Service], settled: bool = True) -> None:
        """Serve these services from now on; flows of backends that leave go on.

        Unless `settled`, the host's rules are still those of before, and this is called again with
        the same services when they aren't. Until then a service that goes over to conntrack, or
        comes back from it, opens no flow: its first packet would meet conntrack where it must not,
        or would miss it.
        """
        switched = self.services.apply(services, settled)
        self.adoption.index(self.services.pools.values())
        if switched:
            self.handover.switch(switched)

    def set_topology(self, topology: Topology) -> None:
        """Where frames go from now on."""
        self.hops.set_topology(topology)
        self.members.update_next_hops()

    # Stages

    def find(self) -> int:
        """The parsed packet's flow and direction, as `FlowTable.find` says them."""
        packet = self.packet
        return self.flows.find(
            packet.src_high,
            packet.src_low,
            packet.dst_high,
            packet.dst_low,
            packet.ports,
            packet.protocol,
        )

    def knows(self, offset: int, length: int) -> bool:
        """Whether a packet that can't be handled is of a flow, or would be of one that the kernel
        carries, as far as it can be read."""
        packet = self.packet
        version = self.buffer[offset] >> 4
        if not packet.parse_quoted(version, offset, offset + length):
            return False
        port = packet.ports & 0xFFFF
        pool = self.services.find(packet.dst_high, packet.dst_low, packet.protocol, port, False)
        return bool(self.find()) or (pool is not None and pool.offloaded)

    def open(self, hook: int, info: int, ticks: int) -> int:
        """A flow for the parsed packet; 0 if there is to be none, and `refusal` is the verdict."""
        packet = self.packet
        port = packet.ports & 0xFFFF
        wire = hook == WIRE
        late = hook not in (PREROUTING, OUTPUT, WIRE)
        pool = self.services.find(packet.dst_high, packet.dst_low, packet.protocol, port, wire)
        if pool is None or (wire and not pool.raw) or (late and not pool.offloaded):
            self.refusal = self.counters.pass_on()
            return 0
        if pool.settling:
            self.refusal = self.counters.drop(INVALID)
            return 0
        # Its frame opens the flow, which may be handled after this.
        if pool.raw and hook == PREROUTING:
            self.refusal = self.counters.drop(COPY)
            return 0
        if info & TRUNCATED and not pool.offloaded:
            self.refusal = self.counters.drop(TRUNCATED_REASON)
            return 0
        if wire:
            if not packet.is_from_afar():
                self.refusal = self.counters.drop(MARTIAN)
                return 0
            if packet.hops_left() <= 1:
                return self.expire(packet.dst_high, packet.dst_low, ticks)

        # 4. Mid-stream: join it where the same backend is certain to be chosen again.
        if packet.protocol == TCP and (packet.flags != SYN or self.ended):
            key = (packet.src_high, packet.src_low, packet.dst_high, packet.dst_low, packet.ports)
            if packet.flags == SYN:
                self.ended.forget(key)
            elif packet.flags & SYN or not pool.adopts or self.ended.holds(key, ticks):
                return self.refuse(NO_FLOW, ticks)

        # 3. Schedule.
        new_flow = NewFlow(
            packet.protocol,
            packet.version,
            packet.number(packet.src_high, packet.src_low),
            packet.ports >> 16,
            packet.number(packet.dst_high, packet.dst_low),
            port,
        )
        joined = packet.protocol == TCP and packet.flags != SYN
        member = pool.expected(new_flow) if joined else pool.pick(new_flow, ticks)
        # 5. No usable backend.
        if member is None:
            return self.refuse(POOL_FULL if pool.usable else NO_BACKEND, ticks)
        flow = self.lifecycle.open(
            pool,
            self.members.by_id[member.index],
            packet.src_high,
            packet.src_low,
            packet.dst_high,
            packet.dst_low,
            packet.ports,
            PREROUTING if late else hook,
            NEW if packet.protocol == TCP else UDP_ONE_WAY,
            ticks,
        )
        if flow < 0:
            self.refusal = self.counters.drop(-flow)
            return 0
        return flow

    def refuse(self, reason: int, ticks: int) -> int:
        """Drop the parsed packet, and answer it with a RST or ICMP port unreachable if it is
        one that is answered."""
        self.refusal = self.counters.drop(reason)
        self.answers.refuse(ticks)
        return 0

    def track(self, flow: int, reply: int, ticks: int) -> None:
        """Take the parsed packet into account: state, timeout, expected sequence numbers."""
        packet = self.packet
        flows = self.flows
        record = flows.at(flow)
        state = record.state
        flags = packet.flags
        if flags & RST:
            if not reply and self.resets_another(flow, state):
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
            flows.touch(flow, ticks)
            return
        self.lifecycle.enter(flow, following, ticks)
        if following == SYN_RETRIED:
            self.counters.add(record.member_id, SYN_RETRIES)
        elif following == CLOSED and reply:
            refused = state in (SYN_SENT, SYN_RETRIED)
            self.counters.add(record.member_id, REFUSED if refused else RESETS)

    def resets_another(self, flow: int, state: int) -> bool:
        """Whether the client's parsed RST is of the connection that it had by the same port before.

        A late packet of that one, met by the client's new SYN, makes it send such a RST, and then
        the SYN again: if the flow were closed, that would open it at another backend, and cut the
        client off from the one whose SYN-ACK is under way. What nobody has answered needs no RST,
        and the sequence numbers of a new connection begin beyond those of the old one.
        """
        if state in (SYN_SENT, SYN_RETRIED):
            return True
        expected = self.flows.at(flow).backend_expects
        return state == SYN_RECEIVED and (self.packet.sequence - expected) & MASK32 >= 1 << 31

    def limit_segments(self, flow: int, info: int) -> None:
        """Lower the segment size that the parsed SYN asks for to what its service allows."""
        limit = self.members.by_id[self.flows.at(flow).member_id].pool.service.mss
        if limit is not None:
            lower(self.packet, limit, not info & NOT_READY)

    def count(self, flow: int, reply: int, length: int) -> None:
        """Count a translated packet."""
        record = self.flows.at(flow)
        counters = self.counters
        at = record.member_id * COUNTERS + 2 * reply
        counters.members[at] += 1
        counters.members[at + 1] += length
        direction_of(record, reply).bytes += length
        counters.reasons[reply] += 1

    def answered(self, flow: int, reply: int) -> bool:
        """Count a datagram of a flow that expects a number of responses; True if it was the
        last one."""
        record = self.flows.at(flow)
        if not record.flags & COUNTED:
            return False
        responses = direction_of(record, 1)
        awaited = responses.awaited
        if not reply:
            awaited = min(awaited + record.responses, MASK32)
        elif awaited:
            awaited -= 1
        responses.awaited = awaited
        return not awaited

    def route(self, flow: int, reply: int, length: int, ticks: int) -> bool:
        """Find the parsed packet's next hop, for `hops.goes`; False if it can't be sent there, and
        `refusal` is the verdict."""
        packet = self.packet
        record = self.flows.at(flow)
        hops = self.hops
        if reply:
            hop = hops.back(flow, record.client_high, record.client_low)
            if not hop:
                self.refusal = self.counters.drop(NO_NEXT_HOP)
                return False
        else:
            hops.came_from(flow, record.client_high, record.client_low)
            hop = hops.members[record.member_id]
        if packet.hops_left() <= 1:
            self.expire(record.vip_high, record.vip_low, ticks)
            return False
        # Of a super-packet, its segments are what leaves.
        if hops.gso_size:
            length = packet.payload - packet.ip + hops.gso_size
        mtu = hops.mtu[hop >> SLOT_SHIFT & SLOT_MASK]
        hops.goes = hop
        if length <= mtu or not mtu:
            return True
        if packet.may_be_fragmented():
            if not hops.gso_size:
                return True  # whoever sends it cuts it
            if packet.protocol == TCP:
                hops.gso_size -= length - mtu
                return True
        self.refusal = self.counters.drop(TOO_BIG)
        self.answers.limit(record.vip_high, record.vip_low, mtu, ticks)
        return False

    def expire(self, high: int, low: int, ticks: int) -> int:
        """Drop the parsed packet, whose hops are used up, and say so from this address."""
        self.refusal = self.counters.drop(TTL_EXCEEDED)
        self.answers.expire(high, low, ticks)
        return 0

    def handle_fragment(self, length: int, ticks: int) -> int:
        """Decide on the parsed fragment, which is not its packet's first: it goes where that one
        went."""
        packet = self.packet
        flows = self.flows
        ref = self.fragments.find(packet, ticks)
        flow = ref >> 1
        reply = ref & 1
        record = flows.at(flow)
        direction = direction_of(record, reply)
        # The flow may have ended, and its record be another's.
        if (
            not ref
            or record.protocol != packet.protocol
            or direction.src_high != packet.src_high
            or direction.src_low != packet.src_low
            or direction.dst_high != packet.dst_high
            or direction.dst_low != packet.dst_low
        ):
            return self.counters.drop(FRAGMENT)
        if packet.hops_left() <= 1:  # no error about it (RFC 1122 section 3.2.2)
            return self.counters.drop(TTL_EXCEEDED)
        if not self.route(flow, reply, length, ticks):
            return self.refusal
        flows.touch(flow, ticks)
        translate_addresses(packet, flows, flow, reply)
        packet.use_hop()
        self.count(flow, reply, length)
        return REWRITTEN
