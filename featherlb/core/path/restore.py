"""Restores the flows of a worker that has ended, so that connections survive.

The predecessor's memory is checked against the current services: it may be from another
configuration, or left in the middle of a change. Offloaded flows are adopted from the kernel
instead.
"""

import cython

from featherlb.core.flows.announcer import Announcer
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import Members, PoolMember
from featherlb.core.flows.memory import FlowMemory, size_of
from featherlb.core.flows.next_hops import NextHops
from featherlb.core.flows.record import Records
from featherlb.core.flows.snat_ports import PortAllocator
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.core.path.migrate import Migration
from featherlb.core.path.services import Services
from featherlb.core.pools.pool import Pool
from featherlb.model.shard import Shard
from featherlb.net.protocols import TCP

if not cython.compiled:
    from featherlb.core.flows.record import (
        COUNTED,
        FULL,
        IPV6,
        LOCAL_CLIENT,
        OFFLOADED,
        REPLY_ONLY,
        SPLICED,
        UNSURE,
        WIRED,
        Direction,
        Record,
        direction_of,
        ports_of,
    )

STATES = len(State)
NEW = int(State.NEW)
SYN_SENT = int(State.SYN_SENT)
SYN_RETRIED = int(State.SYN_RETRIED)
REPLACED = int(State.REPLACED)
REPLICA = int(State.REPLICA)
_NONE = FlowMemory(bytearray(size_of(0)))


