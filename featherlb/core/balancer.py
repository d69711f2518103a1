"""The packet path. Sans-IO: packets come in as bytes in a buffer, verdicts go out.

Imports the rest of `core` and `model`. Reads no clock, opens no socket, writes no log. Driven by
five doors: `handle_packet`, `handle_timer`, `apply` (the services), `set_paths` (where frames go),
and `take_crafted` (packets to send). The numbers of the stages are those of docs/packet-path.md.
Not thread-safe: a worker calls one door at a time.
"""

from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import cython

from featherlb.core.addresses import address_of, words_of
from featherlb.core.answers import Answers
from featherlb.core.conntrack import Entry, Requests
from featherlb.core.counters import Counters
from featherlb.core.craft import flow_probe, flow_reset
from featherlb.core.ended import EndedConnections
from featherlb.core.flow import FlowTable
from featherlb.core.fragments import Fragments
from featherlb.core.hops import Hops
from featherlb.core.icmp import IcmpHandler
from featherlb.core.members import MAX_MEMBERS, Members, Slot
from featherlb.core.packet import Packet
from featherlb.core.pool import Pool
from featherlb.core.ports import PortAllocator
from featherlb.core.scheduler import NewFlow
from featherlb.core.services import Services
from featherlb.core.stats import DROPPED, PASSED, TRANSLATED, Reason
from featherlb.core.tcpstate import (
    ACTIVE,
    REUSABLE,
    TIMEOUT_CLASS,
    TRANSITIONS,
    Event,
    State,
    TimeoutClass,
)
from featherlb.model import (
    SOURCE_PORTS,
    Backend,
    Endpoint,
    Hook,
    PacketInfo,
    Paths,
    Protocol,
    Service,
    Timeouts,
    Verdict,
)

