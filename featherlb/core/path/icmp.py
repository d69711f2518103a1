"""ICMP: translates errors by the flow whose packet they quote, and answers echo requests.

A node on the path (a router, an end, the balancer's own kernel) that could not forward or deliver a
packet sends an error to its source, quoting the packet. The quoted packet had been translated, so
its sender would not recognise it: the translation is reverted. The quoted packet travelled in the
opposite direction: an error towards the client quotes a packet towards the backend. Rules: RFC 5508
section 4, RFC 4443 section 2.4.

Type, code and the four bytes after the checksum (next-hop MTU, pointer, the length field of RFC
4884) stay unchanged. Errors that can't be real are dropped: about a segment that isn't in flight,
so that nobody who doesn't see the connection can make one up (RFC 5927), or with an MTU that no
link has, which would make the receiver send tiny packets. Errors don't affect the flow's state:
they neither end it (RFC 5382 REQ-10) nor extend its timeout. One that says that the packet which
opens the flow can't be delivered may move the flow to another backend (`redispatch.py`).
"""

import cython

from featherlb.core.flows.counters import Counters
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.next_hops import NextHops
from featherlb.core.flows.table import FlowTable
from featherlb.core.path.context import Context
from featherlb.core.path.outbox import Outbox
from featherlb.core.path.redispatch import Redispatch
from featherlb.core.path.services import Services
from featherlb.model import Hook, PacketInfo, Verdict
from featherlb.model.reason import Reason
from featherlb.net.packet import Packet
from featherlb.net.protocols import ECHO_REQUEST, ICMP, ICMP_ERRORS, ICMPV6, TCP, UDP

if not cython.compiled:
    from featherlb.core.flows.record import CARRIED, FULL, SPLICED
    from featherlb.core.flows.windows import is_in_flight
    from featherlb.core.path.context import GO_ON
    from featherlb.core.path.hooks import DROP, REWRITE, VERIFY, for_error
    from featherlb.net.checksum import MASK16, negate, sum_bytes, update
    from featherlb.net.packet import MASK32, OK

HEADER = 8

UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM = ICMP_ERRORS[4]
FRAGMENTATION_NEEDED = 4
UNREACHABLE_V6 = 1
TOO_BIG_V6 = 2
MIN_MTU_V4 = 552
"""Bytes that every link carries nowadays: what Linux does not go below either (min_pmtu in
Documentation/networking/ip-sysctl.rst)."""
MIN_MTU_V6 = 1280
"""Bytes that every link carries (RFC 8200 section 5)."""
FIRST_V6, LAST_V6 = min(ICMP_ERRORS[6]), max(ICMP_ERRORS[6])
ECHO_V4, ECHO_V6 = ECHO_REQUEST[4], ECHO_REQUEST[6]

PREROUTING = int(Hook.PREROUTING)
OUTPUT = int(Hook.OUTPUT)
WIRE = int(Hook.WIRE)
NOT_READY = int(PacketInfo.CHECKSUM_NOT_READY)
CUT = int(PacketInfo.TRUNCATED)
ICMP_ERROR = int(Reason.ICMP_ERROR)
TRUNCATED = int(Reason.TRUNCATED)
BAD_CHECKSUM = int(Reason.BAD_CHECKSUM)
ECHO = int(Reason.ECHO)
FORGED_ERROR = int(Reason.FORGED_ERROR)
COPY = int(Reason.COPY)
TTL_EXCEEDED = int(Reason.TTL_EXCEEDED)
NO_NEXT_HOP = int(Reason.NO_NEXT_HOP)
REWRITTEN = int(Verdict.REWRITTEN)
OFFLOAD = int(Verdict.OFFLOAD)


