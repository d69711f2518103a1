"""Opens and closes flows, and allocates and releases what they hold.

Beside its record a flow holds a share of its member's load, in `full` NAT a source port, and with
the datapath offload a conntrack entry. Times are in ticks of 0.1 s.
"""

import cython

from featherlb.core.flows.announcer import Announcer
from featherlb.core.flows.carried import Carried
from featherlb.core.flows.counters import Counters
from featherlb.core.flows.flight_recorder import FlightRecorder
from featherlb.core.flows.kernel import Commands
from featherlb.core.flows.members import Members, PoolMember
from featherlb.core.flows.next_hops import NextHops
from featherlb.core.flows.port_holders import PortHolders, Rank
from featherlb.core.flows.snat_ports import PortAllocator
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import ACTIVE, REUSABLE, TIMEOUT_CLASS, State, TimeoutClass
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import NewFlow
from featherlb.model import FIRST_UNPRIVILEGED_PORT, Hook, Service, Timeouts
from featherlb.model.reason import Reason
from featherlb.model.ticks import TICKS_PER_SECOND
from featherlb.net.addresses import address_of
from featherlb.net.packet import Packet
from featherlb.net.protocols import SYN, TCP

if not cython.compiled:
    from featherlb.core.flows.counters import PORTS_RECLAIMED, RESETS, SYN_TIMEOUTS
    from featherlb.core.flows.entry import (
        ENTRY_BACKEND_SPOKE,
        ENTRY_CLIENT_SPOKE,
        RESET_BY_BACKEND,
        STATE_MASK,
    )
    from featherlb.core.flows.flight_recorder import CHANGED, ENDED, EVICTED, EXPIRED, NEW_FLOW
    from featherlb.core.flows.port_holders import RANK_OF
    from featherlb.core.flows.record import (
        ABANDONED,
        BACKEND_SPOKE,
        CARRIED,
        CLIENT_SPOKE,
        COUNTED,
        FULL,
        IPV6,
        LOCAL_CLIENT,
        OFFLOADED,
        UNSURE,
        WIRED,
        Record,
    )
    from featherlb.core.flows.windows import are_acknowledged, start_unsure
    from featherlb.net.checksum import fold, words
    from featherlb.net.packet import MASK32

MAX_NOTED = 4096
"""Flows noted for hooks that wait to be told."""
MAX_EXPIRED_AT_ONCE = 1024
"""Flows that one call of `expire` ends at most, so that it never delays packets for long."""
MAX_PORT_RECLAIMS = 64
"""Flows that are closed for the source port of a new one, at most, before that one is refused."""
RETRANSMITTED = 2
"""Ticks after which a second SYN is a retransmission; before, the network has duplicated it, or
somebody wants to have the backend thought silent."""
PROMPT = TICKS_PER_SECOND
"""Ticks within which a backend answers, and a client retransmits its SYN (RFC 6298 section 2.1)."""
SCARCE = 0.125
"""The part of its timeout that is left to a half-open flow where source ports are scarce: 3.75 s,
two retransmissions of its SYN."""
OPENING = 0.5
"""Seconds after which an offloaded connection should have opened: where most have not, it counts as
half-open."""
MAX_REVIEWED = 64
"""Offloaded connections that the kernel is asked about after that time, per call of `expire`. The
others are judged by these."""
MAX_BALANCE = MAX_REVIEWED // 2
"""Of the latest ones, half-open less open: as large as that a majority shows at once."""
SILENCE = 0.125
"""The part of its timeout after which an established connection is silent."""
LONG_SILENCE = 60 * TICKS_PER_SECOND
"""Ticks after which a connection that one end has closed counts as over. Linux keeps no FIN-WAIT-2
for longer (tcp_fin_timeout in Documentation/networking/ip-sysctl.rst)."""
FOREVER = 1 << 28
"""Seconds, longer than any flow: an offloaded flow ends when the kernel removes it."""

Noted = tuple[bool, Service, bytes, int]
"""Whether a flow has opened, its service, its record, and the ticks when it opened."""

