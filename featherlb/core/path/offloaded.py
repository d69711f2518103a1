"""The datapath offload: flows that the kernel's connection tracking carries, seen from here.

Two come by here: the packet path, with the packet that opens a flow and with strays, and the driver
of conntrack's sockets, which sends the requests that have gathered and tells what conntrack says.
Times are in ticks of 0.1 s.
"""

from collections.abc import Set

import cython

from featherlb.core.flows.conntrack import Entry, Requests
from featherlb.core.flows.counters import Counters
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import Members
from featherlb.core.flows.snat_ports import PortAllocator
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.core.path.context import Context
from featherlb.core.path.outbox import Answers
from featherlb.core.path.services import Services
from featherlb.model import Endpoint, PacketInfo, Verdict
from featherlb.model.reason import Reason
from featherlb.model.shard import Shard
from featherlb.net.addresses import address_of

if not cython.compiled:
    from featherlb.core.flows.conntrack import AF_INET6, DESTINATION_NAT, SEEN_REPLY
    from featherlb.core.flows.counters import COUNTERS, REFUSED, SYN_RETRIES, SYN_TIMEOUTS
    from featherlb.core.flows.lifecycle import IS_REUSABLE
    from featherlb.core.flows.record import ABANDONED, FULL, IPV6, OFFLOADED, direction_of
    from featherlb.core.path.context import GO_ON
    from featherlb.net.packet import MASK32, SYN, TCP, UDP

YOUNG = 20
"""Ticks within which the end of an entry may be that of the one before it, of the same client."""

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
SYN_RETRIED = int(State.SYN_RETRIED)
CLOSED = int(State.CLOSED)
UDP_ONE_WAY = int(State.UDP_ONE_WAY)
UDP_TWO_WAY = int(State.UDP_TWO_WAY)
NOT_READY = int(PacketInfo.CHECKSUM_NOT_READY)
GSO = int(PacketInfo.GSO)
CUT = int(PacketInfo.TRUNCATED)
FORWARD = int(Reason.FORWARD)
INVALID = int(Reason.INVALID)
NO_ENTRY = int(Reason.NO_ENTRY)
NO_FLOW = int(Reason.NO_FLOW)
TRUNCATED = int(Reason.TRUNCATED)
DROP = int(Verdict.DROP)
CARRY = int(Verdict.CARRY)
ASK = int(Verdict.ASK)


