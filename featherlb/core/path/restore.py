"""Flows of a worker that is gone, taken over by its successor, so that nobody's connection ends.

What the predecessor's memory says is checked against what is served now: it may be from another
configuration, or have been left in the middle of a change. Flows that the kernel's connection
tracking carries are found there instead.
"""

import cython

from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import Members, Slot
from featherlb.core.flows.memory import FlowMemory, size_of
from featherlb.core.flows.next_hops import Hops
from featherlb.core.flows.snat_ports import PortAllocator
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.core.path.migrate import Handover
from featherlb.core.path.services import Services
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import NewFlow
from featherlb.model import Endpoint
from featherlb.model.shard import Shard
from featherlb.net.addresses import address_of

if not cython.compiled:
    from featherlb.core.flows.lifecycle import IS_ACTIVE
    from featherlb.core.flows.table import (
        BYTES,
        COUNTED,
        CREATED,
        EXPECTED,
        FLAGS,
        FULL,
        IPV6,
        LOCAL_CLIENT,
        MASK32,
        MEMBER,
        OFFLOADED,
        PORTS,
        PROTOCOL,
        REPLY_ONLY,
        RESPONSES,
        SEEN,
        STATE,
        WIRED,
    )

STATES = len(State)
_NONE = FlowMemory(bytearray(size_of(0)))


class Takeover:
    """Takes flows over."""

    def __init__(
        self,
        flows: FlowTable,
        services: Services,
        members: Members,
        lifecycle: Lifecycle,
        handover: Handover,
        hops: Hops,
        source_ports: PortAllocator,
    ) -> None:
        self._flows = flows
        self._services = services
        self._members = members
        self._lifecycle = lifecycle
        self._handover = handover
        self._hops = hops
        self._source_ports = source_ports
        self._slots: dict[tuple[Pool, int, int, int], Slot | None] = {}
        self.look_at(_NONE)

    def has_own(self) -> bool:
        """Whether there is any flow that a successor would take over."""
        flows = self._flows
        for flow in range(1, flows.last_record() + 1):
            if flows.u8[flow * 128 + PROTOCOL] and not flows.u8[flow * 128 + FLAGS] & OFFLOADED:
                return True
        return False

    def take(self, memory: FlowMemory, shard: Shard) -> tuple[int, int]:
        """Take over the flows in a predecessor's memory, as far as they are in this worker's
        shard: how many are, and how many of them had to be left, as there is no such VIP or
        backend any more, or no room. Every flow is as old, and as idle, as it was."""
        self.look_at(memory)
        links = [self._hops.slot_of(index) for index in memory.links]
        wanted = []
        for record in range(1, min(memory.used[0], memory.capacity) + 1):
            if self._u8[record * 128 + PROTOCOL] and not (
                self._u8[record * 128 + FLAGS] & OFFLOADED
            ):
                seen = self._u32[record * 32 + SEEN]
                wanted.append(seen << 32 | record)
        # Those that were silent for longest come first in a queue.
        wanted.sort()
        taken = left = 0
        for key in wanted:
            record = key & MASK32
            high, low = self._u64[record * 16], self._u64[record * 16 + 1]
            if not shard.has(high, low, self._u32[record * 32 + PORTS] >> 16):
                continue
            flow = self.enter(record)
            if flow:
                self._hops.recall(flow, memory.hops[record], links)
                taken += 1
            else:
                left += 1
        self.look_at(_NONE)
        return taken, left

    def look_at(self, memory: FlowMemory) -> None:
        """Read this memory from now on, and no other."""
        self._u64 = memory.records.cast("Q")
        self._u32 = memory.records.cast("I")
        self._u16 = memory.records.cast("H")
        self._u8 = memory.records
        self._slots.clear()

    def enter(self, record: int) -> int:
        """A flow like that record; 0 if there can be none."""
        flows = self._flows
        key = record * 16
        protocol = self._u8[record * 128 + PROTOCOL]
        flags = self._u8[record * 128 + FLAGS]
        state = self._u8[record * 128 + STATE]
        ports = self._u32[record * 32 + PORTS]
        back = self._u32[record * 32 + PORTS + 1]
        client_high, client_low = self._u64[key], self._u64[key + 1]
        vip_high, vip_low = self._u64[key + 2], self._u64[key + 3]
        high, low = self._u64[key + 4], self._u64[key + 5]
        source_high, source_low = self._u64[key + 6], self._u64[key + 7]
        pool = self._services.find(vip_high, vip_low, protocol, ports & 0xFFFF, False)
        if pool is None or state >= STATES or flows.count == flows.capacity:
            return 0
        slot = self.slot(pool, high, low, back >> 16)
        if slot is None:
            return 0
        hidden = flags & REPLY_ONLY
        if not hidden and flows.find(client_high, client_low, vip_high, vip_low, ports, protocol):
            return 0
        if flows.find(high, low, source_high, source_low, back, protocol):
            return 0
        # Rules know replies by the mode of the service (`Lifecycle.open`).
        full = flags & FULL != 0
        if full != (pool.full and not (pool.raw and flags & LOCAL_CLIENT)):
            return 0
        if not full and (
            source_high != client_high or source_low != client_low or (back ^ ports >> 16) & 0xFFFF
        ):
            return 0
        if full and not self.claim(slot, source_high, source_low, back & 0xFFFF):
            return 0
        flow = flows.insert(
            protocol,
            client_high,
            client_low,
            vip_high,
            vip_low,
            ports,
            high,
            low,
            source_high,
            source_low,
            back,
            self._lifecycle.closed_queue,
            self._u32[record * 32 + CREATED],
        )
        flags = slot.flags | flags & (IPV6 | FULL | LOCAL_CLIENT | COUNTED)
        if pool.raw and not flags & LOCAL_CLIENT:
            flags |= WIRED
        flows.u8[flow * 128 + FLAGS] = flags
        flows.u8[flow * 128 + STATE] = state
        flows.u16[flow * 64 + MEMBER] = slot.index
        flows.u16[flow * 64 + RESPONSES] = self._u16[record * 64 + RESPONSES]
        for direction in (0, 1):
            # Or what else stands there, by the flow's protocol.
            expected = self._u32[record * 32 + EXPECTED + direction]
            flows.u32[flow * 32 + EXPECTED + direction] = expected
            flows.u64[flow * 16 + BYTES + direction] = self._u64[key + BYTES + direction]
        if hidden:
            flows.hide(flow)
        seen = self._u32[record * 32 + SEEN]
        self._lifecycle.settle(flow)
        self._lifecycle.enter(flow, state, seen)
        if IS_ACTIVE[state]:
            slot.member.active += 1
        slot.held += 1
        if pool.persistence is not None:
            six = flags & IPV6
            new = NewFlow(
                protocol,
                6 if six else 4,
                int(address_of(client_high, client_low)),
                ports >> 16,
                int(address_of(vip_high, vip_low)),
                ports & 0xFFFF,
            )
            pool.persistence.remember(new, slot.member, seen)
        if pool.offloaded:
            self._handover.hand_over(flow, True)
        return flow

    def slot(self, pool: Pool, high: int, low: int, port: int) -> Slot | None:
        """That of the pool's member which has this endpoint, None if there is none."""
        key = (pool, high, low, port)
        if key not in self._slots:
            member = pool.members.get(Endpoint(address_of(high, low), port))
            self._slots[key] = self._members.slots[member.index] if member else None
        return self._slots[key]

    def claim(self, slot: Slot, high: int, low: int, port: int) -> bool:
        """Take the flow's own source address and port; whether they can be."""
        source = (high, low)
        return source in slot.sources and self._source_ports.claim(slot.target, source, port)