class IcmpHandler:
    """Decides what happens to each ICMP message."""

    def __init__(
        self,
        flows: FlowTable,
        next_hops: NextHops,
        services: Services,
        counters: Counters,
        outbox: Outbox,
        redispatch: Redispatch,
        lifecycle: Lifecycle,
    ) -> None:
        self._quoted = Packet()
        self._flows = flows
        self._next_hops = next_hops
        self._services = services
        self._counters = counters
        self._outbox = outbox
        self._redispatch = redispatch
        self._lifecycle = lifecycle

    def attach(self, buffer: bytearray) -> None:
        """Use this buffer from now on."""
        self._quoted.attach(buffer)

    def handle(self, ctx: Context) -> int:
        """The stage that decides on an ICMP message."""
        packet = ctx.packet
        counters = self._counters
        if not is_error(packet):
            return self.handle_echo(ctx)
        ref = find_quoted(packet, self._quoted, self._flows)
        if not ref:
            return counters.pass_on()
        flow = ctx.flow = ref >> 1
        reply = ctx.reply = ref & 1
        record = self._flows.at(flow)
        if record.flags & CARRIED:
            self._lifecycle.catch_up(flow)
        action = for_error(record.flags, reply, ctx.hook)
        if action == VERIFY:
            return self.handle_offloaded(ctx)
        if action != REWRITE:
            return counters.drop(COPY) if action == DROP else counters.pass_on()
        reason = self.damage(ctx)
        if reason == OK and not is_plausible(packet, self._quoted, self._flows, flow, reply):
            reason = FORGED_ERROR
        if reason == OK and (verdict := self.move_refused(ctx)):
            return verdict
        if reason == OK and ctx.hook == WIRE:
            reason = self.route(ctx)
        if reason != OK:
            return counters.drop(reason)
        own = ctx.hook == OUTPUT and not (
            packet.src_low == record.backend_low and packet.src_high == record.backend_high
        )
        translate_error(packet, self._quoted, self._flows, flow, reply, own)
        counters.reasons[ICMP_ERROR] += 1
        return REWRITTEN

    def handle_offloaded(self, ctx: Context) -> int:
        """Decide on an error about a packet of a flow that the kernel forwards; it translates what
        is left to it."""
        reason = self.damage(ctx)
        if reason == OK and (verdict := self.move_refused(ctx)):
            return verdict
        self._counters.reasons[ICMP_ERROR] += 1
        return OFFLOAD

    def move_refused(self, ctx: Context) -> int:
        """Give the flow another backend if the intact error says that it has been refused, and may
        move: the verdict on the error then, else GO_ON."""
        if not ctx.reply or not is_unreachable(ctx.packet):
            return GO_ON
        verdict = self._redispatch.decide_error(ctx, self._quoted)
        if verdict and self._flows.at(ctx.flow).protocol == UDP:
            self.send_again(ctx)
        return verdict

    def send_again(self, ctx: Context) -> None:
        """Send the datagram that the error quotes to another backend."""
        quoted = self._quoted
        length = quoted.end - quoted.ip
        translate_error(ctx.packet, quoted, self._flows, ctx.flow, 1, False)
        quoted.parse(quoted.ip, length)
        if quoted.read16(quoted.transport + 6):  # the link may have been left to complete it
            quoted.complete_checksum()
        self._redispatch.reinject(quoted.quote(length))

    def handle_echo(self, ctx: Context) -> int:
        """Answer an echo request to a VIP; other messages are not ours. It gets here only if the
        VIP is not an address of this host, whose kernel would answer otherwise."""
        packet = ctx.packet
        if (
            ctx.hook != PREROUTING
            or not is_echo_request(packet)
            or (packet.dst_high, packet.dst_low) not in self._services.addresses
        ):
            return self._counters.pass_on()
        reason = self.damage(ctx)
        if reason != OK:
            return self._counters.drop(reason)
        self._outbox.echo()
        return self._counters.drop(ECHO)

    def damage(self, ctx: Context) -> int:
        """Why the message can't be translated, or OK."""
        if ctx.info & CUT:
            return TRUNCATED
        if not ctx.info & NOT_READY and not is_intact(ctx.packet):
            return BAD_CHECKSUM
        return OK

    def route(self, ctx: Context) -> int:
        """Set `next_hops.egress` for an error about a packet of the flow, and decrement its TTL:
        OK, or why it can't be sent. No error is sent about an error (RFC 1122 section 3.2.2)."""
        next_hops = self._next_hops
        if ctx.packet.ttl() <= 1:
            return TTL_EXCEEDED
        record = self._flows.at(ctx.flow)
        if ctx.reply:
            hop = next_hops.towards_client(ctx.flow, record.client_high, record.client_low)
            if not hop:
                return NO_NEXT_HOP
        else:
            hop = next_hops.members[record.member_id]
        next_hops.egress = hop
        ctx.packet.decrement_ttl()
        return OK


def is_icmp(packet: Packet) -> bool:
    """Whether the parsed packet is ICMP of its IP version."""
    return packet.protocol == (ICMP if packet.version == 4 else ICMPV6)


def is_error(packet: Packet) -> bool:
    """Whether the parsed ICMP message is an error that quotes a packet."""
    if packet.end - packet.transport < HEADER:
        return False
    kind = packet.data[packet.transport]
    if packet.version == 4:
        return kind in (UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM)
    return FIRST_V6 <= kind <= LAST_V6


def is_unreachable(packet: Packet) -> bool:
    """Whether the parsed ICMP error says that the quoted packet can't be delivered, for another
    reason than its length (RFC 792, RFC 4443 section 3.1)."""
    kind = packet.data[packet.transport]
    if packet.version == 4:
        return kind == UNREACHABLE and packet.data[packet.transport + 1] != FRAGMENTATION_NEEDED
    return kind == UNREACHABLE_V6