if not cython.compiled:
    from featherlb.core.checksum import fold, words
    from featherlb.core.conntrack import AF_INET6, DESTINATION_NAT, SEEN_REPLY
    from featherlb.core.counters import (
        COUNTERS,
        OPENED,
        REFUSED,
        RESETS,
        SYN_RETRIES,
        SYN_TIMEOUTS,
    )
    from featherlb.core.flow import (
        ABANDONED,
        ADDRESS_DELTA,
        AWAITED,
        BYTES,
        CARRIED,
        COUNTED,
        CREATED,
        EXPECTED,
        FLAGS,
        FULL,
        IPV6,
        LOCAL_CLIENT,
        MEMBER,
        NEXT,
        OFFLOADED,
        PORTS,
        PROTOCOL,
        QUEUE,
        RESPONSES,
        SEEN,
        STATE,
        TRANSPORT_DELTA,
        WIRED,
    )
    from featherlb.core.hops import SLOT_MASK, SLOT_SHIFT
    from featherlb.core.icmp import is_icmp
    from featherlb.core.mss import lower
    from featherlb.core.nat import translate, translate_addresses
    from featherlb.core.packet import (
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

MAX_EXPIRED_AT_ONCE = 1024
"""Flows that one call of `handle_timer` may end, so that it never delays a packet for long."""
MAX_PORT_RECLAIMS = 64
"""Closing flows looked at to find one whose source port can be given to a new flow, before that
is refused."""
MAX_EXPECTED = 64
"""Packets that can be expected at once."""
FOREVER = 1 << 28
"""Seconds that no offloaded flow lasts: the kernel says when it ends."""
YOUNG = 20
"""Ticks within which the end of an entry may be that of the one before it, of the same client."""
MAX_ADOPTED_RANGE = 16
"""Ports of a VIP that are tried to find out whose connection a reply belongs to."""

# The tables of enumerations as flat bytes, for the compiled build.
EVENTS = len(Event)
NEXT_STATE = memoryview(
    bytearray(state for by_direction in TRANSITIONS for row in by_direction for state in row)
)
IS_ACTIVE = memoryview(bytearray(state in ACTIVE for state in State))
IS_REUSABLE = memoryview(bytearray(state in REUSABLE for state in State))
EVENT_SYN, EVENT_SYN_ACK, EVENT_FIN, EVENT_RST, EVENT_ACK = (int(event) for event in Event)

NEW = int(State.NEW)
KERNEL_STATES = memoryview(
    bytearray(
        (
            State.SYN_SENT,  # TCP_CONNTRACK_NONE: created, no packet yet
            State.SYN_SENT,
            State.SYN_RECEIVED,
            State.ESTABLISHED,
            State.FIN_WAIT,
            State.CLOSE_WAIT,
            State.CLOSING,  # LAST_ACK
            State.CLOSING,  # TIME_WAIT
            State.CLOSED,
            State.SYN_SENT,  # SYN_SENT2: both ends opened it
        )
    )
)
"""By enum tcp_conntrack (include/uapi/linux/netfilter/nf_conntrack_tcp.h)."""
SYN_SENT = int(State.SYN_SENT)
SYN_RECEIVED = int(State.SYN_RECEIVED)
SYN_RETRIED = int(State.SYN_RETRIED)
ESTABLISHED = int(State.ESTABLISHED)
ADOPTED = int(State.ADOPTED)
CLOSED = int(State.CLOSED)
UDP_ONE_WAY = int(State.UDP_ONE_WAY)
UDP_TWO_WAY = int(State.UDP_TWO_WAY)
PREROUTING = int(Hook.PREROUTING)
INPUT = int(Hook.INPUT)
OUTPUT = int(Hook.OUTPUT)
WIRE = int(Hook.WIRE)
NOT_READY = int(PacketInfo.CHECKSUM_NOT_READY)
GSO = int(PacketInfo.GSO)
TRUNCATED = int(PacketInfo.TRUNCATED)
TRUNCATED_REASON = int(Reason.TRUNCATED)
COPY = int(Reason.COPY)
MARTIAN = int(Reason.MARTIAN)
TTL_EXCEEDED = int(Reason.TTL_EXCEEDED)
TOO_BIG = int(Reason.TOO_BIG)
NO_NEXT_HOP = int(Reason.NO_NEXT_HOP)
NO_BACKEND = int(Reason.NO_BACKEND)
NO_FLOW = int(Reason.NO_FLOW)
POOL_FULL = int(Reason.POOL_FULL)
NO_SOURCE_PORT = int(Reason.NO_SOURCE_PORT)
TUPLE_IN_USE = int(Reason.TUPLE_IN_USE)
REWRITTEN = int(Verdict.REWRITTEN)
DROP = int(Verdict.DROP)
CARRY = int(Verdict.CARRY)
ASK = int(Verdict.ASK)
INVALID = int(Reason.INVALID)
NO_ENTRY = int(Reason.NO_ENTRY)
FORWARD = int(Reason.FORWARD)

KEY_BYTES = 73
"""Of a record: both keys, ports and protocol, which say which flow it is."""


@dataclass(frozen=True, slots=True)
class FlowView:
    """One flow, for people. Ages are seconds; `source` is what the backend sees."""

    service: str
    protocol: Protocol
    state: State
    client: Endpoint
    vip: Endpoint
    backend: Endpoint
    source: Endpoint
    age: float
    idle: float
    bytes_forward: int
    bytes_reply: int


@dataclass(frozen=True, slots=True)
class BackendStats:
    """Counts of one backend since it joined the pool.

    `resets` are RSTs in open connections, `refused` RSTs in answer to a SYN, `syn_timeouts`
    connections that it never answered, `syn_retries` those whose client had to send the SYN again.
    """

    service: str
    backend: Backend
    active: int
    flows: int
    resets: int
    refused: int
    syn_timeouts: int
    syn_retries: int
    packets_forward: int
    bytes_forward: int
    packets_reply: int
    bytes_reply: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot. received = translated + passed + dropped, in packets; `reasons` adds up to it.

    `flows_by_class` adds up to `flows`. `leaving` are backends that have left their service and
    still have flows.
    """

    received: int
    translated: int
    passed: int
    dropped: int
    reasons: dict[Reason, int]
    flows: int
    flows_by_class: dict[TimeoutClass, int]
    capacity: int
    evicted: int
    scheduler_errors: dict[str, int]
    backends: tuple[BackendStats, ...]
    leaving: tuple[tuple[str, Backend], ...]


@dataclass(frozen=True, slots=True)
class FlowRecords:
    """A part of the flow table as it lies in memory: copying it costs next to nothing, reading
    it (`read_flows`) is for somebody who has the time.

    `first` is the number of the first record, `end` that of the last one in use, plus one.
    `services` are by member index, `now` is the time of the copy in seconds.
    """

    records: bytes
    first: int
    end: int
    services: dict[int, str]
    now: float


class Balancer:
    """Decides what happens to each packet."""

    def __init__(
        self,
        *,
        capacity: int,
        secret: bytes,
        hash_key: bytes,
        timeouts: Timeouts,
        source_ports: range = SOURCE_PORTS,
        adopt_until: float = 0.0,
    ) -> None:
        """`capacity` limits the flows. `secret` is the process's randomness (16 bytes or more);
        `hash_key` keys placement and must be the same where nodes are to agree. `source_ports`
        are for `full` NAT. Until the time `adopt_until` of the clock of `handle_packet`,
        connections from before are recognised by their replies, too."""
        self.flows = FlowTable(capacity, secret)
        self.fragments = Fragments()
        self.hops = Hops(capacity, MAX_MEMBERS)
        self.packet = Packet()
        self.counters = Counters()
        self.answers = Answers(self.packet)
        seed = int.from_bytes(secret, "big")
        self.source_ports = PortAllocator(seed, source_ports)
        self.members = Members(self.hops, self.counters, self.source_ports)
        self.services = Services(
            self.members, self.hops, self.source_ports, seed=seed, hash_key=hash_key
        )
        self.icmp = IcmpHandler(
            self.packet, self.flows, self.hops, self.services, self.counters, self.answers
        )
        self.attach(bytearray(64))
        seconds = {
            TimeoutClass.HALF_OPEN: timeouts.half_open,
            TimeoutClass.UDP_ONE_WAY: timeouts.udp_one_way,
            TimeoutClass.CLOSED: timeouts.closed,
            TimeoutClass.FIN: timeouts.fin,
            TimeoutClass.UDP_TWO_WAY: timeouts.udp_two_way,
            TimeoutClass.ESTABLISHED: timeouts.established,
        }
        seconds[TimeoutClass.OFFLOADED] = FOREVER
        queues = {kind: self.flows.add_queue(int(kind), seconds[kind]) for kind in TimeoutClass}
        self.queue_of = memoryview(bytearray(queues[TIMEOUT_CLASS[state]] for state in State))
        self.closed_queue = queues[TimeoutClass.CLOSED]
        self.offload_queue = queues[TimeoutClass.OFFLOADED]
        self.requests = Requests()
        self.answer = Entry()
        self.event = Entry()
        self.asked = 0
        self.created = 0
        self.resent: list[tuple[int, bytes]] = []
        self.evicted = 0
        self.opened: list[int] | None = None
        self.refusal = DROP
        self.tags = memoryview(array("Q", bytes(8 * MAX_EXPECTED)))
        self._adopt_until = adopt_until
        self.ended = EndedConnections()
        self._adoptable: dict[tuple[int, int, int], list[tuple[Pool, int, int, int]]] = {}

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
        ref = flows.find(
            packet.src_high,
            packet.src_low,
            packet.dst_high,
            packet.dst_low,
            packet.ports,
            packet.protocol,
        )
        flow = ref >> 1
        reply = ref & 1
        if ref and flows.u8[flow * 128 + FLAGS] & OFFLOADED and not wire:
            verdict = self.meet(flow, reply, info, ticks)
            if verdict >= 0:
                return verdict
            ref = 0
        elif ref:
            if flows.u8[flow * 128 + FLAGS] & WIRED:
                if not wire:
                    return self.counters.drop(COPY)
            else:
                late = reply and not flows.u8[flow * 128 + FLAGS] & FULL
                if wire or early == late:
                    return self.counters.pass_on()
            # What may open a flow: a SYN, or a datagram (which has no flags).
            if not reply and packet.flags <= SYN and self.reopens(flow):
                self.close(flow)
                ref = 0
        elif not early:
            if now < self._adopt_until:
                flow = self.adopt_reply(hook, info, ticks)
            if flow:
                ref = flow << 1 | 1
                reply = 1
            elif not wire:
                return self.counters.pass_on()

        # 3. to 5. Of no flow: it may open one.
        if not ref:
            flow = self.open(hook, info, ticks)
            if not flow:
                return self.refusal
            if flows.u8[flow * 128 + FLAGS] & OFFLOADED:
                self.requests.create(flows, flow)
                self.created = flow
                return self.carry(flow, info)
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
            self.close(flow)
        return REWRITTEN

    def handle_timer(self, now: float) -> bool:
        """End flows whose timeout has passed; True if more are due. Call it every 0.1 s or so."""
        ticks = int(now * 10)
        for _ in range(MAX_EXPIRED_AT_ONCE):
            flow = self.flows.expired(ticks)
            if not flow:
                return False
            if self.flows.u8[flow * 128 + STATE] in (SYN_SENT, SYN_RETRIED):
                self.counters.add(self.flows.u16[flow * 64 + MEMBER], SYN_TIMEOUTS)
            self.close(flow)
        return True

    def apply(self, services: Sequence[Service]) -> None:
        """Serve these services from now on; flows of backends that leave go on."""
        switched = self.services.apply(services)
        self._index_adoptable()
        if switched:
            self._switch(switched)

    def _switch(self, pools: Collection[Pool]) -> None:
        """Meet the packets of these pools' flows where those of new flows are met. The flows of
        this host's own clients never are on a wire."""
        flows = self.flows
        for flow in range(1, flows.last_record() + 1):
            at = flow * 128
            if not flows.u8[at + PROTOCOL]:
                continue
            pool = self.members.slots[flows.u16[flow * 64 + MEMBER]].pool
            if pool not in pools:
                continue
            if not flows.u8[at + FLAGS] & LOCAL_CLIENT:
                wired = WIRED if pool.raw else 0
                flows.u8[at + FLAGS] = flows.u8[at + FLAGS] & ~WIRED | wired
            if pool.offloaded != (flows.u8[at + FLAGS] & OFFLOADED != 0):
                self._hand_over(flow, pool.offloaded)

    def _hand_over(self, flow: int, carried: bool) -> None:
        """Have conntrack carry a flow from now on, or no more."""
        flows = self.flows
        at = flow * 128
        state = flows.u8[at + STATE]
        if self.is_carried(flow):
            self.requests.delete(flows, flow)
        if IS_REUSABLE[state]:
            flows.u8[at + FLAGS] |= ABANDONED
            self.close(flow)
            return
        for direction in (0, 1):
            flows.u32[flow * 32 + CARRIED + direction] = 0
        ticks = flows.u32[flow * 32 + SEEN]
        if carried:
            for direction in (0, 1):
                flows.u64[flow * 16 + BYTES + direction] = 0
            flows.u8[at + FLAGS] |= OFFLOADED
            flows.move(flow, self.offload_queue, ticks)
            self.requests.create(flows, flow)
        else:
            flows.u8[at + FLAGS] &= ~(OFFLOADED | ABANDONED)
            flows.move(flow, self.queue_of[state], ticks)
            self.settle(flow)

    def set_paths(self, paths: Paths) -> None:
        """Where frames go from now on."""
        self.hops.set_paths(paths)
        self.members.aim()

    def take_crafted(self) -> list[bytes]:
        """Packets to send, with their IP headers, since the last call."""
        return self.answers.take()

    # Stages

    def reopens(self, flow: int) -> bool:
        """Whether a SYN or datagram of this flow is to be scheduled anew: the old connection
        is closing (the client uses its port again), or the backend has left the pool and there
        is no connection that would break."""
        state = self.flows.u8[flow * 128 + STATE]
        if IS_REUSABLE[state]:
            return True
        if not self.members.retired[self.flows.u16[flow * 64 + MEMBER]]:
            return False
        return state in (SYN_SENT, SYN_RETRIED, UDP_ONE_WAY, UDP_TWO_WAY)

    def open(self, hook: int, info: int, ticks: int) -> int:
        """A flow for the parsed packet; 0 if there is to be none, and `refusal` is the verdict."""
        packet = self.packet
        port = packet.ports & 0xFFFF
        wire = hook == WIRE
        pool = self.services.find(packet.dst_high, packet.dst_low, packet.protocol, port, wire)
        if pool is None or (wire and not pool.raw):
            self.refusal = self.counters.pass_on()
            return 0
        if info & TRUNCATED:
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
            _number(packet.version, packet.src_high, packet.src_low),
            packet.ports >> 16,
            _number(packet.version, packet.dst_high, packet.dst_low),
            port,
        )
        joined = packet.protocol == TCP and packet.flags != SYN
        member = pool.expected(new_flow) if joined else pool.pick(new_flow, ticks)
        # 5. No usable backend.
        if member is None:
            return self.refuse(POOL_FULL if pool.usable else NO_BACKEND, ticks)
        return self.insert(
            pool,
            self.members.slots[member.index],
            packet.src_high,
            packet.src_low,
            packet.dst_high,
            packet.dst_low,
            packet.ports,
            hook,
            NEW if packet.protocol == TCP else UDP_ONE_WAY,
            ticks,
        )

    # The offload datapath

    def meet(self, flow: int, reply: int, info: int, ticks: int) -> int:
        """Decide on the parsed packet of a flow that conntrack carries; -1 if it opens another.

        That it gets here says that it may open the connection anew, or that conntrack doesn't take
        it for a part of it.
        """
        packet = self.packet
        alive = self.is_carried(flow)
        if reply or packet.flags > SYN:
            if alive:
                return self.counters.drop(INVALID)
            self.refuse(NO_FLOW, ticks)
            return self.refusal
        if alive and self.asked != flow and self.flows.u8[flow * 128 + QUEUE] != self.closed_queue:
            self.asked = flow
            return ASK
        self.asked = 0
        if not alive or self.reopens(flow):
            self.close(flow)
            return -1
        if self.flows.u8[flow * 128 + STATE] == SYN_SENT:
            self.enter_state(flow, SYN_RETRIED, ticks)
            self.counters.add(self.flows.u16[flow * 64 + MEMBER], SYN_RETRIES)
        return self.carry(flow, info)

    def carry(self, flow: int, info: int) -> int:
        """Let conntrack have the parsed packet. A SYN has not met it yet; others have, as a packet
        of another connection, so a copy has to begin from the start."""
        packet = self.packet
        self.counters.reasons[FORWARD] += 1
        if packet.protocol == TCP and packet.flags == SYN:
            return CARRY
        if info & GSO:
            return DROP  # where it is to be cut, nobody says: TCP sends it again
        if info & NOT_READY:
            packet.complete_checksum()
        self.resent.append((flow, packet.quote(packet.end - packet.ip)))
        return DROP

    def take_resent(self) -> list[bytes]:
        """Packets to send as they are, since the last call."""
        resent = self.resent
        if resent:
            self.resent = []
        return [packet for _, packet in resent]

    def fail(self, flow: int) -> None:
        """Conntrack refuses to create the entry of this flow: its packet is dropped instead."""
        self.counters.reasons[FORWARD] -= 1
        self.counters.reasons[NO_ENTRY] += 1
        self.resent = [(other, packet) for other, packet in self.resent if other != flow]
        self.disown(flow)

    def disown(self, flow: int) -> None:
        """Forget a flow whose entry is gone, or is none of ours."""
        if self.asked == flow:
            self.asked = 0
        self.flows.u8[flow * 128 + FLAGS] |= ABANDONED
        self.close(flow)

    def clash(self, flow: int, entry: Entry) -> bool:
        """Whether a flow may be created in place of the entry that has its forward key.

        False if that is the flow itself, or an open connection that another process has let in:
        that one goes on, and the flow is forgotten.
        """
        flows = self.flows
        at = flow * 16
        if (
            entry.back_src_low == flows.u64[at + 5]
            and entry.back_src_high == flows.u64[at + 4]
            and entry.back_dst_low == flows.u64[at + 7]
            and entry.back_dst_high == flows.u64[at + 6]
            and entry.back_ports == flows.u32[flow * 32 + PORTS + 1]
        ):
            return False
        if (
            0 <= entry.tcp_state < 10
            and entry.status & DESTINATION_NAT
            and not IS_REUSABLE[KERNEL_STATES[entry.tcp_state]]
        ):
            self.disown(flow)
            return False
        return True

    def inquire(self, flow: int) -> None:
        """Ask conntrack for a flow's entry with the next requests."""
        self.requests.get(self.flows, flow)

    def replace(self, flow: int) -> None:
        """Create a flow's entry with the next requests, in place of one with the same key."""
        self.requests.delete(self.flows, flow)
        self.requests.create(self.flows, flow)

    def observe(self, flow: int, entry: Entry, ticks: int) -> None:
        """Take in what conntrack says of an offloaded flow: its state, packets and bytes."""
        flows = self.flows
        counts = self.counters.members
        at = flows.u16[flow * 64 + MEMBER] * COUNTERS
        carried = flow * 32 + CARRIED
        packets = (entry.packets - flows.u32[carried]) & MASK32
        back_packets = (entry.back_packets - flows.u32[carried + 1]) & MASK32
        if packets or back_packets:
            counts[at] += packets
            counts[at + 2] += back_packets
            flows.u32[carried] = entry.packets & MASK32
            flows.u32[carried + 1] = entry.back_packets & MASK32
            base = flow * 16 + BYTES
            counts[at + 1] += entry.bytes - flows.u64[base]
            counts[at + 3] += entry.back_bytes - flows.u64[base + 1]
            flows.u64[base] = entry.bytes
            flows.u64[base + 1] = entry.back_bytes
            flows.u32[flow * 32 + SEEN] = ticks
        self.take_state(flow, entry, ticks)

    def advance(self, entry: Entry, ticks: int) -> None:
        """Take in what conntrack tells by itself of an entry that has changed: its state, but
        neither packets nor bytes."""
        flow = self.flow_of(entry)
        if flow:
            self.take_state(flow, entry, ticks)

    def take_state(self, flow: int, entry: Entry, ticks: int) -> None:
        """An offloaded flow is in the state of its entry, if that has one."""
        if entry.protocol == UDP:
            state = UDP_TWO_WAY if entry.status & SEEN_REPLY else UDP_ONE_WAY
            self.enter_state(flow, state, ticks)
        elif 0 <= entry.tcp_state < 10:
            self.enter_state(flow, KERNEL_STATES[entry.tcp_state], ticks)

    def enter_state(self, flow: int, state: int, ticks: int) -> None:
        """An offloaded flow is in this state from now on. One that has closed is kept no longer
        than others; the kernel would keep it for minutes."""
        before = self.flows.u8[flow * 128 + STATE]
        # Of a SYN that was sent again, conntrack makes no state of its own.
        if state == before or (state == SYN_SENT and before == SYN_RETRIED):
            return
        self.flows.u8[flow * 128 + STATE] = state
        queue = self.queue_of[state]
        self.flows.move(flow, queue if queue == self.closed_queue else self.offload_queue, ticks)
        if IS_ACTIVE[state] != IS_ACTIVE[before]:
            member = self.members.slots[self.flows.u16[flow * 64 + MEMBER]].member
            member.active += 1 if IS_ACTIVE[state] else -1

    def end(self, entry: Entry, certain: bool, ticks: int) -> int:
        """Conntrack has removed this entry: so its flow has ended. The number of a flow of which
        that is not `certain`, for conntrack to be asked; else 0."""
        flow = self.flow_of(entry)
        if not flow:
            return 0
        if not certain and (ticks - self.flows.u32[flow * 32 + CREATED]) & MASK32 < YOUNG:
            return flow
        opening = self.flows.u8[flow * 128 + STATE] in (SYN_SENT, SYN_RETRIED)
        self.observe(flow, entry, ticks)
        member = self.flows.u16[flow * 64 + MEMBER]
        if opening and not entry.status & SEEN_REPLY and entry.back_packets:
            # A RST as the first answer: conntrack removes the entry at once, and doesn't call the
            # connection answered (nf_conntrack_proto_tcp.c: nf_conntrack_tcp_packet).
            self.counters.add(member, REFUSED)
        elif self.flows.u8[flow * 128 + STATE] in (SYN_SENT, SYN_RETRIED):
            self.counters.add(member, SYN_TIMEOUTS)
        self.disown(flow)
        return 0

    def flow_of(self, entry: Entry) -> int:
        """The flow that conntrack carries by this entry, 0 if there is none."""
        flows = self.flows
        ref = flows.find(
            entry.src_high,
            entry.src_low,
            entry.dst_high,
            entry.dst_low,
            entry.ports,
            entry.protocol,
        )
        flow = ref >> 1
        if not ref or ref & 1 or not self.is_carried(flow):
            return 0
        # Of a client whose own port is taken towards the backend, conntrack gives it another.
        known = MASK32 if flows.u8[flow * 128 + FLAGS] & FULL else MASK32 ^ 0xFFFF
        if (entry.back_ports ^ flows.u32[flow * 32 + PORTS + 1]) & known:
            return 0
        return flow if entry.back_src_low == flows.u64[flow * 16 + 5] else 0

    def is_carried(self, flow: int) -> bool:
        """Whether conntrack carries the flow of that record number."""
        flows = self.flows
        return (
            flows.u8[flow * 128 + PROTOCOL] != 0
            and flows.u8[flow * 128 + FLAGS] & (OFFLOADED | ABANDONED) == OFFLOADED
        )

    def last_record(self) -> int:
        """The highest number of a flow."""
        return self.flows.last_record()

    def adopt(self, entry: Entry, worker: int, workers: int, ticks: int) -> bool:
        """Take over a flow that conntrack carries already, if it is one of a service's VIPs to one
        of its backends, and falls to this `worker` of several; whether it was."""
        if entry.protocol not in (TCP, UDP) or not entry.status & DESTINATION_NAT:
            return False
        if (entry.src_low + (entry.ports >> 16)) % workers != worker:
            return False
        pool = self.services.find(
            entry.dst_high, entry.dst_low, entry.protocol, entry.ports & 0xFFFF, False
        )
        if pool is None or not pool.offloaded:
            return False
        backend = _endpoint(entry.back_src_high, entry.back_src_low, entry.back_ports >> 16)
        member = pool.members.get(backend)
        flows = self.flows
        if member is None or flows.count == flows.capacity:
            return False
        if flows.find(
            entry.src_high,
            entry.src_low,
            entry.dst_high,
            entry.dst_low,
            entry.ports,
            entry.protocol,
        ) or flows.find(
            entry.back_src_high,
            entry.back_src_low,
            entry.back_dst_high,
            entry.back_dst_low,
            entry.back_ports,
            entry.protocol,
        ):
            return False
        slot = self.members.slots[member.index]
        flags = slot.flags | OFFLOADED
        if entry.family == AF_INET6:
            flags |= IPV6
        # Its port may be one that somebody else has given.
        source = (entry.back_dst_high, entry.back_dst_low)
        if pool.full and self.source_ports.claim(slot.target, source, entry.back_ports & 0xFFFF):
            flags |= FULL
        flow = flows.insert(
            entry.protocol,
            entry.src_high,
            entry.src_low,
            entry.dst_high,
            entry.dst_low,
            entry.ports,
            entry.back_src_high,
            entry.back_src_low,
            entry.back_dst_high,
            entry.back_dst_low,
            entry.back_ports,
            self.offload_queue,
            ticks,
        )
        flows.u8[flow * 128 + FLAGS] = flags
        flows.u8[flow * 128 + STATE] = SYN_SENT if entry.protocol == TCP else UDP_ONE_WAY
        flows.u16[flow * 64 + MEMBER] = member.index
        # What it has carried before is not ours to count.
        flows.u32[flow * 32 + CARRIED] = entry.packets & MASK32
        flows.u32[flow * 32 + CARRIED + 1] = entry.back_packets & MASK32
        flows.u64[flow * 16 + BYTES] = entry.bytes
        flows.u64[flow * 16 + BYTES + 1] = entry.back_bytes
        member.active += 1
        slot.held += 1
        self.observe(flow, entry, ticks)
        return True

    def adopt_reply(self, hook: int, info: int, ticks: int) -> int:
        """A flow for the parsed segment of a backend, whose connection was opened before this
        process started; 0 if it is not certain to which VIP."""
        packet = self.packet
        if packet.protocol != TCP or packet.flags == SYN or info & TRUNCATED:
            return 0
        client = _number(packet.version, packet.dst_high, packet.dst_low)
        client_port = packet.ports & 0xFFFF
        found = None
        backend = (packet.src_high, packet.src_low, packet.ports >> 16)
        vips = self._adoptable.get(backend, ())
        for pool, vip_high, vip_low, vip_port in vips:
            if hook != INPUT and pool.raw != (hook == WIRE):
                continue
            vip = _number(packet.version, vip_high, vip_low)
            flow = NewFlow(TCP, packet.version, client, client_port, vip, vip_port)
            member = pool.expected(flow)
            if member is None:
                continue
            slot = self.members.slots[member.index]
            if (slot.high, slot.low, slot.port) == backend:
                if found is not None:
                    return 0
                found = pool, slot, vip_high, vip_low, vip_port
        if found is None:
            return 0
        pool, slot, vip_high, vip_low, vip_port = found
        ports = client_port << 16 | vip_port
        if self.flows.find(packet.dst_high, packet.dst_low, vip_high, vip_low, ports, TCP):
            return 0
        key = (packet.dst_high, packet.dst_low, vip_high, vip_low, ports)
        if self.ended.holds(key, ticks):
            return 0
        if packet.flags & SYN:
            # Its SYN would have come this way: it went to the backend itself, as those of this
            # host's health checks do, and so will the rest.
            self.ended.remember(key, ticks)
            return 0
        return self.insert(
            pool,
            slot,
            packet.dst_high,
            packet.dst_low,
            vip_high,
            vip_low,
            ports,
            hook,
            ESTABLISHED,
            ticks,
        )

    def insert(
        self,
        pool: Pool,
        slot: "Slot",
        client_high: int,
        client_low: int,
        vip_high: int,
        vip_low: int,
        ports: int,
        hook: int,
        state: int,
        ticks: int,
    ) -> int:
        """Enter a flow to a pool's member, as `open` does. `ports` are client << 16 | VIP,
        `hook` is where the packet was met that opens it."""
        packet = self.packet
        flows = self.flows
        flags = slot.flags
        if packet.version == 6:
            flags |= IPV6
        if hook in (OUTPUT, INPUT):
            flags |= LOCAL_CLIENT
        if hook == WIRE:
            flags |= WIRED
        # A reply to this host can't be told from a copy of a frame by a port of ours: where frames
        # are used, this host's own clients keep their address.
        if pool.full and (hook == WIRE or not pool.raw):
            flags |= FULL
            source = self._allocate_source(slot)
            if source is None:
                self.refusal = self.counters.drop(NO_SOURCE_PORT)
                return 0
            source_high, source_low, source_port = source
        else:
            source_high, source_low = client_high, client_low
            source_port = ports >> 16
            clash = flows.find(
                slot.high,
                slot.low,
                source_high,
                source_low,
                slot.port << 16 | source_port,
                packet.protocol,
            )
            # A client may use one port towards two VIPs with the same backend behind them: a
            # connection keeps it until it closes, of datagrams the last ones have it.
            if clash:
                flow = clash >> 1
                if pool.one_packet and self.serves(flow, slot.index):
                    return flow
                if packet.protocol == TCP and not IS_REUSABLE[flows.u8[flow * 128 + STATE]]:
                    self.refusal = self.counters.drop(TUPLE_IN_USE)
                    return 0
                self.close(flow)
        if flows.count == flows.capacity:
            self.close(flows.victim())
            self.evicted += 1
        flow = flows.insert(
            packet.protocol,
            client_high,
            client_low,
            vip_high,
            vip_low,
            ports,
            slot.high,
            slot.low,
            source_high,
            source_low,
            slot.port << 16 | source_port,
            self.offload_queue if pool.offloaded else self.queue_of[state],
            ticks,
        )
        self.hops.clients[flow] = 0
        if pool.offloaded:
            flags |= OFFLOADED
            if state == NEW:
                state = SYN_SENT if packet.flags == SYN else ADOPTED
        flows.u8[flow * 128 + FLAGS] = flags
        flows.u8[flow * 128 + STATE] = state
        if IS_ACTIVE[state]:
            slot.member.active += 1
        if pool.one_packet:
            flows.hide(flow)
        if pool.responses is not None:
            flows.u8[flow * 128 + FLAGS] |= COUNTED
            flows.u16[flow * 64 + RESPONSES] = pool.responses
        flows.u16[flow * 64 + MEMBER] = slot.index
        self.settle(flow)
        slot.held += 1
        self.counters.add(slot.index, OPENED)
        if self.opened is not None:
            self.opened.append(flow)
        return flow

    def settle(self, flow: int) -> None:
        """Compute a flow's checksum deltas from its keys."""
        flows = self.flows
        at = flow * 16
        goes = words(flows.u64[at], flows.u64[at + 1]) + words(flows.u64[at + 2], flows.u64[at + 3])
        comes = words(flows.u64[at + 4], flows.u64[at + 5]) + words(
            flows.u64[at + 6], flows.u64[at + 7]
        )
        ports = flows.u32[flow * 32 + PORTS]
        back = flows.u32[flow * 32 + PORTS + 1]
        # Each of the 16 words that go is complemented; the mapping prefixes cancel out.
        address_delta = fold(16 * 0xFFFF - goes + comes)
        ports_go = (ports >> 16) + (ports & 0xFFFF)
        ports_come = (back >> 16) + (back & 0xFFFF)
        flows.u16[flow * 64 + ADDRESS_DELTA] = address_delta
        flows.u16[flow * 64 + TRANSPORT_DELTA] = fold(
            address_delta + 2 * 0xFFFF - ports_go + ports_come
        )

    def track(self, flow: int, reply: int, ticks: int) -> None:
        """Take the parsed packet into account: state, timeout, expected sequence numbers."""
        packet = self.packet
        flows = self.flows
        state = flows.u8[flow * 128 + STATE]
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
            flows.u32[flow * 32 + EXPECTED + reply] = packet.acknowledgement
        if following == state:
            flows.touch(flow, ticks)
            return
        flows.u8[flow * 128 + STATE] = following
        flows.move(flow, self.queue_of[following], ticks)
        member = flows.u16[flow * 64 + MEMBER]
        if following == SYN_RETRIED:
            self.counters.add(member, SYN_RETRIES)
        elif following == CLOSED and reply:
            refused = state in (SYN_SENT, SYN_RETRIED)
            self.counters.add(member, REFUSED if refused else RESETS)
        if IS_ACTIVE[following] != IS_ACTIVE[state]:
            pool_member = self.members.slots[member].member
            pool_member.active += 1 if IS_ACTIVE[following] else -1

    def resets_another(self, flow: int, state: int) -> bool:
        """Whether the client's parsed RST is of the connection that it had by the same port before.

        A late packet of that one, met by the client's new SYN, makes it send such a RST, and then
        the SYN again: if the flow were closed, that would open it at another backend, and cut the
        client off from the one whose SYN-ACK is under way. What nobody has answered needs no RST,
        and the sequence numbers of a new connection begin beyond those of the old one.
        """
        if state in (SYN_SENT, SYN_RETRIED):
            return True
        expected = self.flows.u32[flow * 32 + EXPECTED + 1]
        return state == SYN_RECEIVED and (self.packet.sequence - expected) & MASK32 >= 1 << 31

    def route(self, flow: int, reply: int, length: int, ticks: int) -> bool:
        """Find the parsed packet's next hop, for `hops.goes`; False if it can't be sent there, and
        `refusal` is the verdict."""
        packet = self.packet
        flows = self.flows
        hops = self.hops
        at = flow * 16
        if reply:
            hop = hops.back(flow, flows.u64[at], flows.u64[at + 1])
            if not hop:
                self.refusal = self.counters.drop(NO_NEXT_HOP)
                return False
        else:
            hops.came_from(flow, flows.u64[at], flows.u64[at + 1])
            hop = hops.members[flows.u16[flow * 64 + MEMBER]]
        if packet.hops_left() <= 1:
            self.expire(flows.u64[at + 2], flows.u64[at + 3], ticks)
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
        self.answers.limit(flows.u64[at + 2], flows.u64[at + 3], mtu, ticks)
        return False

    def expire(self, high: int, low: int, ticks: int) -> int:
        """Drop the parsed packet, whose hops are used up, and say so from this address."""
        self.refusal = self.counters.drop(TTL_EXCEEDED)
        self.answers.expire(high, low, ticks)
        return 0

    def limit_segments(self, flow: int, info: int) -> None:
        """Lower the segment size that the parsed SYN asks for to what its service allows."""
        limit = self.members.slots[self.flows.u16[flow * 64 + MEMBER]].pool.service.mss
        if limit is not None:
            lower(self.packet, limit, not info & NOT_READY)

    def serves(self, flow: int, member: int) -> bool:
        """Whether the parsed datagram may join this one-packet flow of the same client and
        backend: to which VIP it went is all that could differ."""
        packet = self.packet
        flows = self.flows
        return (
            flows.u16[flow * 64 + MEMBER] == member
            and flows.u32[flow * 32 + PORTS] == packet.ports
            and flows.u64[flow * 16 + 2] == packet.dst_high
            and flows.u64[flow * 16 + 3] == packet.dst_low
        )

    def answered(self, flow: int, reply: int) -> bool:
        """Count a datagram of a flow that expects a number of responses; True if it was the
        last one."""
        flows = self.flows
        if not flows.u8[flow * 128 + FLAGS] & COUNTED:
            return False
        awaited = flows.u32[flow * 32 + AWAITED]
        if not reply:
            awaited = min(awaited + flows.u16[flow * 64 + RESPONSES], MASK32)
        elif awaited:
            awaited -= 1
        flows.u32[flow * 32 + AWAITED] = awaited
        return not awaited

    def close(self, flow: int) -> None:
        """Forget a flow and give back what it held."""
        flows = self.flows
        slot = self.members.slots[flows.u16[flow * 64 + MEMBER]]
        if self.is_carried(flow):
            self.requests.delete(flows, flow)
        if IS_ACTIVE[flows.u8[flow * 128 + STATE]]:
            slot.member.active -= 1
        if flows.u8[flow * 128 + FLAGS] & FULL:
            self.source_ports.release(
                slot.target,
                (flows.u64[flow * 16 + 6], flows.u64[flow * 16 + 7]),
                flows.u32[flow * 32 + PORTS + 1] & 0xFFFF,
            )
        flows.remove(flow)
        self.members.let_go(slot)

    def refuse(self, reason: int, ticks: int) -> int:
        """Drop the parsed packet, and answer it with a RST or ICMP port unreachable if it is
        one that is answered."""
        self.refusal = self.counters.drop(reason)
        self.answers.refuse(ticks)
        return 0

    def count(self, flow: int, reply: int, length: int) -> None:
        """Count a translated packet."""
        flows = self.flows
        counters = self.counters
        at = flows.u16[flow * 64 + MEMBER] * COUNTERS + 2 * reply
        counters.members[at] += 1
        counters.members[at + 1] += length
        flows.u64[flow * 16 + BYTES + reply] += length
        counters.reasons[reply] += 1

    def handle_fragment(self, length: int, ticks: int) -> int:
        """Decide on the parsed fragment, which is not its packet's first: it goes where that one
        went."""
        packet = self.packet
        flows = self.flows
        ref = self.fragments.find(packet, ticks)
        flow = ref >> 1
        reply = ref & 1
        at = flow * 16 + reply * 4
        # The flow may have ended, and its record be another's.
        if (
            not ref
            or flows.u8[flow * 128 + PROTOCOL] != packet.protocol
            or flows.u64[at] != packet.src_high
            or flows.u64[at + 1] != packet.src_low
            or flows.u64[at + 2] != packet.dst_high
            or flows.u64[at + 3] != packet.dst_low
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

    def knows(self, offset: int, length: int) -> bool:
        """Whether a packet that can't be handled is of a flow, as far as it can be read."""
        packet = self.packet
        version = self.buffer[offset] >> 4
        if not packet.parse_quoted(version, offset, offset + length):
            return False
        return bool(
            self.flows.find(
                packet.src_high,
                packet.src_low,
                packet.dst_high,
                packet.dst_low,
                packet.ports,
                packet.protocol,
            )
        )

    # Pools and members

    def _index_adoptable(self) -> None:
        """By backend, the VIPs whose connections can be recognised by their replies: of those
        that stand for many addresses or ports, hardly any could."""
        adoptable: dict[tuple[int, int, int], list[tuple[Pool, int, int, int]]] = {}
        for pool in self.services.pools.values():
            if not pool.adopts or pool.offloaded or pool.service.protocol is not Protocol.TCP:
                continue
            for member in pool.members.values():
                slot = self.members.slots[member.index]
                vips = adoptable.setdefault((slot.high, slot.low, slot.port), [])
                for vip in pool.service.vips:
                    if not vip.wildcard and vip.last_port - vip.first_port < MAX_ADOPTED_RANGE:
                        high, low = words_of(vip.address)
                        vips.extend(
                            (pool, high, low, port)
                            for port in range(vip.first_port, vip.last_port + 1)
                        )
        self._adoptable = adoptable

    def _allocate_source(self, slot: "Slot") -> tuple[int, int, int] | None:
        """A source address and port towards a backend; a closing flow makes room if need be."""
        flows = self.flows
        found = self.source_ports.allocate(slot.target, slot.sources)
        closing = flows.head[self.closed_queue]
        for _ in range(MAX_PORT_RECLAIMS):
            if found is not None or not closing:
                break
            following = flows.u32[closing * 32 + NEXT]
            holder = self.members.slots[flows.u16[closing * 64 + MEMBER]]
            if flows.u8[closing * 128 + FLAGS] & FULL and holder.target == slot.target:
                self.close(closing)
                found = self.source_ports.allocate(slot.target, slot.sources)
            closing = following
        if found is None:
            return None
        (high, low), port = found
        return high, low, port

    # For people

    def list_flows(self, now: float, first: int = 1, limit: int = 1000) -> Iterator[FlowView]:
        """Up to `limit` flows from record `first` on, in no particular order."""
        for flow in range(first, self.flows.last_record() + 1):
            if limit <= 0:
                return
            if self.flows.u8[flow * 128 + PROTOCOL]:
                limit -= 1
                yield self.view(flow, now)

    def view(self, flow: int, now: float) -> FlowView:
        """A flow as people see it."""
        ((_, _, view),) = read_flows(self.copy_records(flow, 1, now))
        return view

    def copy_records(self, first: int, count: int, now: float) -> FlowRecords:
        """The flow table's records from `first` on, `count` at most."""
        end = self.flows.last_record() + 1
        last = max(first, min(first + count, end))
        records = bytes(self.flows.u8[first * 128 : last * 128])
        members = set(memoryview(records).cast("H")[MEMBER::64])
        services = {
            index: self.members.slots[index].pool.service.name
            for index in members
            if index < len(self.members.slots)
        }
        return FlowRecords(records, first, end, services, now)

    def end_flow(self, flow: int, key: bytes, reset: bool, now: float) -> bool:
        """End the flow of that record number if it still is the one with that key (see
        `read_flows`); whether it was. With `reset`, both ends of a connection get a RST. What
        they still send is refused, where it would be adopted otherwise."""
        flows = self.flows
        if not 0 < flow <= flows.last_record():
            return False
        if bytes(flows.u8[flow * 128 : flow * 128 + KEY_BYTES]) != key:
            return False
        if flows.u8[flow * 128 + PROTOCOL] == TCP:
            self._remember_ended(flow, int(now * 10))
            if reset and self.is_carried(flow):
                self._abandon(flow, int(now * 10))
                return True
            if reset:
                self._reset_both(flow)
        self.close(flow)
        return True

    def _abandon(self, flow: int, ticks: int) -> None:
        """Take a connection away from conntrack and make both ends say where they are, so that
        their answer can be refused: of the sequence numbers nothing is known here."""
        self.requests.delete(self.flows, flow)
        self.enter_state(flow, CLOSED, ticks)
        self.flows.u8[flow * 128 + FLAGS] |= ABANDONED
        for side in (0, 1):
            self.answers.add(flow_probe(*self._turned(flow, side)))

    def _remember_ended(self, flow: int, ticks: int) -> None:
        flows = self.flows
        at = flow * 16
        client, vip = (flows.u64[at], flows.u64[at + 1]), (flows.u64[at + 2], flows.u64[at + 3])
        self.ended.remember((*client, *vip, flows.u32[flow * 32 + PORTS]), ticks)

    def _reset_both(self, flow: int) -> None:
        for side in (0, 1):
            expected = self.flows.u32[flow * 32 + EXPECTED + side]
            self.answers.add(flow_reset(*self._turned(flow, side), expected))

    def _turned(self, flow: int, side: int) -> tuple[int, tuple[int, int], tuple[int, int], int]:
        """The version, source, destination and ports of packets that answer one side's."""
        flows = self.flows
        at = flow * 16 + 4 * side
        ports = flows.u32[flow * 32 + PORTS + side]
        return (
            6 if flows.u8[flow * 128 + FLAGS] & IPV6 else 4,
            (flows.u64[at + 2], flows.u64[at + 3]),
            (flows.u64[at], flows.u64[at + 1]),
            (ports & 0xFFFF) << 16 | ports >> 16,
        )

    def take_scheduler_errors(self) -> list[tuple[str, str]]:
        """The first error of each user's scheduler since it was loaded, once: service, error."""
        found = []
        for service, scheduler in self.services.user_schedulers:
            if scheduler.first_error and not scheduler.told:
                scheduler.told = True
                found.append((service, scheduler.first_error))
        return found

    def take_opened(self, now: float) -> list[FlowView]:
        """Flows opened since the last call, if `opened` is a list (it is None by default)."""
        if not self.opened:
            return []
        views = [self.view(flow, now) for flow in self.opened if self._is_open(flow)]
        self.opened = []
        return views

    def _is_open(self, flow: int) -> bool:
        return bool(self.flows.u8[flow * 128 + PROTOCOL])

    def outcomes(self) -> dict[str, tuple[int, ...]]:
        """By service, for each of its backends in order: the flows opened since it joined, and
        those of them that it refused or left without an answer. Cheap, to be asked often."""
        counts = self.counters.members
        found: dict[str, tuple[int, ...]] = {}
        for name, pool in self.services.pools.items():
            outcomes: list[int] = []
            for member in pool.members.values():
                at = member.index * COUNTERS
                outcomes += (counts[at + OPENED], counts[at + REFUSED] + counts[at + SYN_RETRIES])
            found[name] = tuple(outcomes)
        return found

    def statistics(self) -> Statistics:
        """A snapshot of all counts."""
        reasons = {reason: self.counters.reasons[int(reason)] for reason in Reason}
        errors = dict.fromkeys((service for service, _ in self.services.user_schedulers), 0)
        for service, scheduler in self.services.user_schedulers:
            errors[service] += scheduler.errors
        counts = self.counters.members
        backends = []
        for pool in self.services.pools.values():
            for member in pool.members.values():
                at = member.index * COUNTERS
                backends.append(
                    BackendStats(
                        service=pool.service.name,
                        backend=member.backend,
                        active=member.active,
                        flows=counts[at + OPENED],
                        resets=counts[at + RESETS],
                        refused=counts[at + REFUSED],
                        syn_timeouts=counts[at + SYN_TIMEOUTS],
                        syn_retries=counts[at + SYN_RETRIES],
                        packets_forward=counts[at],
                        bytes_forward=counts[at + 1],
                        packets_reply=counts[at + 2],
                        bytes_reply=counts[at + 3],
                    )
                )
        return Statistics(
            received=sum(reasons.values()),
            translated=sum(reasons[reason] for reason in TRANSLATED),
            passed=sum(reasons[reason] for reason in PASSED),
            dropped=sum(reasons[reason] for reason in DROPPED),
            reasons=reasons,
            flows=self.flows.count,
            flows_by_class={
                kind: self.flows.length[queue] for queue, kind in enumerate(TimeoutClass)
            },
            capacity=self.flows.capacity,
            evicted=self.evicted,
            scheduler_errors=errors,
            backends=tuple(backends),
            leaving=tuple(
                (slot.pool.service.name, slot.member.backend)
                for slot in self.members.slots
                if slot.held and slot.pool.members.get(slot.member.endpoint) is not slot.member
            ),
        )


def read_flows(page: FlowRecords) -> Iterator[tuple[int, bytes, FlowView]]:
    """The flows of a copied part of the table: record number, key, and what people see."""
    memory = memoryview(page.records)
    u64, u32, u16 = memory.cast("Q"), memory.cast("I"), memory.cast("H")
    ticks = int(page.now * 10)
    for flow in range(len(memory) // 128):
        protocol = memory[flow * 128 + PROTOCOL]
        if not protocol:
            continue
        at = flow * 16
        forward = u32[flow * 32 + PORTS]
        back = u32[flow * 32 + PORTS + 1]
        yield (
            page.first + flow,
            page.records[flow * 128 : flow * 128 + KEY_BYTES],
            FlowView(
                service=page.services[u16[flow * 64 + MEMBER]],
                protocol=Protocol(protocol),
                state=State(memory[flow * 128 + STATE]),
                client=_endpoint(u64[at], u64[at + 1], forward >> 16),
                vip=_endpoint(u64[at + 2], u64[at + 3], forward & 0xFFFF),
                backend=_endpoint(u64[at + 4], u64[at + 5], back >> 16),
                source=_endpoint(u64[at + 6], u64[at + 7], back & 0xFFFF),
                age=(ticks - u32[flow * 32 + CREATED]) / 10,
                idle=(ticks - u32[flow * 32 + SEEN]) / 10,
                bytes_forward=u64[at + BYTES],
                bytes_reply=u64[at + BYTES + 1],
            ),
        )


def _number(version: int, high: int, low: int) -> int:
    return low & MASK32 if version == 4 else high << 64 | low


def _endpoint(high: int, low: int, port: int) -> Endpoint:
    return Endpoint(address_of(high, low), port)
