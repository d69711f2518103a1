"""Gives a flow that is opening another backend, if its first one refuses it or does not answer.

A refusal is a RST that acknowledges the SYN, or an ICMP unreachable about it. The client does not
get it: the flow ends, and the SYN, of which a copy was kept, is sent through this host's OUTPUT
hook, where it is queued like that of a client on this host, and opens a flow with another backend.
A backend is silent if the client retransmits its SYN before any answer: this SYN opens the flow
with another backend. The one with the silent backend stays, by its replies only, so that a late
answer can be refused.

What one opening hands to the next stands in `pending`, by the client's tuple, until a packet of the
client opens the flow.
"""

from array import array

import cython

from featherlb.core.flows.carried import Carried
from featherlb.core.flows.counters import Counters
from featherlb.core.flows.flight_recorder import FlightRecorder
from featherlb.core.flows.kernel import Commands
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import Members
from featherlb.core.flows.next_hops import NextHops
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.core.path.context import Context
from featherlb.core.path.outbox import Outbox
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import Member, NewFlow
from featherlb.model import Endpoint, Hook, PacketInfo
from featherlb.model.reason import Reason
from featherlb.net.packet import Packet
from featherlb.net.protocols import ACK, RST, SYN, TCP

if not cython.compiled:
    from featherlb.core.flows.counters import MOVED_REFUSED, MOVED_SILENT, REFUSED, SYN_RETRIES
    from featherlb.core.flows.flight_recorder import MOVED
    from featherlb.core.flows.record import (
        ABANDONED,
        ANSWERED,
        CARRIED,
        LOCAL_CLIENT,
        OFFLOADED,
        REDISPATCHED,
        REPLY_ONLY,
        WIRED,
        direction_of,
        ports_of,
    )
    from featherlb.core.path.context import GO_ON
    from featherlb.net.packet import MASK32, OK

    def copy_bytes(to: memoryview, at: int, source: memoryview, first: int, length: int) -> None:
        """Copy bytes from one buffer to another."""
        to[at : at + length] = source[first : first + length]


SLOTS = 8192
"""SYNs that are kept. A later flow takes the place of an earlier one."""
SLOT_SIZE = 128
"""Bytes: a SYN with all options, but without data."""
MAX_PENDING = 4096
"""Flows that wait for the packet that opens them at another backend."""
MAX_STORIES = 4096
"""Flows whose earlier backends are remembered."""
PENDING = 50
"""Ticks after which a flow is no longer waited for: the second retransmission comes after 3 s (RFC
6298 section 2)."""

SYN_SENT = int(State.SYN_SENT)
SYN_RETRIED = int(State.SYN_RETRIED)
REPLACED = int(State.REPLACED)
UDP_ONE_WAY = int(State.UDP_ONE_WAY)
PREROUTING = int(Hook.PREROUTING)
OUTPUT = int(Hook.OUTPUT)
WIRE = int(Hook.WIRE)
NOT_READY = int(PacketInfo.CHECKSUM_NOT_READY)
REDISPATCHED_REASON = int(Reason.REDISPATCHED)
LATE_ANSWER = int(Reason.LATE_ANSWER)

Key = tuple[int, int, int, int, int, int]
Tried = tuple[Member, str]
"""A backend, and why the flow has left it."""


class Attempt:
    """A flow that is to open at another backend than those `tried`.

    `hook` is the one where the client's packets arrive, `hop` the hop towards the client as the
    flow has it.
    """

    def __init__(self, tried: tuple[Tried, ...], hook: int, hop: int, ticks: int) -> None:
        self.tried = tried
        self.hook = hook
        self.hop = hop
        self.ticks = ticks

    def choose(self, pool: Pool, flow: NewFlow, ticks: int) -> Member | None:
        """The next backend."""
        return pool.repick(flow, ticks, [member for member, _ in self.tried])