class Offload:
    """Between the packet path and conntrack's driver.

    `requests` are for the driver to send. `answer` and `event` are its to read into: what conntrack
    answers, and what it tells by itself. With the verdict ASK, `asked` is the flow of which
    conntrack is to be asked. After a packet that has opened a flow for conntrack to carry,
    `created` is that flow, and else 0.
    """

    def __init__(
        self,
        flows: FlowTable,
        services: Services,
        members: Members,
        lifecycle: Lifecycle,
        counters: Counters,
        answers: Answers,
        source_ports: PortAllocator,
        requests: Requests,
    ) -> None:
        self.requests = requests
        self.answer = Entry()
        self.event = Entry()
        self.asked = 0
        self.created = 0
        self._resent: list[tuple[int, bytes]] = []
        self._flows = flows
        self._services = services
        self._members = members
        self._lifecycle = lifecycle
        self._counters = counters
        self._answers = answers
        self._source_ports = source_ports

    # For the packet path

    def meet(self, ctx: Context) -> int:
        """Decide on a packet of a flow that conntrack translates; GO_ON if it opens another.

        That it gets here says that it may open the connection anew, or that conntrack doesn't take
        it for a part of it.
        """
        packet = ctx.packet
        flows = self._flows
        flow = ctx.flow
        record = flows.at(flow)
        alive = flows.is_offloaded(flow)
        if ctx.reply or packet.flags > SYN:
            if alive:
                return self._counters.drop(INVALID)
            self._answers.refuse(ctx.ticks)
            return self._counters.drop(NO_FLOW)
        if self._members.by_id[record.member_id].pool.awaiting_rules:
            return self._counters.drop(INVALID)
        if self.asked != flow and self.is_open(flow):
            self.asked = flow
            return ASK
        self.asked = 0
        if not alive or self._lifecycle.reopens(flow):
            self._lifecycle.close(flow)
            ctx.flow = 0
            return GO_ON
        if record.state == SYN_SENT:
            self.enter(flow, SYN_RETRIED, ctx.ticks)
            self._counters.add(record.member_id, SYN_RETRIES)
        return self.carry(ctx)

    def is_open(self, flow: int) -> bool:
        """Whether conntrack carries the flow, and it wasn't closing when conntrack was asked last.
        One that closes doesn't go on but by a packet that opens it anew, which comes here."""
        flows = self._flows
        return flows.is_offloaded(flow) and flows.at(flow).queue != self._lifecycle.closed_queue

    def hand_over(self, ctx: Context) -> int:
        """Have conntrack translate a new flow; the verdict on the packet that opens it."""
        self.requests.create(self._flows, ctx.flow)
        self.created = ctx.flow
        return self.carry(ctx)

    def carry(self, ctx: Context) -> int:
        """Let conntrack have the packet. A SYN has not met it yet; others have, as a packet
        of another connection, so a copy has to begin from the start. Of one that was cut there is
        none; but conntrack knows the flow, and its next packet goes on."""
        packet = ctx.packet
        if ctx.info & CUT:
            return self._counters.drop(TRUNCATED)
        self._counters.reasons[FORWARD] += 1
        if packet.protocol == TCP and packet.flags == SYN:
            return CARRY
        if ctx.info & GSO:
            return DROP  # where it is to be cut, nobody says: TCP sends it again
        if ctx.info & NOT_READY:
            packet.complete_checksum()
        self._resent.append((ctx.flow, packet.quote(packet.end - packet.ip)))
        return DROP

    # For what sends packets, and for conntrack's driver

    def take_resent(self) -> list[bytes]:
        """Packets to send as they are, since the last call."""
        resent = self._resent
        if resent:
            self._resent = []
        return [packet for _, packet in resent]

    def fail(self, flow: int) -> None:
        """Conntrack refuses to create the entry of this flow: its packet is dropped instead."""
        resent = [(other, packet) for other, packet in self._resent if other != flow]
        # A datagram of which no copy waits was cut, and is counted as dropped.
        if self._flows.at(flow).protocol != UDP or len(resent) < len(self._resent):
            self._counters.reasons[FORWARD] -= 1
            self._counters.reasons[NO_ENTRY] += 1
        self._resent = resent
        self.disown(flow)

    def disown(self, flow: int) -> None:
        """Forget a flow whose entry is gone, or is none of ours."""
        if self.asked == flow:
            self.asked = 0
        self._flows.at(flow).flags |= ABANDONED
        self._lifecycle.close(flow)

    def clash(self, flow: int, entry: Entry) -> bool:
        """Whether a flow may be created in place of the entry that has its forward key.

        False if that is the flow itself, or an open connection that another process has let in:
        that one goes on, and the flow is forgotten.
        """
        record = self._flows.at(flow)
        if (
            entry.back_src_low == record.backend_low
            and entry.back_src_high == record.backend_high
            and entry.back_dst_low == record.source_low
            and entry.back_dst_high == record.source_high
            and entry.back_ports >> 16 == record.backend_port
            and entry.back_ports & 0xFFFF == record.source_port
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
        self.requests.get(self._flows, flow)

    def replace(self, flow: int) -> None:
        """Create a flow's entry with the next requests, in place of one with the same key."""
        self.requests.delete(self._flows, flow)
        self.requests.create(self._flows, flow)

    def give_port(self, flow: int) -> bool:
        """Create a flow with the next requests, from another port towards its backend; False if it
        is too late for that, the port is the client's own, or there is no other."""
        flows = self._flows
        record = flows.at(flow)
        if not record.flags & FULL:
            return False
        if record.state not in (SYN_SENT, UDP_ONE_WAY):
            return False
        target = self._members.by_id[record.member_id].target
        source = (record.source_high, record.source_low)
        found = self._source_ports.allocate(target, [source])
        if found is None:
            return False
        before, after = record.source_port, found[1]
        if not flows.set_source_port(flow, after):
            self._source_ports.release(target, source, after)
            return False
        self._source_ports.release(target, source, before)
        self._lifecycle.compute_deltas(flow)
        self.requests.create(flows, flow)
        return True

    def observe(self, flow: int, entry: Entry, ticks: int) -> None:
        """Take in what conntrack says of an offloaded flow: state, port, packets and bytes."""
        record = self._flows.at(flow)
        forward = direction_of(record, 0)
        reply = direction_of(record, 1)
        counters = self._counters
        at = record.member_id * COUNTERS
        packets = (entry.packets - forward.kernel_packets) & MASK32
        back_packets = (entry.back_packets - reply.kernel_packets) & MASK32
        if packets or back_packets:
            counters.members[at] += packets
            counters.members[at + 1] += entry.bytes - forward.bytes
            counters.members[at + 2] += back_packets
            counters.members[at + 3] += entry.back_bytes - reply.bytes
            forward.kernel_packets = entry.packets & MASK32
            forward.bytes = entry.bytes
            reply.kernel_packets = entry.back_packets & MASK32
            reply.bytes = entry.back_bytes
            record.seen = ticks
        self.take_port(flow, entry)
        self.take_state(flow, entry, ticks)

    def advance(self, entry: Entry, ticks: int) -> None:
        """Take in what conntrack tells by itself of an entry that has changed: its state, but
        neither packets nor bytes."""
        flow = self.flow_of(entry)
        if flow:
            self.take_state(flow, entry, ticks)

    def take_port(self, flow: int, entry: Entry) -> None:
        """Of a client whose own port is taken towards the backend, conntrack gives it another one:
        its replies are known by that."""
        record = self._flows.at(flow)
        port = entry.back_ports & 0xFFFF
        if (
            port != record.source_port
            and entry.back_ports >> 16 == record.backend_port
            and entry.back_src_low == record.backend_low
            and entry.back_dst_low == record.source_low
            and not record.flags & FULL
        ):
            self._flows.set_source_port(flow, port)

    def take_state(self, flow: int, entry: Entry, ticks: int) -> None:
        """An offloaded flow is in the state of its entry, if that has one."""
        if entry.protocol == UDP:
            state = UDP_TWO_WAY if entry.status & SEEN_REPLY else UDP_ONE_WAY
            self.enter(flow, state, ticks)
        elif 0 <= entry.tcp_state < 10:
            self.enter(flow, KERNEL_STATES[entry.tcp_state], ticks)

    def enter(self, flow: int, state: int, ticks: int) -> None:
        """An offloaded flow is in this state from now on, unless it has been before."""
        before = self._flows.at(flow).state
        # Of a SYN that was sent again, conntrack makes no state of its own.
        if state != before and not (state == SYN_SENT and before == SYN_RETRIED):
            self._lifecycle.enter(flow, state, ticks)

    def end(self, entry: Entry, certain: bool, ticks: int) -> int:
        """Conntrack has removed this entry: so its flow has ended. The number of a flow of which
        that is not `certain`, for conntrack to be asked; else 0."""
        flow = self.flow_of(entry)
        if not flow:
            return 0
        record = self._flows.at(flow)
        if not certain and (ticks - record.created) & MASK32 < YOUNG:
            return flow
        opening = record.state in (SYN_SENT, SYN_RETRIED)
        self.observe(flow, entry, ticks)
        if opening and not entry.status & SEEN_REPLY and entry.back_packets:
            # A RST as the first answer: conntrack removes the entry at once, and doesn't call the
            # connection answered (nf_conntrack_proto_tcp.c: nf_conntrack_tcp_packet).
            self._counters.add(record.member_id, REFUSED)
        elif record.state in (SYN_SENT, SYN_RETRIED):
            self._counters.add(record.member_id, SYN_TIMEOUTS)
        self.disown(flow)
        return 0

    def find(self, entry: Entry) -> int:
        """What the flow table has under the entry's forward key, as `FlowTable.find` says it."""
        return self._flows.find(
            entry.src_high,
            entry.src_low,
            entry.dst_high,
            entry.dst_low,
            entry.ports,
            entry.protocol,
        )

    def flow_of(self, entry: Entry) -> int:
        """The flow that conntrack carries by this entry, 0 if there is none."""
        flows = self._flows
        ref = self.find(entry)
        flow = ref >> 1
        if not ref or ref & 1 or not flows.is_offloaded(flow):
            return 0
        record = flows.at(flow)
        if (
            entry.back_src_low != record.backend_low
            or entry.back_ports >> 16 != record.backend_port
        ):
            return 0
        # The port that conntrack has given a client may not be known yet (`take_port`).
        if record.flags & FULL and entry.back_ports & 0xFFFF != record.source_port:
            return 0
        return flow

    def is_offloaded(self, flow: int) -> bool:
        """Whether the kernel translates the flow of that record number."""
        return self._flows.is_offloaded(flow)

    def last_record(self) -> int:
        """The highest number of a flow."""
        return self._flows.last_record()

    def adopt(self, entry: Entry, services: Set[str], shard: Shard, ticks: int) -> bool:
        """Take over a flow that conntrack carries already, if it is one of a VIP of these services,
        to one of its backends, and in this worker's shard; whether it was."""
        if entry.protocol not in (TCP, UDP) or not entry.status & DESTINATION_NAT:
            return False
        if not shard.has(entry.src_high, entry.src_low, entry.ports >> 16):
            return False
        pool = self._services.find(
            entry.dst_high, entry.dst_low, entry.protocol, entry.ports & 0xFFFF, False
        )
        if pool is None or not pool.offloaded or pool.service.name not in services:
            return False
        address = address_of(entry.back_src_high, entry.back_src_low)
        scheduled = pool.members.get(Endpoint(address, entry.back_ports >> 16))
        flows = self._flows
        if scheduled is None or flows.count == flows.capacity:
            return False
        if self.find(entry) or flows.find(
            entry.back_src_high,
            entry.back_src_low,
            entry.back_dst_high,
            entry.back_dst_low,
            entry.back_ports,
            entry.protocol,
        ):
            return False
        member = self._members.by_id[scheduled.index]
        flags = member.flags | OFFLOADED
        if entry.family == AF_INET6:
            flags |= IPV6
        # Its port may be one that somebody else has given.
        source = (entry.back_dst_high, entry.back_dst_low)
        if pool.full and self._source_ports.claim(member.target, source, entry.back_ports & 0xFFFF):
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
            self._lifecycle.offload_queue,
            ticks,
        )
        record = flows.at(flow)
        record.flags = flags
        record.state = SYN_SENT if entry.protocol == TCP else UDP_ONE_WAY
        record.member_id = member.id
        # What the kernel has counted before is not ours to count.
        direction_of(record, 0).kernel_packets = entry.packets & MASK32
        direction_of(record, 1).kernel_packets = entry.back_packets & MASK32
        record.forward_bytes = entry.bytes
        record.reply_bytes = entry.back_bytes
        scheduled.active += 1
        member.flows += 1
        self.observe(flow, entry, ticks)
        return True

    def abandon(self, flow: int, ticks: int) -> None:
        """Take a connection away from conntrack: it is closed here, and what comes is refused."""
        self.requests.delete(self._flows, flow)
        self.enter(flow, CLOSED, ticks)
        self._flows.at(flow).flags |= ABANDONED
