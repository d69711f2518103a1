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
from featherlb.core.path.outbox import Answers
from featherlb.core.path.services import Services
from featherlb.model import Endpoint, PacketInfo, Verdict
from featherlb.model.reason import Reason
from featherlb.model.shard import Shard
from featherlb.net.addresses import address_of
from featherlb.net.packet import Packet

if not cython.compiled:
    from featherlb.core.flows.conntrack import AF_INET6, DESTINATION_NAT, SEEN_REPLY
    from featherlb.core.flows.counters import COUNTERS, REFUSED, SYN_RETRIES, SYN_TIMEOUTS
    from featherlb.core.flows.lifecycle import IS_REUSABLE
    from featherlb.core.flows.table import (
        ABANDONED,
        BYTES,
        CARRIED,
        CREATED,
        FLAGS,
        FULL,
        IPV6,
        MEMBER,
        OFFLOADED,
        PORTS,
        PROTOCOL,
        QUEUE,
        SEEN,
        STATE,
    )
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
        packet: Packet,
        services: Services,
        members: Members,
        lifecycle: Lifecycle,
        counters: Counters,
        answers: Answers,
        source_ports: PortAllocator,
        requests: Requests,
    ) -> None:
        """`packet` is the one that is parsed before `meet` or `begin` is called."""
        self.requests = requests
        self.answer = Entry()
        self.event = Entry()
        self.asked = 0
        self.created = 0
        self._resent: list[tuple[int, bytes]] = []
        self._flows = flows
        self._packet = packet
        self._services = services
        self._members = members
        self._lifecycle = lifecycle
        self._counters = counters
        self._answers = answers
        self._source_ports = source_ports

    # For the packet path

    def meet(self, flow: int, reply: int, info: int, ticks: int) -> int:
        """Decide on the parsed packet of a flow that conntrack carries; -1 if it opens another.

        That it gets here says that it may open the connection anew, or that conntrack doesn't take
        it for a part of it.
        """
        packet = self._packet
        flows = self._flows
        alive = flows.is_carried(flow)
        if reply or packet.flags > SYN:
            if alive:
                return self._counters.drop(INVALID)
            self._answers.refuse(ticks)
            return self._counters.drop(NO_FLOW)
        if self._members.slots[flows.u16[flow * 64 + MEMBER]].pool.settling:
            return self._counters.drop(INVALID)
        if self.asked != flow and self.is_open(flow):
            self.asked = flow
            return ASK
        self.asked = 0
        if not alive or self._lifecycle.reopens(flow):
            self._lifecycle.close(flow)
            return -1
        if flows.u8[flow * 128 + STATE] == SYN_SENT:
            self.enter(flow, SYN_RETRIED, ticks)
            self._counters.add(flows.u16[flow * 64 + MEMBER], SYN_RETRIES)
        return self.carry(flow, info)

    def is_open(self, flow: int) -> bool:
        """Whether conntrack carries the flow, and it wasn't closing when conntrack was asked last.
        One that closes doesn't go on but by a packet that opens it anew, which comes here."""
        flows = self._flows
        return (
            flows.is_carried(flow) and flows.u8[flow * 128 + QUEUE] != self._lifecycle.closed_queue
        )

    def begin(self, flow: int, info: int) -> int:
        """Have conntrack carry a new flow; the verdict on the parsed packet, which opens it."""
        self.requests.create(self._flows, flow)
        self.created = flow
        return self.carry(flow, info)

    def carry(self, flow: int, info: int) -> int:
        """Let conntrack have the parsed packet. A SYN has not met it yet; others have, as a packet
        of another connection, so a copy has to begin from the start. Of one that was cut there is
        none; but conntrack knows the flow, and its next packet goes on."""
        packet = self._packet
        if info & CUT:
            return self._counters.drop(TRUNCATED)
        self._counters.reasons[FORWARD] += 1
        if packet.protocol == TCP and packet.flags == SYN:
            return CARRY
        if info & GSO:
            return DROP  # where it is to be cut, nobody says: TCP sends it again
        if info & NOT_READY:
            packet.complete_checksum()
        self._resent.append((flow, packet.quote(packet.end - packet.ip)))
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
        if self._flows.u8[flow * 128 + PROTOCOL] != UDP or len(resent) < len(self._resent):
            self._counters.reasons[FORWARD] -= 1
            self._counters.reasons[NO_ENTRY] += 1
        self._resent = resent
        self.disown(flow)

    def disown(self, flow: int) -> None:
        """Forget a flow whose entry is gone, or is none of ours."""
        if self.asked == flow:
            self.asked = 0
        self._flows.u8[flow * 128 + FLAGS] |= ABANDONED
        self._lifecycle.close(flow)

    def clash(self, flow: int, entry: Entry) -> bool:
        """Whether a flow may be created in place of the entry that has its forward key.

        False if that is the flow itself, or an open connection that another process has let in:
        that one goes on, and the flow is forgotten.
        """
        flows = self._flows
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
        self.requests.get(self._flows, flow)

    def replace(self, flow: int) -> None:
        """Create a flow's entry with the next requests, in place of one with the same key."""
        self.requests.delete(self._flows, flow)
        self.requests.create(self._flows, flow)

    def give_port(self, flow: int) -> bool:
        """Create a flow with the next requests, from another port towards its backend; False if it
        is too late for that, the port is the client's own, or there is no other."""
        flows = self._flows
        if not flows.u8[flow * 128 + FLAGS] & FULL:
            return False
        if flows.u8[flow * 128 + STATE] not in (SYN_SENT, UDP_ONE_WAY):
            return False
        target = self._members.slots[flows.u16[flow * 64 + MEMBER]].target
        source = (flows.u64[flow * 16 + 6], flows.u64[flow * 16 + 7])
        found = self._source_ports.allocate(target, [source])
        if found is None:
            return False
        before = flows.u32[flow * 32 + PORTS + 1]
        ports = before >> 16 << 16 | found[1]
        flows.turn_replies(flow, ports)
        turned = flows.u32[flow * 32 + PORTS + 1] == ports
        self._source_ports.release(target, source, (before if turned else ports) & 0xFFFF)
        if turned:
            self._lifecycle.settle(flow)
            self.requests.create(flows, flow)
        return turned

    def observe(self, flow: int, entry: Entry, ticks: int) -> None:
        """Take in what conntrack says of an offloaded flow: state, port, packets and bytes."""
        flows = self._flows
        counters = self._counters
        at = flows.u16[flow * 64 + MEMBER] * COUNTERS
        carried = flow * 32 + CARRIED
        packets = (entry.packets - flows.u32[carried]) & MASK32
        back_packets = (entry.back_packets - flows.u32[carried + 1]) & MASK32
        if packets or back_packets:
            counters.members[at] += packets
            counters.members[at + 2] += back_packets
            flows.u32[carried] = entry.packets & MASK32
            flows.u32[carried + 1] = entry.back_packets & MASK32
            base = flow * 16 + BYTES
            counters.members[at + 1] += entry.bytes - flows.u64[base]
            counters.members[at + 3] += entry.back_bytes - flows.u64[base + 1]
            flows.u64[base] = entry.bytes
            flows.u64[base + 1] = entry.back_bytes
            flows.u32[flow * 32 + SEEN] = ticks
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
        flows = self._flows
        ports = flows.u32[flow * 32 + PORTS + 1]
        if (
            entry.back_ports != ports
            and entry.back_ports >> 16 == ports >> 16
            and entry.back_src_low == flows.u64[flow * 16 + 5]
            and entry.back_dst_low == flows.u64[flow * 16 + 7]
            and not flows.u8[flow * 128 + FLAGS] & FULL
        ):
            flows.turn_replies(flow, entry.back_ports)

    def take_state(self, flow: int, entry: Entry, ticks: int) -> None:
        """An offloaded flow is in the state of its entry, if that has one."""
        if entry.protocol == UDP:
            state = UDP_TWO_WAY if entry.status & SEEN_REPLY else UDP_ONE_WAY
            self.enter(flow, state, ticks)
        elif 0 <= entry.tcp_state < 10:
            self.enter(flow, KERNEL_STATES[entry.tcp_state], ticks)

    def enter(self, flow: int, state: int, ticks: int) -> None:
        """An offloaded flow is in this state from now on, unless it has been before."""
        before = self._flows.u8[flow * 128 + STATE]
        # Of a SYN that was sent again, conntrack makes no state of its own.
        if state != before and not (state == SYN_SENT and before == SYN_RETRIED):
            self._lifecycle.enter(flow, state, ticks)

    def end(self, entry: Entry, certain: bool, ticks: int) -> int:
        """Conntrack has removed this entry: so its flow has ended. The number of a flow of which
        that is not `certain`, for conntrack to be asked; else 0."""
        flows = self._flows
        flow = self.flow_of(entry)
        if not flow:
            return 0
        if not certain and (ticks - flows.u32[flow * 32 + CREATED]) & MASK32 < YOUNG:
            return flow
        opening = flows.u8[flow * 128 + STATE] in (SYN_SENT, SYN_RETRIED)
        self.observe(flow, entry, ticks)
        member = flows.u16[flow * 64 + MEMBER]
        if opening and not entry.status & SEEN_REPLY and entry.back_packets:
            # A RST as the first answer: conntrack removes the entry at once, and doesn't call the
            # connection answered (nf_conntrack_proto_tcp.c: nf_conntrack_tcp_packet).
            self._counters.add(member, REFUSED)
        elif flows.u8[flow * 128 + STATE] in (SYN_SENT, SYN_RETRIED):
            self._counters.add(member, SYN_TIMEOUTS)
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
        if not ref or ref & 1 or not flows.is_carried(flow):
            return 0
        # The port that conntrack has given a client may not be known yet (`take_port`).
        known = MASK32 if flows.u8[flow * 128 + FLAGS] & FULL else MASK32 ^ 0xFFFF
        if (entry.back_ports ^ flows.u32[flow * 32 + PORTS + 1]) & known:
            return 0
        return flow if entry.back_src_low == flows.u64[flow * 16 + 5] else 0

    def is_carried(self, flow: int) -> bool:
        """Whether conntrack carries the flow of that record number."""
        return self._flows.is_carried(flow)

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
        member = pool.members.get(Endpoint(address, entry.back_ports >> 16))
        flows = self._flows
        if member is None or flows.count == flows.capacity:
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
        slot = self._members.slots[member.index]
        flags = slot.flags | OFFLOADED
        if entry.family == AF_INET6:
            flags |= IPV6
        # Its port may be one that somebody else has given.
        source = (entry.back_dst_high, entry.back_dst_low)
        if pool.full and self._source_ports.claim(slot.target, source, entry.back_ports & 0xFFFF):
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

    def abandon(self, flow: int, ticks: int) -> None:
        """Take a connection away from conntrack: it is closed here, and what comes is refused."""
        self.requests.delete(self._flows, flow)
        self.enter(flow, CLOSED, ticks)
        self._flows.u8[flow * 128 + FLAGS] |= ABANDONED
