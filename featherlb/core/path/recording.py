"""Records what becomes of chosen packets, for `featherlb capture`.

While nothing is recorded, packets don't pass here: an engine looks once for each batch whether
`active` is set, and calls `begin` and `end` around each packet only then. A packet that isn't
wanted costs a copy of its headers and a comparison with the filter.

A translated packet is recorded twice: on the side where it arrived, as it arrived, and on the other
side as it left. The kernel's packets (`see`) and featherlb's own (`send`) are recorded once.
"""

import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

import cython

from featherlb.core.flows.counters import Counters
from featherlb.core.flows.members import Members
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.core.path.context import Context
from featherlb.core.path.services import Services
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import Member, NewFlow, UserScheduler
from featherlb.model import Endpoint, Hook, Protocol
from featherlb.model.label import label
from featherlb.model.reason import TRANSLATED, Reason
from featherlb.net.addresses import endpoint_of, words_of
from featherlb.net.packet import Packet
from featherlb.net.protocols import TCP, UDP

if not cython.compiled:
    from featherlb.core.flows.record import CARRIED, OFFLOADED
    from featherlb.net.packet import OK

HEAD = 256
"""Bytes at the beginning of a packet that may be rewritten: its headers, and those of a packet that
an ICMP error quotes."""
MAX_RECORDS = 400
MAX_BYTES = 1 << 20
"""Records and bytes between two calls of `take`: a worker spends no more time on them, however much
is wanted. The packet that reaches a limit is recorded whole."""
CLIENTS, BACKENDS = "clients", "backends"
"""The sides on which a packet is seen."""
LONGEST = 1 << 16
"""Bytes of a packet."""

NOT_OURS = int(Reason.NOT_OURS)
COPY = int(Reason.COPY)
MALFORMED = int(Reason.MALFORMED)
REPLY = int(Reason.REPLY)
WIRE = int(Hook.WIRE)
NONE_COUNTED = -1
WITHOUT_PORTS = frozenset(
    {Reason.FRAGMENT, Reason.UNSUPPORTED, Reason.BAD_CHECKSUM, Reason.ECHO, Reason.ICMP_ERROR}
)
"""Reasons for packets whose addresses are read, but not ports."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which packets to record, and how many bytes of each (`length`); None is any."""

    service: str | None = None
    client: IPv4Network | IPv6Network | None = None
    backend: Endpoint | None = None
    """One port, several, or all ports of a host."""
    protocol: Protocol | None = None
    length: int = LONGEST


class Recorded(NamedTuple):
    """A packet on one side. `time` is on the clock of `handle_packet`, `length` in bytes as it was,
    of which `data` has the first ones. `leaving` is False where it arrives."""

    time: float
    side: str
    leaving: bool
    length: int
    data: bytes
    comment: str


_PACKED = struct.Struct("=dB?III")
"""Of a record: time, side, leaving, and the lengths of the packet, of its data and its comment."""


def pack(records: Iterable[Recorded]) -> bytes:
    """The records as bytes: a worker has no time for more."""
    parts = []
    for time, side, leaving, length, data, comment in records:
        text = comment.encode()
        head = _PACKED.pack(time, side == BACKENDS, leaving, length, len(data), len(text))
        parts += [head, data, text]
    return b"".join(parts)


def unpack(content: bytes) -> list[Recorded]:
    """The inverse; ValueError if it is no such content."""
    records = []
    at = 0
    while at < len(content):
        if at + _PACKED.size > len(content):
            raise ValueError("a record is cut off")
        time, side, leaving, length, size, text = _PACKED.unpack_from(content, at)
        at += _PACKED.size
        if at + size + text > len(content):
            raise ValueError("a record is cut off")
        data, comment = content[at : at + size], content[at + size : at + size + text].decode()
        at += size + text
        records.append(
            Recorded(time, (CLIENTS, BACKENDS)[side & 1], leaving, length, data, comment)
        )
    return records