class Redispatch:
    """Moves flows to other backends. `pending` are those whose next packet opens them there;
    `unkept` counts refusals that the client got because the copy of its SYN was overwritten, or too
    long to keep."""

    def __init__(
        self,
        flows: FlowTable,
        members: Members,
        next_hops: NextHops,
        lifecycle: Lifecycle,
        counters: Counters,
        outbox: Outbox,
        commands: Commands,
        carried: Carried,
        recorder: FlightRecorder,
    ) -> None:
        self.pending: dict[Key, Attempt] = {}
        self.unkept = 0
        self._stories: dict[int, tuple[Tried, ...]] = {}
        self._reinjected: list[bytes] = []
        syns = bytearray(SLOTS * SLOT_SIZE)
        self._syns = memoryview(syns)
        self._owners = memoryview(array("I", bytes(4 * SLOTS)))
        self._lengths = memoryview(array("H", bytes(2 * SLOTS)))
        self._unfinished = memoryview(bytearray(SLOTS))
        self._kept = Packet()
        self._kept.attach(syns)
        self._flows = flows
        self._members = members
        self._next_hops = next_hops
        self._lifecycle = lifecycle
        self._counters = counters
        self._outbox = outbox
        self._commands = commands
        self._carried = carried
        self._recorder = recorder

    # For the packet path

    def keep(self, ctx: Context) -> None:
        """Keep a copy of the SYN that opens a flow."""
        packet = ctx.packet
        slot = ctx.flow & (SLOTS - 1)
        length = packet.end - packet.ip
        if length > SLOT_SIZE:
            length = 0
        self._owners[slot] = ctx.flow
        self._lengths[slot] = length
        self._unfinished[slot] = ctx.info & NOT_READY != 0
        copy_bytes(self._syns, slot * SLOT_SIZE, packet.data, packet.ip, length)

    def decide(self, ctx: Context) -> int:
        """Decide on a packet of a flow that is opening, or whose backend was replaced; GO_ON
        without a flow if the packet is to open one at another backend."""
        packet = ctx.packet
        flow = ctx.flow
        record = self._flows.at(flow)
        if record.state == REPLACED:
            self._outbox.refuse(ctx.ticks)
            if packet.flags & SYN:  # nothing else is to come
                self._lifecycle.close(flow)
            return self._counters.drop(LATE_ANSWER)
        if not ctx.reply:
            if packet.flags == SYN and self.is_silent(flow, ctx.ticks):
                self.replace(flow, ctx.ticks)
                ctx.flow = 0
        elif ctx.hook == WIRE and not self._next_hops.comes_from(record.member_id):
            pass  # forged: the tracker counts it
        elif self.is_refusal(packet, flow):
            self.refused(flow, ctx.ticks)
            return self._counters.drop(REDISPATCHED_REASON)
        else:
            # Such as the challenge ACK of a backend that still has an earlier connection with this
            # tuple (RFC 5961 section 4.2): the client resets that, and its next SYN is taken.
            record.flags |= ANSWERED
        return GO_ON

    def decide_error(self, ctx: Context, quoted: Packet) -> int:
        """Decide on an ICMP unreachable about a packet to the backend, which `quoted` is; GO_ON if
        the client is to get it."""
        flow = ctx.flow
        record = self._flows.at(flow)
        if ctx.hook == WIRE and not self._next_hops.comes_from(record.member_id):
            return GO_ON
        if record.protocol == TCP:
            if record.state == REPLACED:
                return self._counters.drop(LATE_ANSWER)
            if record.state not in (SYN_SENT, SYN_RETRIED) or not self.may_leave(flow):
                return GO_ON
            # Eight bytes are always quoted: ports and sequence number.
            sequence = quoted.read32(quoted.transport + 4)
            if not self.find_kept(flow) or sequence != self._kept.sequence:
                return GO_ON
            self.refused(flow, ctx.ticks)
            return self._counters.drop(REDISPATCHED_REASON)
        if record.state == UDP_ONE_WAY and self.may_leave(flow):
            self._counters.fail(record, REFUSED)
            self._counters.add(record.member_id, MOVED_REFUSED)
            self.await_opening(flow, "refused", ctx.ticks)
            self.retire(flow, ctx.ticks)
            if is_whole(quoted):
                return self._counters.drop(REDISPATCHED_REASON)
        return GO_ON

    def find(self, packet: Packet) -> Attempt | None:
        """What the parsed packet of a client, which has no flow, is to open."""
        return self.pending.get(key_of(packet))

    def opened(self, ctx: Context, attempt: Attempt) -> None:
        """Note that the packet in hand has opened the flow."""
        packet = ctx.packet
        flow = ctx.flow
        self.forget(packet)
        self._flows.at(flow).flags |= REDISPATCHED
        stories = self._stories
        stories.pop(flow, None)
        if len(stories) >= MAX_STORIES:
            del stories[next(iter(stories))]
        stories[flow] = attempt.tried
        if attempt.hook == WIRE:
            self._next_hops.clients[flow] = attempt.hop
        # A packet from the network that is sent here a second time has not passed a router yet. The
        # kernel sends the one of an offloaded flow as it came.
        offloaded = self._flows.at(flow).flags & OFFLOADED
        if ctx.hook == OUTPUT and attempt.hook != OUTPUT and not offloaded and packet.ttl() > 1:
            packet.decrement_ttl()

    def forget(self, packet: Packet) -> None:
        """The parsed packet has opened its flow, or no backend is left."""
        self.pending.pop(key_of(packet), None)

    def expire(self, ticks: int) -> None:
        """No longer wait for packets that did not come."""
        for key, attempt in list(self.pending.items()):
            if ticks - attempt.ticks < PENDING:
                break
            del self.pending[key]

    # For others

    def reinject(self, packet: bytes) -> None:
        """Send this client's packet through the OUTPUT hook, to a VIP."""
        self._reinjected.append(packet)

    def take_reinjected(self) -> list[bytes]:
        """Clients' packets to send through the OUTPUT hook, since the last call."""
        reinjected = self._reinjected
        if reinjected:
            self._reinjected = []
        return reinjected

    def story(self, flow: int) -> tuple[tuple[Endpoint, str], ...]:
        """The backends that a flow has left, each with the reason: "refused" or "silent"."""
        return tuple((member.endpoint, why) for member, why in self.tried(flow))

    # Helpers

    def tried(self, flow: int) -> tuple[Tried, ...]:
        """The backends that the flow has left."""
        if not self._flows.at(flow).flags & REDISPATCHED:
            return ()
        return self._stories.get(flow, ())

    def may_leave(self, flow: int) -> bool:
        """Whether another backend may get a flow that its backend has refused."""
        return self.has_other(flow) and self.pool_of(flow).service.redispatch.refused

    def is_silent(self, flow: int, ticks: int) -> bool:
        """Whether another backend may get a flow because of its client's second SYN."""
        record = self._flows.at(flow)
        if record.flags & ANSWERED or not self._lifecycle.is_retransmission(flow, ticks):
            return False
        return self.has_other(flow) and self.pool_of(flow).service.redispatch.silent

    def pool_of(self, flow: int) -> Pool:
        pool: Pool = self._members.by_id[self._flows.at(flow).member_id].pool
        return pool

    def has_other(self, flow: int) -> bool:
        """Whether there is another backend to try, and an attempt left, and whether both can be
        remembered: else backends that refuse a flow might hand it round without end."""
        record = self._flows.at(flow)
        member = self._members.by_id[record.member_id]
        pool = member.pool
        tried = self.tried(flow)
        if len(self.pending) >= MAX_PENDING or len(tried) >= pool.service.redispatch.attempts:
            return False
        if record.flags & REDISPATCHED and not tried:
            return False  # forgotten
        return pool.has_other([member.scheduled, *(one for one, _ in tried)])

    def find_kept(self, flow: int) -> bool:
        """Whether a copy of the flow's SYN is kept; it is parsed."""
        slot = flow & (SLOTS - 1)
        record = self._flows.at(flow)
        kept = self._kept
        length = self._lengths[slot]
        found = (
            self._owners[slot] == flow
            and length > 0
            and kept.parse(slot * SLOT_SIZE, length) == OK
            and kept.ports == ports_of(direction_of(record, 0))
            and kept.src_low == record.client_low
            and kept.src_high == record.client_high
            and kept.dst_low == record.vip_low
            and kept.dst_high == record.vip_high
        )
        if not found:
            self.unkept += 1
        return found

    def is_refusal(self, packet: Packet, flow: int) -> bool:
        """Whether the backend's parsed segment refuses a connection that another backend may get: a
        RST that acknowledges the SYN (RFC 9293 section 3.10.7.3), which is found."""
        if packet.flags != RST | ACK or not self.may_leave(flow) or not self.find_kept(flow):
            return False
        data = self._kept.end - self._kept.payload
        return (packet.acknowledgement - self._kept.sequence - 1) & MASK32 <= data

    def refused(self, flow: int, ticks: int) -> None:
        """Send the SYN that was found last to another backend."""
        record = self._flows.at(flow)
        kept = self._kept
        self._counters.fail(record, REFUSED)
        self._counters.add(record.member_id, MOVED_REFUSED)
        self.await_opening(flow, "refused", ticks)
        if self._unfinished[flow & (SLOTS - 1)]:
            kept.complete_checksum()
        if record.flags & (OFFLOADED | LOCAL_CLIENT) == OFFLOADED and kept.ttl() > 1:
            kept.decrement_ttl()
        self.reinject(kept.quote(SLOT_SIZE))
        self._lifecycle.close(flow)

    def replace(self, flow: int, ticks: int) -> None:
        """Free the tuple of a client whose backend is silent for another flow."""
        record = self._flows.at(flow)
        self._counters.fail(record, SYN_RETRIES)
        self._counters.add(record.member_id, MOVED_SILENT)
        self.await_opening(flow, "silent", ticks)
        self.retire(flow, ticks)

    def retire(self, flow: int, ticks: int) -> None:
        """Keep a flow by its replies only."""
        flows = self._flows
        record = flows.at(flow)
        if record.flags & CARRIED:
            self._carried.end(flow)
        if not record.flags & REPLY_ONLY:
            flows.hide(flow)
        if flows.is_offloaded(flow):
            self._commands.delete(flows, flow)
            record.flags |= ABANDONED
        self._lifecycle.enter(flow, REPLACED, ticks)

    def await_opening(self, flow: int, why: str, ticks: int) -> None:
        """The client's next packet is to open the flow at another backend."""
        record = self._flows.at(flow)
        member = self._members.by_id[record.member_id]
        self._recorder.note(MOVED, record, why == "silent")
        member.scheduled.failed = ticks
        hook = PREROUTING
        if record.flags & LOCAL_CLIENT:
            hook = OUTPUT
        elif record.flags & WIRED:
            hook = WIRE
        key = (
            record.client_high,
            record.client_low,
            record.vip_high,
            record.vip_low,
            ports_of(direction_of(record, 0)),
            record.protocol,
        )
        tried = (*self.tried(flow), (member.scheduled, why))
        self.pending[key] = Attempt(tried, hook, self._next_hops.clients[flow], ticks)


def key_of(packet: Packet) -> Key:
    """The tuple of a parsed packet of a client."""
    return (
        packet.src_high,
        packet.src_low,
        packet.dst_high,
        packet.dst_low,
        packet.ports,
        packet.protocol,
    )


def is_whole(quoted: Packet) -> bool:
    """Whether an ICMP error quotes the parsed packet entirely."""
    ip = quoted.ip
    if quoted.version == 4:
        return quoted.end == ip + quoted.read16(ip + 2)
    return quoted.end == ip + 40 + quoted.read16(ip + 4)