# Sets of states as flat bytes, for the compiled build.
IS_ACTIVE = memoryview(bytearray(state in ACTIVE for state in State))
IS_REUSABLE = memoryview(bytearray(state in REUSABLE for state in State))
IS_ENDED = memoryview(bytearray(state in (State.CLOSING, State.CLOSED) for state in State))

YIELDS_CLOSING = int(Rank.CLOSING)
YIELDS_UNANSWERED = int(Rank.UNANSWERED)
YIELDS_ANSWERED = int(Rank.ANSWERED)

NEW = int(State.NEW)
SYN_SENT = int(State.SYN_SENT)
SYN_RETRIED = int(State.SYN_RETRIED)
CLOSING = int(State.CLOSING)
CLOSED = int(State.CLOSED)
ADOPTED = int(State.ADOPTED)
REPLACED = int(State.REPLACED)
UDP_ONE_WAY = int(State.UDP_ONE_WAY)
REPLICA = int(State.REPLICA)
ESTABLISHED = int(State.ESTABLISHED)
OUTPUT = int(Hook.OUTPUT)
WIRE = int(Hook.WIRE)
NO_SOURCE_PORT = int(Reason.NO_SOURCE_PORT)
TUPLE_IN_USE = int(Reason.TUPLE_IN_USE)
UNPRIVILEGED = FIRST_UNPRIVILEGED_PORT


