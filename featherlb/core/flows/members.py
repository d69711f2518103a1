"""The members of all pools, under the numbers that flows know them by.

A number is given to another member once its own has left its pool, and its last flow has ended.
"""

import cython

from featherlb.core.flows.counters import Counters
from featherlb.core.flows.next_hops import Hops
from featherlb.core.flows.snat_ports import PortAllocator
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import Member
from featherlb.model import Backend
from featherlb.net.addresses import words_of

if not cython.compiled:
    from featherlb.core.flows.table import LOCAL_BACKEND

MAX_MEMBERS = 65535


class Slot:
    """What the packet path needs of a pool member: its address as words, and who holds it."""

    def __init__(self, pool: Pool, member: Member) -> None:
        self.pool = pool
        self.member = member
        self.index = member.index
        self.held = 0
        endpoint = member.endpoint
        self.high, self.low = words_of(endpoint.address)
        self.port = endpoint.port
        self.target = (int(pool.service.protocol), self.high, self.low, self.port)
        self.take_backend(member.backend)

    def take_backend(self, backend: Backend) -> None:
        """Follow a change of the backend's configuration."""
        self.flags = LOCAL_BACKEND if backend.local else 0
        self.sources = tuple(words_of(source) for source in backend.sources)


class Members:
    """`slots` are the members by number; `retired` is 1 for those that have left their pool."""

    def __init__(self, hops: Hops, counters: Counters, source_ports: PortAllocator) -> None:
        """What else is kept of each member: its next hop, its counts, the ports given for it."""
        self.slots: list[Slot] = []
        self.retired = memoryview(bytearray(MAX_MEMBERS))
        self._free: list[int] = []
        self._hops = hops
        self._counters = counters
        self._source_ports = source_ports

    def add(self, pool: Pool, backend: Backend) -> Member:
        """A new member of the pool; ValueError if there are `MAX_MEMBERS` already."""
        index = self._free.pop() if self._free else len(self.slots)
        if index >= MAX_MEMBERS:
            raise ValueError(f"more than {MAX_MEMBERS} backends")
        self._counters.begin(index)
        member = Member(backend, index)
        slot = Slot(pool, member)
        self.slots[index : index + 1] = [slot]
        self.retired[index] = 0
        self._hops.forget(index)
        self._hops.update_member(index, slot.high, slot.low)
        return member

    def retire(self, member: Member) -> None:
        """The member has left its pool; its flows go on."""
        slot = self.slots[member.index]
        self.retired[slot.index] = 1
        if not slot.held:
            self._free_slot(slot)

    def let_go(self, slot: Slot) -> None:
        """A flow of the member has ended."""
        slot.held -= 1
        if self.retired[slot.index] and not slot.held:
            self._free_slot(slot)

    def _free_slot(self, slot: Slot) -> None:
        self._source_ports.forget(slot.target)
        self._free.append(slot.index)

    def update_next_hops(self) -> None:
        """Take the next hops of all members from the topology, which has changed."""
        for slot in self.slots:
            self._hops.update_member(slot.index, slot.high, slot.low)