class Recording:
    """What is recorded, and what has been so far."""

    def __init__(
        self,
        flows: FlowTable,
        members: Members,
        services: Services,
        counters: Counters,
        context: Context,
        packet: Packet,
    ) -> None:
        self._flows = flows
        self._members = members
        self._services = services
        self._counters = counters
        self._context = context
        self._packet = packet
        self._own = Packet()
        self.active = False
        self.wanted = Wanted()
        self.head = memoryview(bytearray(HEAD))
        self.counted = memoryview(array("Q", bytes(8 * len(Reason))))
        self.net_high = self.net_low = self.mask_high = self.mask_low = 0
        self._records: list[Recorded] = []
        self._bytes = 0
        self._missed = 0
        self._remarks: dict[int, str] = {}
        self._comments: dict[tuple[int, ...], str] = {}

    def start(self, wanted: Wanted) -> None:
        """Record these packets from now on."""
        self.stop()
        self.active = True
        self.wanted = wanted
        if wanted.client is not None:
            self.net_high, self.net_low = words_of(wanted.client.network_address)
            # Of an IPv4 network: in the mapped form.
            mask = ~((1 << wanted.client.max_prefixlen - wanted.client.prefixlen) - 1)
            self.mask_high = mask >> 64 & 0xFFFF_FFFF_FFFF_FFFF
            self.mask_low = mask & 0xFFFF_FFFF_FFFF_FFFF

    def stop(self) -> None:
        """Record nothing more, and forget what has been."""
        self.active = False
        self.net_high = self.net_low = self.mask_high = self.mask_low = 0
        self._remarks.clear()
        self.take()

    def take(self) -> tuple[list[Recorded], int]:
        """What has been recorded since the last call, and how many records didn't fit."""
        records, missed = self._records, self._missed
        self._records, self._missed, self._bytes = [], 0, 0
        self._comments.clear()
        return records, missed

    # Around `handle_packet`

    def begin(self, offset: int, size: int) -> None:
        """Before the packet at `offset` of the core's buffer, of which `size` bytes are there, is
        handled."""
        self.offset = offset
        self.size = size
        head = min(size, HEAD)
        self.head[:head] = self._packet.data[offset : offset + head]
        self.counted[:] = self._counters.reasons

    def end(self) -> None:
        """After it has been handled: record it if it is wanted."""
        reason = self.reason()
        if reason in (NONE_COUNTED, NOT_OURS, COPY):
            return
        ctx = self._context
        if ctx.flow and self._flows.at(ctx.flow).protocol:
            if self.wants(ctx.flow) and self.has_room():
                self.record_of_flow(reason)
        elif self.wants_stray(reason) and self.has_room():
            self.record_stray(reason)

    def has_room(self) -> bool:
        """Whether another packet may be recorded; if not, it is counted as missed. Comments take
        longer than anything else, so this comes first."""
        if len(self._records) < MAX_RECORDS and self._bytes < MAX_BYTES:
            return True
        self._missed += 1
        return False

    def reason(self) -> int:
        """What the packet was counted under."""
        reasons = self._counters.reasons
        for i in range(len(reasons)):
            if reasons[i] != self.counted[i]:
                return i
        return NONE_COUNTED

    def wants_client(self, high: int, low: int) -> bool:
        """Whether packets of the client with this address are wanted."""
        return (high ^ self.net_high) & self.mask_high == 0 and (
            low ^ self.net_low
        ) & self.mask_low == 0

    def wants(self, flow: int) -> bool:
        """Whether packets of this flow are wanted."""
        record = self._flows.at(flow)
        if not self.wants_client(record.client_high, record.client_low):
            return False
        wanted = self.wanted
        if wanted.protocol is not None and record.protocol != int(wanted.protocol):
            return False
        if wanted.service is not None:
            member = self._members.by_id[record.member_id]
            if member.pool.service.name != wanted.service:
                return False
        return wanted.backend is None or wanted.backend.covers(self.backend(flow))

    def wants_stray(self, reason: int) -> bool:
        """Whether a packet without a flow is wanted: from a client to a VIP, or unreadable."""
        wanted = self.wanted
        if wanted.backend is not None:
            return False
        if reason == MALFORMED:
            return wanted.client is None and wanted.service is None and wanted.protocol is None
        packet = self._packet
        if reason == REPLY:  # the last one of its flow; it has the client's address now
            return self.wants_sent(self.after())
        if not self.wants_client(packet.src_high, packet.src_low):
            return False
        if wanted.protocol is not None and packet.protocol != int(wanted.protocol):
            return False
        return wanted.service is None or self.service_of_stray(reason) == wanted.service

    def service_of_stray(self, reason: int) -> str:
        """The name of the service that the packet is for; empty if that can't be read."""
        packet = self._packet
        if reason == MALFORMED or Reason(reason) in WITHOUT_PORTS:
            return ""
        return self.service_at(
            packet.dst_high, packet.dst_low, packet.protocol, packet.ports & 0xFFFF
        )

    def service_at(self, high: int, low: int, protocol: int, port: int) -> str:
        """The name of the service with this VIP; empty if there is none."""
        pool: Pool | None = self._services.find(
            high, low, protocol, port, self._context.hook == WIRE
        )
        return "" if pool is None else pool.service.name

    def before(self) -> bytes:
        """The packet as it arrived."""
        head = min(self.size, HEAD)
        end = min(self.size, self.wanted.length)
        rest = bytes(self._packet.data[self.offset + head : self.offset + max(head, end)])
        return (bytes(self.head[:head]) + rest)[:end]

    def after(self) -> bytes:
        """The packet as it is now."""
        end = min(self.size, max(self.wanted.length, HEAD))
        return bytes(self._packet.data[self.offset : self.offset + end])

    def record_of_flow(self, reason: int) -> None:
        """Record the handled packet, which belongs to a flow."""
        ctx = self._context
        record = self._flows.at(ctx.flow)
        arrived = BACKENDS if ctx.reply else CLIENTS
        left = CLIENTS if ctx.reply else BACKENDS
        name = self._members.by_id[record.member_id].pool.service.name
        if Reason(reason) not in TRANSLATED:
            comment = f"{name}: dropped, {Reason(reason).label}"
        elif reason == Reason.ICMP_ERROR:
            comment = f"{name}: ICMP error about a flow to {self.backend(ctx.flow)}"
        elif ctx.offloaded:
            comment = f"{self.about_new(ctx.flow)}; the kernel translates the flow"
        elif ctx.reply:
            comment = self.about(ctx.flow, 1, False)
        elif record.forward_bytes == ctx.length and not record.reply_bytes:
            comment = self.about_new(ctx.flow)
        else:
            comment = self.about(ctx.flow, 0, False)
        if record.flags & (OFFLOADED | CARRIED):
            # The kernel's packet sockets see the packet, too.
            if len(self._remarks) < MAX_RECORDS:
                self._remarks[ctx.flow] = comment
            return
        self.add(ctx.now, arrived, False, ctx.length, self.before(), comment)
        if Reason(reason) in TRANSLATED:
            comment = self.about(ctx.flow, ctx.reply, True)
            self.add(ctx.now, left, True, ctx.length, self.after(), comment)

    def record_stray(self, reason: int) -> None:
        """Record the handled packet, which belongs to no flow, or to one that has ended with it."""
        ctx = self._context
        outcome = Reason(reason).label
        service = self.service_of_stray(reason)
        prefix = f"{service}: " if service else ""
        if Reason(reason) not in TRANSLATED:
            self.add(
                ctx.now, CLIENTS, False, ctx.length, self.before(), f"{prefix}dropped, {outcome}"
            )
            return
        arrived = BACKENDS if ctx.reply else CLIENTS
        left = CLIENTS if ctx.reply else BACKENDS
        comment = f"{prefix}{outcome}, the last packet of its flow"
        self.add(ctx.now, arrived, False, ctx.length, self.before(), comment)
        self.add(ctx.now, left, True, ctx.length, self.after(), f"{prefix}translated")

    # Other packets

    def send(self, packet: bytes, now: float) -> None:
        """Record a packet that featherlb sends of itself, if it is wanted."""
        if not self.wants_sent(packet) or not self.has_room():
            return
        ref = self.find_sent()
        side = BACKENDS if ref & 1 else CLIENTS
        name = self.name_of_sent(ref)
        comment = f"{name}: from featherlb itself" if name else "from featherlb itself"
        self.add(now, side, True, len(packet), packet, comment)

    def wants_sent(self, packet: bytes) -> bool:
        """Whether a packet is wanted that leaves, with the addresses that it has now. It is parsed
        then."""
        wanted = self.wanted
        own = self._own
        own.attach(bytearray(packet))
        parsed = own.parse(0, len(packet)) == OK
        if parsed and (ref := self.find_sent()):
            return self.wants(ref >> 1)
        if wanted.backend is not None:
            return False
        if not self.wants_client(own.dst_high, own.dst_low):
            return False
        if wanted.protocol is not None and own.protocol != int(wanted.protocol):
            return False
        return wanted.service is None or (parsed and self.name_of_sent(0) == wanted.service)

    def find_sent(self) -> int:
        """The flow of the packet that was parsed last, which is on its way out, and 1 if it is to
        the backend (`FlowTable.find`)."""
        own = self._own
        if own.protocol not in (TCP, UDP):
            return 0
        ports = (own.ports & 0xFFFF) << 16 | own.ports >> 16
        return self._flows.find(
            own.dst_high, own.dst_low, own.src_high, own.src_low, ports, own.protocol
        )

    def name_of_sent(self, ref: int) -> str:
        """The service of a packet on its way out, by its flow or its source; empty if unknown."""
        if ref:
            record = self._flows.at(ref >> 1)
            name: str = self._members.by_id[record.member_id].pool.service.name
            return name
        own = self._own
        if own.protocol not in (TCP, UDP):
            return ""
        return self.service_at(own.src_high, own.src_low, own.protocol, own.ports >> 16)

    def see(self, time: float, leaving: bool, length: int, data: bytes) -> None:
        """Record a packet that a socket has seen if it is wanted and of a flow that the kernel
        translates. The time is on the clock of `handle_packet`."""
        own = self._own
        # A packet may have been cut.
        own.attach(bytearray(data.ljust(min(length, LONGEST), b"\0")))
        if own.parse(0, min(length, LONGEST)) != OK:
            return
        if leaving:
            ref = self.find_sent()
        else:
            ref = self._flows.find(
                own.src_high, own.src_low, own.dst_high, own.dst_low, own.ports, own.protocol
            )
        side = BACKENDS if ref & 1 else CLIENTS
        flow = ref >> 1
        if not ref or not self._flows.at(flow).flags & (OFFLOADED | CARRIED):
            return
        if not self.wants(flow) or not self.has_room():
            return
        if leaving:
            comment = self.about(flow, 1 - (ref & 1), True)
        else:
            comment = self._remarks.pop(flow, "") or self.about(flow, ref & 1, False)
        self.add(time, side, leaving, length, data, comment)

    # Comments

    def about(self, flow: int, reply: int, leaving: bool) -> str:
        """Of a packet of this flow in this direction; the same for all until its state changes."""
        record = self._flows.at(flow)
        # The record may be another flow's meanwhile.
        client = record.client_low, record.client_port, record.member_id
        key = (flow, *client, record.state, reply, leaving)
        comment = self._comments.get(key)
        if comment is None:
            if leaving:
                comment = self.about_translation(flow, reply)
            elif reply:
                comment = self.about_reply(flow)
            else:
                comment = self.about_forward(flow)
            self._comments[key] = comment
        return comment

    def about_new(self, flow: int) -> str:
        """Of the packet that opened this flow."""
        record = self._flows.at(flow)
        member = self._members.by_id[record.member_id]
        pool = member.pool
        client = endpoint_of(record.client_high, record.client_low, record.client_port)
        vip = endpoint_of(record.vip_high, record.vip_low, record.vip_port)
        new = NewFlow.between(record.protocol, client, vip)
        why = reason_for(pool, member.scheduled, new)
        return f"{pool.service.name}: new flow to {self.backend(flow)} by {why}"

    def about_forward(self, flow: int) -> str:
        """Of a client's packet of this flow."""
        record = self._flows.at(flow)
        name = self._members.by_id[record.member_id].pool.service.name
        return f"{name}: to {self.backend(flow)}, {label(State(record.state))}"

    def about_reply(self, flow: int) -> str:
        """Of a backend's packet of this flow."""
        record = self._flows.at(flow)
        name = self._members.by_id[record.member_id].pool.service.name
        client = endpoint_of(record.client_high, record.client_low, record.client_port)
        return f"{name}: for {client}, {label(State(record.state))}"

    def about_translation(self, flow: int, reply: int) -> str:
        """Of a packet of this flow in this direction, as it leaves."""
        record = self._flows.at(flow)
        pool = self._members.by_id[record.member_id].pool
        vip = endpoint_of(record.vip_high, record.vip_low, record.vip_port)
        backend = self.backend(flow)
        client = endpoint_of(record.client_high, record.client_low, record.client_port)
        source = endpoint_of(record.source_high, record.source_low, record.source_port)
        if reply:
            text = f"source {backend} -> {vip}"
            return f"{pool.service.name}: translated, {text}" + (
                f", destination {source} -> {client}" if source != client else ""
            )
        text = f"destination {vip} -> {backend}"
        return f"{pool.service.name}: translated, {text}" + (
            f", source {client} -> {source}" if source != client else ""
        )

    def backend(self, flow: int) -> Endpoint:
        record = self._flows.at(flow)
        return endpoint_of(record.backend_high, record.backend_low, record.backend_port)

    def add(
        self, time: float, side: str, leaving: bool, length: int, data: bytes, comment: str
    ) -> None:
        """Add a record."""
        data = data[: self.wanted.length]
        self._bytes += len(data)
        self._records.append(Recorded(time, side, bool(leaving), length, data, comment))


def reason_for(pool: Pool, chosen: Member, flow: NewFlow) -> str:
    """The scheduler's name, and why it chose this member, as far as that can be told afterwards: of
    one whose picks change nothing."""
    name = pool.service.scheduler
    if chosen.backend.canary:
        return f"canary, {chosen.backend.canary:g} % of new flows"
    scheduler = pool.tier_of(chosen).scheduler
    if isinstance(scheduler, UserScheduler) or scheduler.save() is not None:
        return name
    first = scheduler.peek(flow)
    if first is not chosen:
        return f"{name}, not its first choice" if first is not None else name
    return f"{name}: {scheduler.explain(flow)}"