class Lifecycle:
    """Opens flows, changes their states and closes them.

    `evicted` counts the flows evicted from a full table, `unanswered` those of datagrams that have
    no answer yet. `opened` collects the numbers of new flows
    if it is a list (by default None). `noted` does so with what hooks are to be told, and `missed`
    counts what was too much.
    """

    def __init__(
        self,
        flows: FlowTable,
        packet: Packet,
        next_hops: NextHops,
        members: Members,
        counters: Counters,
        source_ports: PortAllocator,
        port_holders: PortHolders,
        commands: Commands,
        carried: Carried,
        announcer: Announcer,
        recorder: FlightRecorder,
        timeouts: Timeouts,
    ) -> None:
        """`packet` is the one that is parsed before `open` is called."""
        self._flows = flows
        self._announcer = announcer
        self._packet = packet
        self._next_hops = next_hops
        self._members = members
        self._counters = counters
        self._source_ports = source_ports
        self._port_holders = port_holders
        self._commands = commands
        self._carried = carried
        self._recorder = recorder
        seconds = {
            TimeoutClass.HALF_OPEN: timeouts.half_open,
            TimeoutClass.UDP_ONE_WAY: timeouts.udp_one_way,
            TimeoutClass.CLOSED: timeouts.closed,
            TimeoutClass.FIN: timeouts.fin,
            TimeoutClass.UDP_TWO_WAY: timeouts.udp_two_way,
            TimeoutClass.ESTABLISHED: timeouts.established * SILENCE,
            TimeoutClass.OFFLOADED: FOREVER,
        }
        queues = {kind: flows.add_queue(int(kind), seconds[kind]) for kind in TimeoutClass}
        self._queue_of = memoryview(bytearray(queues[TIMEOUT_CLASS[state]] for state in State))
        self.closed_queue = queues[TimeoutClass.CLOSED]
        self.half_open_queue = queues[TimeoutClass.HALF_OPEN]
        self.offload_queue = queues[TimeoutClass.OFFLOADED]
        # Offloaded connections of which it isn't known yet whether they open.
        self.opening_queue = flows.add_queue(int(TimeoutClass.HALF_OPEN), OPENING)
        self._balance = 0  # of offloaded connections: more are half-open, or fewer
        # Established connections wait in two queues: the second one is for those that are silent.
        self.established_queue = queues[TimeoutClass.ESTABLISHED]
        self.silent_queue = flows.add_queue(int(TimeoutClass.ESTABLISHED), timeouts.established)
        # Those of other nodes, which are theirs to ask whether they are alive.
        self.replica_queue = flows.add_queue(int(TimeoutClass.ESTABLISHED), timeouts.established)
        self._silent: list[int] = []
        self._scarce_tcp = int(timeouts.half_open * SCARCE * TICKS_PER_SECOND)
        self._scarce_udp = int(timeouts.udp_one_way * SCARCE * TICKS_PER_SECOND)
        self.evicted = 0
        self.unanswered = 0
        self.opened: list[int] | None = None
        self.noted: list[Noted] | None = None
        self.missed = 0

    def open(
        self,
        pool: Pool,
        member: PoolMember,
        client_high: int,
        client_low: int,
        vip_high: int,
        vip_low: int,
        ports: int,
        hook: int,
        source_port: int,
        state: int,
        ticks: int,
    ) -> int:
        """Open a flow for the parsed packet, to a pool's member; returns its number, or the
        negative `Reason` why that is not possible. `ports` are client << 16 | VIP, `hook` is the
        one where the client's packets arrive. The backend sees `source_port` if it sees the client
        (`keeps_client`), else one that is allocated here."""
        packet = self._packet
        flows = self._flows
        flags = member.flags
        backend_port = member.port_for(ports & 0xFFFF)
        if packet.version == 6:
            flags |= IPV6
        if hook == OUTPUT:
            flags |= LOCAL_CLIENT
        if hook == WIRE:
            flags |= WIRED
        if not self.keeps_client(pool, hook):
            flags |= FULL
            privileged = ports >> 16 < UNPRIVILEGED
            source = self.allocate_source(member, backend_port, privileged, ticks)
            if source is None:
                return -NO_SOURCE_PORT
            source_high, source_low, source_port = source
        else:
            source_high, source_low = client_high, client_low
            clash = flows.find(
                member.high,
                member.low,
                source_high,
                source_low,
                backend_port << 16 | source_port,
                packet.protocol,
            )
            # A client may use one port towards two VIPs that share a backend: a flow keeps the
            # tuple until it closes. Single datagrams take it, as their replies are near.
            if clash:
                flow = clash >> 1
                if flows.at(flow).flags & CARRIED:
                    self.catch_up(flow)
                if pool.one_packet:
                    if self.serves(flow, member.id):
                        return flow
                elif not self.is_over(flows.at(flow), ticks):
                    return -TUPLE_IN_USE
                self.close(flow)
        if flows.count == flows.capacity:
            victim = flows.victim()
            while flows.at(victim).flags & CARRIED and self.catch_up(victim):
                victim = flows.victim()
            self.end(victim, EVICTED)
            self.evicted += 1
        flow = flows.insert(
            packet.protocol,
            client_high,
            client_low,
            vip_high,
            vip_low,
            ports,
            member.high,
            member.low,
            source_high,
            source_low,
            backend_port << 16 | source_port,
            self.offloaded_queue(state) if pool.offloaded else self._queue_of[state],
            ticks,
        )
        self._next_hops.clients[flow] = 0
        if pool.offloaded:
            flags |= OFFLOADED
            if state == NEW:
                state = SYN_SENT if packet.flags == SYN else ADOPTED
        record = flows.at(flow)
        if pool.responses is not None:
            flags |= COUNTED
            record.responses = pool.responses
        record.flags = flags
        record.state = state
        record.member_id = member.id
        if flags & FULL:
            self.rank(flow)
        if packet.protocol == TCP and packet.flags != SYN:
            start_unsure(record)
        self.compute_deltas(flow)
        if pool.one_packet:
            flows.hide(flow)
        if IS_ACTIVE[state]:
            self.count_active(member, record, 1)
        member.flows += 1
        if self._announcer.node:
            self._announcer.open(flow, pool.sync)
        self._counters.open(member.id, client_high, client_low)
        self._recorder.note(NEW_FLOW, record, state)
        if self.opened is not None:
            self.opened.append(flow)
        if self.noted is not None:
            self.note(flow, True)
        return flow

    def note(self, flow: int, opened: bool) -> None:
        """Note a flow that has opened, or is about to end, for the hooks of its service."""
        noted = self.noted
        assert noted is not None
        service = self._members.by_id[self._flows.at(flow).member_id].pool.service
        if not (service.on_open if opened else service.on_close):
            return
        if len(noted) >= MAX_NOTED:
            self.missed += 1
            return
        record = self._flows.records.copy(flow, flow + 1)
        noted.append((opened, service, record, self._flows.created[flow]))

    def keeps_client(self, pool: Pool, hook: int) -> bool:
        """Whether the backends see the address of a client whose packets arrive at this hook. A
        reply to this host and the kernel's copy of a frame would have the same SNAT ports: with
        frames, clients on this host keep their address even in `full` mode."""
        return not pool.full or (pool.raw and hook != WIRE)

    def serves(self, flow: int, member_id: int) -> bool:
        """Whether the parsed datagram belongs to this one-packet flow of the same client and
        backend: only the VIP can differ."""
        packet = self._packet
        record = self._flows.at(flow)
        return bool(
            record.member_id == member_id
            and record.client_port == packet.ports >> 16
            and record.vip_port == packet.ports & 0xFFFF
            and record.vip_high == packet.dst_high
            and record.vip_low == packet.dst_low
        )

    def allocate_source(
        self, member: PoolMember, port: int, privileged: bool, ticks: int
    ) -> tuple[int, int, int] | None:
        """A source address and port towards this port of a backend, privileged if the client's is:
        the server may insist on it. When those run out, any port is better than none."""
        found = self.find_source(member, port, privileged, ticks)
        if found is None and privileged:
            found = self.find_source(member, port, False, ticks)
        return found

    def find_source(
        self, member: PoolMember, port: int, privileged: bool, ticks: int
    ) -> tuple[int, int, int] | None:
        """A source address and port of one kind, if need be that of a flow which isn't open."""
        found = self.allocate_free(member, port, privileged)
        for _ in range(MAX_PORT_RECLAIMS):
            if found is not None:
                break
            flow = self.find_holder(member.holders, privileged, ticks)
            if not flow:
                return None
            self.reclaim(flow)
            found = self.allocate_free(member, port, privileged)
        if found is None:
            return None
        (high, low), source_port = found
        if self._source_ports.is_scarce(member.target, (high, low), privileged):
            self.relieve(member.holders, privileged, ticks)
        return high, low, source_port

    def find_holder(self, holders: int, privileged: bool, ticks: int) -> int:
        """The flow that gives up its port towards this target, 0 if all are open: one that is
        closing, else one that the backend should have answered by now, else the one that has been
        half-open for longest. In a flood, the backend answers spoofed SYNs like any other; what it
        has not answered yet is the newest, a real client's among them."""
        created = self._flows.created
        closing = self._port_holders.first(holders, privileged, YIELDS_CLOSING)
        if closing:
            return closing
        unanswered = self._port_holders.first(holders, privileged, YIELDS_UNANSWERED)
        answered = self._port_holders.first(holders, privileged, YIELDS_ANSWERED)
        if not unanswered or not answered:
            return unanswered or answered
        if ticks - created[unanswered] > PROMPT or created[unanswered] <= created[answered]:
            return unanswered
        return answered

    def relieve(self, holders: int, privileged: bool, ticks: int) -> None:
        """Where few ports are left, close the flows that have been half-open for too long now: two
        of each kind at most, and so faster than new flows take their ports."""
        for rank in (YIELDS_UNANSWERED, YIELDS_ANSWERED):
            for _ in range(2):
                flow = self._port_holders.first(holders, privileged, rank)
                if not flow:
                    break
                udp = self._flows.at(flow).protocol != TCP
                timeout = self._scarce_udp if udp else self._scarce_tcp
                if ticks - self._flows.created[flow] < timeout:
                    break
                self.reclaim(flow)

    def reclaim(self, flow: int) -> None:
        """Close a flow for its source port, unless it turns out to be open by now."""
        record = self._flows.at(flow)
        if record.flags & CARRIED and self.catch_up(flow) and not RANK_OF[record.state]:
            return
        if RANK_OF[record.state] != YIELDS_CLOSING:
            self._counters.add(record.member_id, PORTS_RECLAIMED)
        self.end(flow, EVICTED)

    def rank(self, flow: int) -> None:
        """Note when a flow with a source port would have to give it up."""
        record = self._flows.at(flow)
        member = self._members.by_id[record.member_id]
        if member.peer_sources and ((record.source_high, record.source_low) in member.peer_sources):
            return  # no flow of this node could use it
        privileged = record.source_port < UNPRIVILEGED
        self._port_holders.place(flow, member.holders, privileged, RANK_OF[record.state])

    def allocate_free(
        self, member: PoolMember, port: int, privileged: bool
    ) -> tuple[tuple[int, int], int] | None:
        """As `PortAllocator.allocate`, but none that a flow of another target has: a backend of
        many ports and one of a single port can be the same host."""
        held = []
        for _ in range(MAX_PORT_RECLAIMS):
            found = self._source_ports.allocate(member.target, member.sources, privileged)
            if found is None:
                break
            (high, low), source_port = found
            if not self._flows.find(
                member.high, member.low, high, low, port << 16 | source_port, self._packet.protocol
            ):
                break
            held.append(found)
            found = None
        for source, source_port in held:
            self._source_ports.release(member.target, source, source_port)
        return found

    def compute_deltas(self, flow: int) -> None:
        """Compute a flow's checksum deltas from its addresses and ports."""
        record = self._flows.at(flow)
        before = words(record.client_high, record.client_low) + words(
            record.vip_high, record.vip_low
        )
        after = words(record.source_high, record.source_low) + words(
            record.backend_high, record.backend_low
        )
        # Each of the 16 old words is complemented; the mapping prefixes cancel out.
        address_delta = fold(16 * 0xFFFF - before + after)
        ports_before = record.client_port + record.vip_port
        ports_after = record.source_port + record.backend_port
        record.address_delta = address_delta
        record.transport_delta = fold(address_delta + 2 * 0xFFFF - ports_before + ports_after)

    def enter(self, flow: int, state: int, ticks: int) -> None:
        """Change a flow's state, and with it the timeout and the member's load."""
        record = self._flows.at(flow)
        before = record.state
        record.state = state
        if before not in (state, NEW):  # that it opens has been noted
            self._recorder.note(CHANGED, record, state)
        if record.flags & (OFFLOADED | ABANDONED) == OFFLOADED:
            queue = self.offloaded_queue(state)
        else:
            queue = self._queue_of[state]
        self._flows.move(flow, queue, ticks)
        if record.flags & FULL:
            self.rank(flow)
        if before == UDP_ONE_WAY and state != before:
            self.unanswered -= 1
        if IS_ACTIVE[state] != IS_ACTIVE[before]:
            member = self._members.by_id[record.member_id]
            self.count_active(member, record, 1 if IS_ACTIVE[state] else -1)
        if self._announcer.node:
            if state == ESTABLISHED:
                self._announcer.establish(flow)
            elif IS_ENDED[state]:  # it is no load any more
                self._announcer.close(flow)

    def enter_replica(self, flow: int, state: int, ticks: int) -> None:
        """Note that another node has the flow, in this state there, since its last packet."""
        self.enter(flow, REPLICA, ticks)
        queue = self._queue_of[state]
        self._flows.move(
            flow, self.replica_queue if queue == self.established_queue else queue, ticks
        )

    def take_over(self, flow: int, state: int, ticks: int) -> None:
        """Have a replica as a flow of this node, in this state."""
        self.enter(flow, state, ticks)
        if state == UDP_ONE_WAY:
            self.unanswered += 1

    def offloaded_queue(self, state: int) -> int:
        """The queue of an offloaded flow that enters this state. It has no timeout but for the end:
        the kernel knows when it was last used."""
        queue = self._queue_of[state]
        if queue == self.half_open_queue:
            return self.opening_queue
        return queue if queue == self.closed_queue else self.offload_queue

    def count_active(self, member: PoolMember, record: Record, change: int) -> None:
        """Note that a flow has become active (1), or no longer is (-1)."""
        member.scheduled.active += change
        if record.state == UDP_ONE_WAY:
            self.unanswered += change
        if member.pool.counts_clients:
            member.pool.gate.count(record.client_high, record.client_low, change)

    def restore(self, flow: int, member: PoolMember, seen: int) -> None:
        """Complete a flow that was open before this process, from its record, the client's
        persistence included; its last packet came at `seen`."""
        record = self._flows.at(flow)
        state = record.state
        self.compute_deltas(flow)
        self.enter(flow, state, seen)
        if IS_ACTIVE[state]:
            self.count_active(member, record, 1)
        member.flows += 1
        pool = member.pool
        if pool.persistence is not None:
            new = NewFlow(
                record.protocol,
                6 if record.flags & IPV6 else 4,
                int(address_of(record.client_high, record.client_low)),
                record.client_port,
                int(address_of(record.vip_high, record.vip_low)),
                record.vip_port,
            )
            pool.persistence.remember(new, member.scheduled, seen)

    def recount(self, pool: Pool) -> None:
        """Have the pool's gate count the flows that were active before it wanted to know."""
        flows = self._flows
        for flow in range(1, flows.last_record() + 1):
            record = flows.at(flow)
            if record.protocol and IS_ACTIVE[record.state]:
                member = self._members.by_id[record.member_id]
                if member.pool is pool:
                    pool.gate.count(record.client_high, record.client_low, 1)
        pool.gate.uncounted = False

    def reopens(self, flow: int, ticks: int) -> bool:
        """Whether a SYN or datagram of this flow is scheduled again: the old connection is over
        (the client reuses its port), or the backend has left the pool or is down. The latter in any
        state: a client that sends a SYN has no connection that could break, and nobody's works
        there. Datagrams stay with a backend that is down, as in a panic there may be no better one:
        the control plane ends their flows."""
        record = self._flows.at(flow)
        member_id = record.member_id
        return bool(
            self._members.retired[member_id]
            or (record.protocol == TCP and self._members.down[member_id])
            or self.is_over(record, ticks)
        )

    def is_retransmission(self, flow: int, ticks: int) -> bool:
        """Whether another SYN of a flow that is opening says that its backend is silent."""
        return (ticks - self._flows.created[flow]) & MASK32 >= RETRANSMITTED

    def is_over(self, record: Record, ticks: int) -> bool:
        """Whether the connection of this flow has ended for certain, or is closing and has long
        been silent. Anybody can send a SYN: to a connection that may live it is passed on, and if
        the client has no such connection any more, it answers the backend's challenge ACK with a
        RST (RFC 5961 section 4) and sends its SYN again."""
        state = record.state
        if not IS_REUSABLE[state]:
            return False
        if state in (CLOSED, REPLACED) or record.flags & (OFFLOADED | UNSURE):
            return True
        if state == CLOSING and are_acknowledged(record):
            return True
        return ticks - record.seen >= LONG_SILENCE

    def yields(self, flow: int, ticks: int) -> bool:
        """Whether a SYN-ACK of the backend is not of this flow: the connection has ended, and the
        client, which kept its address, has opened one with the backend itself from its port."""
        record = self._flows.at(flow)
        return bool(
            IS_ENDED[record.state] and not record.flags & FULL and self.is_over(record, ticks)
        )

    def close(self, flow: int) -> None:
        """Remove a flow and release what it held."""
        self.end(flow, ENDED)

    def end(self, flow: int, how: int) -> None:
        """The same; `how` is a `flight_recorder.Kind`."""
        flows = self._flows
        if self._announcer.node:
            self._announcer.close(flow)
        record = flows.at(flow)
        member = self._members.by_id[record.member_id]
        if record.state != REPLICA:  # the end of those is the other node's to tell
            self._recorder.note(how, record, record.state)
            if self.noted is not None:
                self.note(flow, False)
        if flows.is_offloaded(flow):
            self._commands.delete(flows, flow)
        if record.flags & CARRIED:
            self._carried.end(flow)
        if IS_ACTIVE[record.state]:
            self.count_active(member, record, -1)
        if record.flags & FULL:
            self._port_holders.take(flow)
            source = (record.source_high, record.source_low)
            if source not in member.peer_sources:
                self._source_ports.release(member.target, source, record.source_port)
        flows.remove(flow)
        self._members.end_flow(member)

    def catch_up(self, flow: int) -> bool:
        """Take over what the program has seen of a flow that it carries; whether the flow's timeout
        has begun anew."""
        carried = self._carried
        record = self._flows.at(flow)
        entry = carried.of(flow)
        carried.count(carried.entry_of[flow], record.member_id, flow)
        before = record.seen
        seen = max(entry.seen, before)
        word = entry.state
        state = word & STATE_MASK
        if record.protocol == TCP:
            record.client_expects = entry.expected[0]
            record.backend_expects = entry.expected[1]
            record.ends[0] = entry.ends[0]
            record.ends[1] = entry.ends[1]
            record.scales = entry.scales
            record.flags &= ~(CLIENT_SPOKE | BACKEND_SPOKE)
            if word & ENTRY_CLIENT_SPOKE:
                record.flags |= CLIENT_SPOKE
            if word & ENTRY_BACKEND_SPOKE:
                record.flags |= BACKEND_SPOKE
        if seen == before and state == record.state:
            return False
        if state != record.state:
            if state == CLOSED and word & RESET_BY_BACKEND:
                self._counters.add(record.member_id, RESETS)
            self.enter(flow, state, seen)
            return True
        if record.queue == self.silent_queue:
            self.wake(flow, seen)
        else:
            self._flows.touch(flow, seen)
        return record.seen != before

    def review(self, flow: int, ask: bool) -> None:
        """Decide on an offloaded flow that has been opening for a while: is it known to be, its
        time is over (`judge`). If the kernel isn't to be asked, it is taken for what most are."""
        known = self._flows.at(flow).queue == self.half_open_queue
        if not known and not ask and self._balance > 0:
            self._flows.move(flow, self.half_open_queue, self._flows.at(flow).seen)
            return
        self._flows.move(flow, self.offload_queue, self._flows.at(flow).seen)
        if known or ask:
            self._commands.look_up(self._flows, flow)

    def judge(self, flow: int, ticks: int) -> None:
        """The kernel has just told the state of an offloaded connection: if it is half-open, it has
        a timeout as others have."""
        flows = self._flows
        record = flows.at(flow)
        opening = self._queue_of[record.state] == self.half_open_queue
        age = (ticks - flows.created[flow]) & MASK32
        if age < flows.timeout[self.opening_queue]:
            return
        if age < 4 * flows.timeout[self.opening_queue]:
            change = 1 if opening else -1
            self._balance = max(-MAX_BALANCE, min(MAX_BALANCE, self._balance + change))
        if not opening:
            return
        if age >= flows.timeout[self.half_open_queue]:
            self._counters.add(record.member_id, SYN_TIMEOUTS)
            self.end(flow, EXPIRED)
        elif record.queue != self.half_open_queue:
            flows.move(flow, self.half_open_queue, ticks)

    def is_silent(self, flow: int) -> bool:
        """Whether the flow has become silent (`take_silent`) and stayed so."""
        return bool(self._flows.at(flow).queue == self.silent_queue)

    def wake(self, flow: int, ticks: int) -> None:
        """Note a packet of a silent flow."""
        self._flows.move(flow, self.established_queue, ticks)

    def take_silent(self) -> list[int]:
        """The established flows that have become silent since the last call, some of which may have
        ended or be silent no more."""
        silent, self._silent = self._silent, []
        return silent

    def expire(self, ticks: int) -> bool:
        """End flows whose timeout has passed; True if more are due."""
        flows = self._flows
        reviewed = 0
        for _ in range(MAX_EXPIRED_AT_ONCE):
            flow = flows.expired(ticks)
            if not flow:
                return False
            record = flows.at(flow)
            if flows.is_offloaded(flow) and record.queue != self.closed_queue:
                self.review(flow, reviewed < MAX_REVIEWED)
                reviewed += 1
                continue
            if record.flags & CARRIED and self.catch_up(flow):
                continue
            if record.queue == self.established_queue:
                flows.move(flow, self.silent_queue, record.seen)
                self._silent.append(flow)
                if record.flags & CARRIED:
                    self._carried.quieten(flow)
                continue
            if record.state in (SYN_SENT, SYN_RETRIED, REPLACED) and record.protocol == TCP:
                self._counters.add(record.member_id, SYN_TIMEOUTS)
            self.end(flow, EXPIRED)
        return True