def is_plausible(packet: Packet, quoted: Packet, flows: FlowTable, flow: int, reply: int) -> bool:
    """Whether the parsed ICMP error, to the client (`reply` is 1) or the backend, can be about the
    quoted packet, which travelled in the opposite direction."""
    kind = packet.data[packet.transport]
    if packet.version == 6:
        # RFC 8201 section 4: it must be discarded.
        if kind == TOO_BIG_V6 and packet.read32(packet.transport + 4) < MIN_MTU_V6:
            return False
    elif kind == UNREACHABLE and packet.data[packet.transport + 1] == FRAGMENTATION_NEEDED:
        mtu = packet.read16(packet.transport + 6)
        if 0 < mtu < MIN_MTU_V4:  # old routers say 0 (RFC 1191 section 5)
            return False
    if quoted.protocol != TCP:
        return True
    # Eight bytes are always quoted: ports and sequence number.
    sequence = quoted.read32(quoted.transport + 4)
    record = flows.at(flow)
    if not reply and record.flags & SPLICED:
        sequence -= flows.splices[flow]
    return is_in_flight(record, 1 - reply, sequence & MASK32)


def is_echo_request(packet: Packet) -> bool:
    """Whether the parsed ICMP message is an echo request."""
    if packet.end - packet.transport < HEADER:
        return False
    kind = packet.data[packet.transport]
    return kind == (ECHO_V4 if packet.version == 4 else ECHO_V6)


def find_quoted(packet: Packet, quoted: Packet, flows: FlowTable) -> int:
    """The flow whose packet the parsed error quotes, as a reference with the direction of the error
    itself; 0 if there is none. `quoted` is set to the quoted packet."""
    if not quoted.parse_quoted(packet.version, packet.transport + HEADER, packet.end):
        return 0
    # An error is addressed to the sender of the quoted packet; anything else is forged.
    if quoted.src_high != packet.dst_high or quoted.src_low != packet.dst_low:
        return 0
    return flows.find(
        quoted.dst_high,
        quoted.dst_low,
        quoted.src_high,
        quoted.src_low,
        (quoted.ports & MASK16) << 16 | quoted.ports >> 16,
        quoted.protocol,
    )


def checksum(packet: Packet, src_high: int, src_low: int, dst_high: int, dst_low: int) -> int:
    """The checksum of the ICMP message in the buffer if its field is zero; 0 if the field is
    correct. ICMPv6 includes the pseudo-header (RFC 4443 section 2.3)."""
    if packet.version == 6:
        return packet.transport_checksum(src_high, src_low, dst_high, dst_low)
    length = packet.end - packet.transport
    return sum_bytes(packet.data, packet.transport, length) ^ MASK16


def is_intact(packet: Packet) -> bool:
    """Whether the checksum of the parsed ICMP message is correct."""
    return not checksum(packet, packet.src_high, packet.src_low, packet.dst_high, packet.dst_low)


def translate_error(
    packet: Packet, quoted: Packet, flows: FlowTable, flow: int, reply: int, own: bool
) -> None:
    """Rewrite the parsed error about a packet of `flow`, and the packet that it quotes, in place.

    `reply` is 1 for an error to the client. Its source becomes the VIP, whichever node sent it, as
    addresses on the backend's side may mean nothing to the client (RFC 5508 REQ-5); an error of the
    balancer's `own` keeps its source.
    """
    record = flows.at(flow)
    address_delta = record.address_delta
    delta = record.transport_delta
    src_high, src_low = packet.src_high, packet.src_low
    if reply:
        address_delta, delta = negate(address_delta), negate(delta)
        dst_high, dst_low, dst_port = record.client_high, record.client_low, record.client_port
        peer_high, peer_low, peer_port = record.vip_high, record.vip_low, record.vip_port
        if not own:
            src_high, src_low = peer_high, peer_low
    else:
        dst_high, dst_low, dst_port = record.backend_high, record.backend_low, record.backend_port
        peer_high, peer_low, peer_port = record.source_high, record.source_low, record.source_port
        if record.flags & FULL:
            src_high, src_low = peer_high, peer_low
        # The backend compares it with what it has sent.
        if record.protocol == TCP and record.flags & SPLICED:
            sequence = quoted.read32(quoted.transport + 4) - flows.splices[flow]
            quoted.write32(quoted.transport + 4, sequence & MASK32)

    # The quoted packet, as the receiver of the error sent it.
    quoted.write_source(dst_high, dst_low)
    quoted.write_destination(peer_high, peer_low)
    quoted.write16(quoted.transport, dst_port)
    quoted.write16(quoted.transport + 2, peer_port)
    if quoted.version == 4:
        quoted.write16(quoted.ip + 10, update(quoted.read16(quoted.ip + 10), address_delta))
    field = quoted.transport + (16 if quoted.protocol == TCP else 6)
    if field + 2 <= quoted.end:  # often only eight bytes of TCP are quoted (RFC 792)
        check = quoted.read16(field)
        if quoted.protocol == TCP:
            quoted.write16(field, update(check, delta))
        elif check:
            quoted.write16(field, update(check, delta) or MASK16)

    packet.write_source(src_high, src_low)
    packet.write_destination(dst_high, dst_low)
    if packet.version == 4:
        packet.write16(packet.ip + 10, 0)
        header = packet.transport - packet.ip
        packet.write16(packet.ip + 10, sum_bytes(packet.data, packet.ip, header) ^ MASK16)
    packet.write16(packet.transport + 2, 0)
    packet.write16(packet.transport + 2, checksum(packet, src_high, src_low, dst_high, dst_low))