class Restoration:
    """Restores flows from a predecessor's memory."""

    def __init__(
        self,
        flows: FlowTable,
        services: Services,
        members: Members,
        lifecycle: Lifecycle,
        migration: Migration,
        announcer: Announcer,
        next_hops: NextHops,
        source_ports: PortAllocator,
    ) -> None:
        self._flows = flows
        self._services = services
        self._members = members
        self._lifecycle = lifecycle
        self._migration = migration
        self._announcer = announcer
        self._next_hops = next_hops
        self._source_ports = source_ports
        self._known: dict[tuple[Pool, int, int, int, int], PoolMember | None] = {}
        self.read_from(_NONE)

    def has_flows(self) -> bool:
        """Whether there is any flow that a successor would restore."""
        flows = self._flows
        for flow in range(1, flows.last_record() + 1):
            record = flows.at(flow)
            if record.protocol and not record.flags & OFFLOADED and record.state != REPLICA:
                return True
        return False

    def restore(self, memory: FlowMemory, shard: Shard) -> tuple[int, int]:
        """Restore the flows in a predecessor's memory that are in this worker's shard: how many
        were restored, and how many were not, because their VIP or backend no longer exists or the
        table is full. Age and idle time are kept."""
        self.read_from(memory)
        links = [self._next_hops.link_id_of(index) for index in memory.links]
        wanted = []
        for number in range(1, min(memory.used[0], memory.capacity) + 1):
            record = self._records.at(number)
            if (
                record.protocol
                and not record.flags & OFFLOADED
                and record.state not in (REPLACED, REPLICA)  # peers announce replicas again
            ):
                wanted.append((record.seen, number))
        # Queues begin with the flow that was idle for longest.
        wanted.sort()
        taken = left = 0
        for _, number in wanted:
            record = self._records.at(number)
            if not shard.has(record.client_high, record.client_low, record.client_port):
                continue
            # Its replies may be another worker's now.
            found = record.flags & FULL or shard.has(
                record.client_high, record.client_low, record.source_port
            )
            flow = self.restore_flow(number) if found else 0
            if flow:
                self._next_hops.recall(flow, memory.hops[number], links)
                taken += 1
            else:
                left += 1
        self.read_from(_NONE)
        return taken, left

    def read_from(self, memory: FlowMemory) -> None:
        """Read this memory from now on."""
        self._records = Records(memory.records)
        self._created = memory.created
        self._splices = memory.splices
        self._known.clear()

    def restore_flow(self, number: int) -> int:
        """Restore the flow of that record number; 0 if that is not possible."""
        old = self._records.at(number)
        flow = self.insert(old, self._created[number], self._splices[number])
        if flow:
            member = self._members.by_id[self._flows.at(flow).member_id]
            if self._announcer.node:
                self._announcer.restore(flow, member.pool.sync)
            self._lifecycle.restore(flow, member, old.seen)
            if member.pool.offloaded:
                self._migration.migrate_flow(flow, True)
        return flow

    def forget_members(self) -> None:
        """Look members up again: they may have changed."""
        self._known.clear()

    def insert(self, old: Record, created: int, splice: int) -> int:
        """Insert a flow like that of another table, which was opened at this time, in ticks; 0 if
        that is not possible. `Lifecycle.restore` completes it."""
        flows = self._flows
        flags = old.flags
        state = old.state
        forward = direction_of(old, 0)
        reply = direction_of(old, 1)
        pool = self._services.find(old.vip_high, old.vip_low, old.protocol, old.vip_port, False)
        if pool is None or state >= STATES or flows.count == flows.capacity:
            return 0
        spliced = old.protocol == TCP and flags & SPLICED
        # Only the predecessor knew its SYN, or the kernel can't convert its windows.
        opening = state in (NEW, SYN_SENT, SYN_RETRIED)
        if spliced and (opening or (pool.offloaded and splice >> 32)):
            return 0
        member = self.member(
            pool, old.backend_high, old.backend_low, old.backend_port, old.vip_port
        )
        if member is None:
            return 0
        if not flags & REPLY_ONLY and self.is_taken(forward, old.protocol):
            return 0
        if self.is_taken(reply, old.protocol):
            return 0
        # Rules match replies by the service's NAT mode (`Lifecycle.open`).
        full = flags & FULL != 0
        if full != (pool.full and not (pool.raw and flags & LOCAL_CLIENT)):
            return 0
        if not full and (old.source_high != old.client_high or old.source_low != old.client_low):
            return 0
        if full:
            source = (old.source_high, old.source_low)
            if source in member.sources:
                if not self._source_ports.claim(member.target, source, old.source_port):
                    return 0
            elif source not in member.peer_sources:  # whose ports another node gives out
                return 0
        flow = flows.insert(
            old.protocol,
            old.client_high,
            old.client_low,
            old.vip_high,
            old.vip_low,
            ports_of(forward),
            old.backend_high,
            old.backend_low,
            old.source_high,
            old.source_low,
            ports_of(reply),
            self._lifecycle.closed_queue,
            created,
        )
        self._next_hops.clients[flow] = 0
        record = flows.at(flow)
        flags = member.flags | flags & (IPV6 | FULL | LOCAL_CLIENT | COUNTED | SPLICED)
        if pool.raw and not flags & LOCAL_CLIENT:
            flags |= WIRED
        if old.protocol == TCP:  # some of its segments may have passed meanwhile
            flags |= UNSURE
        record.flags = flags
        record.state = state
        record.member_id = member.id
        flows.splices[flow] = splice
        # Or the other fields of their unions, depending on the flow.
        record.ends[0] = old.ends[0]
        record.ends[1] = old.ends[1]
        record.client_expects = old.client_expects
        record.backend_expects = old.backend_expects
        record.scales = old.scales
        record.forward_bytes = old.forward_bytes
        record.reply_bytes = old.reply_bytes
        if old.flags & REPLY_ONLY:
            flows.hide(flow)
        return flow

    def is_taken(self, direction: Direction, protocol: int) -> bool:
        """Whether packets of this direction already belong to a flow."""
        return (
            self._flows.find(
                direction.src_high,
                direction.src_low,
                direction.dst_high,
                direction.dst_low,
                ports_of(direction),
                protocol,
            )
            != 0
        )

    def member(
        self, pool: Pool, high: int, low: int, port: int, vip_port: int
    ) -> PoolMember | None:
        """See `Members.find`."""
        key = (pool, high, low, port, vip_port)
        if key not in self._known:
            self._known[key] = self._members.find(pool, high, low, port, vip_port)
        return self._known[key]
