"""Flows of a worker that is gone, taken over by its successor, so that nobody's connection ends.

Imports `addresses`, `flow`, `handover`, `hops`, `lifecycle`, `members`, `memory`, `ports`,
`scheduler`, `services`, `tcpstate`, `model` and `sharing`. What the predecessor's memory says is
checked against what is served now: it may be from another configuration, or have been left in the
middle of a change. Flows that the kernel's connection tracking carries are found there instead.
"""

import cython

from featherlb.core.addresses import address_of
from featherlb.core.flow import FlowTable
from featherlb.core.handover import Handover
from featherlb.core.hops import Hops
from featherlb.core.lifecycle import Lifecycle
from featherlb.core.members import Members, Slot
from featherlb.core.memory import FlowMemory
from featherlb.core.ports import PortAllocator
from featherlb.core.scheduler import NewFlow
from featherlb.core.services import Services
from featherlb.core.tcpstate import State
from featherlb.model import Endpoint
from featherlb.sharing import Share

if not cython.compiled:
    from featherlb.core.flow import (
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
    from featherlb.core.lifecycle import IS_ACTIVE

STATES = len(State)


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

    def has_own(self) -> bool:
        """Whether there is any flow that a successor would take over."""
        flows = self._flows
        for flow in range(1, flows.last_record() + 1):
            if flows.u8[flow * 128 + PROTOCOL] and not flows.u8[flow * 128 + FLAGS] & OFFLOADED:
                return True
        return False

    def take(self, memory: FlowMemory, share: Share) -> tuple[int, int]:
        """Take over the flows in a predecessor's memory, as far as they are in this worker's
        share: how many are, and how many of them had to be left, as there is no such VIP or
        backend any more, or no room. Every flow is as old, and as idle, as it was."""
        u8 = memory.records
        u32 = memory.records.cast("I")
        slots = [self._hops.slot_of(index) for index in memory.links]
        wanted = []
        for record in range(1, min(memory.used[0], memory.capacity) + 1):
            at = record * 128
            if u8[at + PROTOCOL] and not u8[at + FLAGS] & OFFLOADED:
                wanted.append(u32[record * 32 + SEEN] << 32 | record)
        # Those that were silent for longest come first in a queue.
        wanted.sort()
        taken = left = 0
        for key in wanted:
            record = key & MASK32
            client = self.client(memory, record)
            if not share.has(client, u32[record * 32 + PORTS] >> 16):
                continue
            flow = self.enter(memory, record)
            if flow:
                self._hops.recall(flow, memory.hops[record], slots)
                taken += 1
            else:
                left += 1
        return taken, left

    def client(self, memory: FlowMemory, record: int) -> int:
        """The client's address as `Share.has` wants it."""
        u64 = memory.records.cast("Q")
        word = u64[record * 16 + 1]
        if memory.records[record * 128 + FLAGS] & IPV6:
            word ^= u64[record * 16]
            word ^= word >> 32
        return word & MASK32

    def enter(self, memory: FlowMemory, record: int) -> int:
        """A flow like that record; 0 if there can be none."""
        flows = self._flows
        u64 = memory.records.cast("Q")
        u32 = memory.records.cast("I")
        u16 = memory.records.cast("H")
        u8 = memory.records
        key = record * 16
        protocol = u8[record * 128 + PROTOCOL]
        flags = u8[record * 128 + FLAGS]
        state = u8[record * 128 + STATE]
        ports = u32[record * 32 + PORTS]
        back = u32[record * 32 + PORTS + 1]
        pool = self._services.find(u64[key + 2], u64[key + 3], protocol, ports & 0xFFFF, False)
        if pool is None or state >= STATES or flows.count == flows.capacity:
            return 0
        backend = Endpoint(address_of(u64[key + 4], u64[key + 5]), back >> 16)
        member = pool.members.get(backend)
        if member is None:
            return 0
        slot = self._members.slots[member.index]
        hidden = flags & REPLY_ONLY
        if not hidden and flows.find(
            u64[key], u64[key + 1], u64[key + 2], u64[key + 3], ports, protocol
        ):
            return 0
        if flows.find(u64[key + 4], u64[key + 5], u64[key + 6], u64[key + 7], back, protocol):
            return 0
        # Rules know replies by the mode of the service (`Lifecycle.open`).
        if (flags & FULL != 0) != (pool.full and not (pool.raw and flags & LOCAL_CLIENT)):
            return 0
        if flags & FULL:
            if not self.claim(slot, u64[key + 6], u64[key + 7], back & 0xFFFF):
                return 0
        elif (u64[key + 6], u64[key + 7], back & 0xFFFF) != (u64[key], u64[key + 1], ports >> 16):
            return 0
        flow = flows.insert(
            protocol,
            u64[key],
            u64[key + 1],
            u64[key + 2],
            u64[key + 3],
            ports,
            u64[key + 4],
            u64[key + 5],
            u64[key + 6],
            u64[key + 7],
            back,
            self._lifecycle.closed_queue,
            u32[record * 32 + CREATED],
        )
        flags = slot.flags | flags & (IPV6 | FULL | LOCAL_CLIENT | COUNTED)
        if pool.raw and not flags & LOCAL_CLIENT:
            flags |= WIRED
        flows.u8[flow * 128 + FLAGS] = flags
        flows.u8[flow * 128 + STATE] = state
        flows.u16[flow * 64 + MEMBER] = slot.index
        flows.u16[flow * 64 + RESPONSES] = u16[record * 64 + RESPONSES]
        for direction in (0, 1):
            # Or what else stands there, by the flow's protocol.
            expected = u32[record * 32 + EXPECTED + direction]
            flows.u32[flow * 32 + EXPECTED + direction] = expected
            flows.u64[flow * 16 + BYTES + direction] = u64[key + BYTES + direction]
        if hidden:
            flows.hide(flow)
        self._lifecycle.settle(flow)
        self._lifecycle.enter(flow, state, u32[record * 32 + SEEN])
        if IS_ACTIVE[state]:
            member.active += 1
        slot.held += 1
        if pool.persistence is not None:
            six = flags & IPV6
            new = NewFlow(
                protocol,
                6 if six else 4,
                u64[key] << 64 | u64[key + 1] if six else u64[key + 1] & MASK32,
                ports >> 16,
                u64[key + 2] << 64 | u64[key + 3] if six else u64[key + 3] & MASK32,
                ports & 0xFFFF,
            )
            pool.persistence.remember(new, member, u32[record * 32 + SEEN])
        if pool.offloaded:
            self._handover.hand_over(flow, True)
        return flow

    def claim(self, slot: Slot, high: int, low: int, port: int) -> bool:
        """Take the flow's own source address and port; whether they can be."""
        source = (high, low)
        return source in slot.sources and self._source_ports.claim(slot.target, source, port)
