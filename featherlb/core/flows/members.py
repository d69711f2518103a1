"""The members of all pools, by the number that a flow's record stores.

A number is reused once its member has left the pool and its last flow has ended.
"""

import cython

from featherlb.core.flows.counters import Counters
from featherlb.core.flows.flight_recorder import FlightRecorder
from featherlb.core.flows.next_hops import NextHops
from featherlb.core.flows.port_holders import PortHolders
from featherlb.core.flows.snat_ports import PortAllocator
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import Member
from featherlb.model import Backend, Endpoint, Protocol
from featherlb.net.addresses import address_of, words_of

if not cython.compiled:
    from featherlb.core.flows.flight_recorder import BACK_UP, DOWN, JOINED, LEFT, WEIGHED
    from featherlb.core.flows.kernel import UNKNOWN_SCALE
    from featherlb.core.flows.record import LOCAL_BACKEND

MAX_MEMBERS = 65535


class PoolMember:
    """A pool's member for the packet path: its address as words and its number of flows.
    `scheduled` is the same member for the pool and its scheduler. `target` is the backend endpoint
    for `PortAllocator`, `holders` its number in `PortHolders`. `scale` is the backend's window
    scale as far as the datapath `offload` has seen it (`KernelFlow.scale`)."""

    def __init__(self, pool: Pool, scheduled: Member, port_holders: PortHolders) -> None:
        self.pool = pool
        self.scheduled = scheduled
        self.id = scheduled.index
        self.flows = 0
        self.scale = UNKNOWN_SCALE
        endpoint = scheduled.endpoint
        self.high, self.low = words_of(endpoint.address)
        self.ranged = endpoint.last_port > 0
        # Source ports towards a backend of many ports are unique among them all.
        port = None if self.ranged else endpoint.port
        self.target = (int(pool.service.protocol), self.high, self.low, port)
        self.holders = port_holders.join(self.target)
        self.take_backend(scheduled.backend)

    def take_backend(self, backend: Backend) -> None:
        """Apply a change of the backend's configuration (`Members.take_backend`)."""
        self.weight = backend.weight
        self.flags = LOCAL_BACKEND if backend.local else 0
        self.sources = tuple(words_of(source) for source in backend.sources)
        self.peer_sources = frozenset(words_of(source) for source in backend.peer_sources)
        self._port = backend.endpoint.port
        if backend.endpoint.port and self.ranged:
            self._port -= self.pool.service.vips[0].first_port

    def port_for(self, vip_port: int) -> int:
        """The port to which packets to this port of a VIP go."""
        return self._port + vip_port if self.ranged else self._port


class Members:
    """`by_id` are the members by number; `retired` is 1 for those that have left their pool, `down`
    for those whose backend is."""

    def __init__(
        self,
        next_hops: NextHops,
        counters: Counters,
        source_ports: PortAllocator,
        port_holders: PortHolders,
        recorder: FlightRecorder,
    ) -> None:
        """Each of these keeps something for each member."""
        self.by_id: list[PoolMember] = []
        self.retired = memoryview(bytearray(MAX_MEMBERS))
        self.down = memoryview(bytearray(MAX_MEMBERS))
        self._free: list[int] = []
        self._next_hops = next_hops
        self._counters = counters
        self._source_ports = source_ports
        self._port_holders = port_holders
        self._recorder = recorder

    def add(self, pool: Pool, backend: Backend) -> Member:
        """A new member of the pool; ValueError if there are `MAX_MEMBERS` already."""
        number = self._free.pop() if self._free else len(self.by_id)
        if number >= MAX_MEMBERS:
            raise ValueError(f"more than {MAX_MEMBERS} backends")
        self._counters.begin(number)
        scheduled = Member(backend, number, self._counters.latencies)
        member = PoolMember(pool, scheduled, self._port_holders)
        self.by_id[number : number + 1] = [member]
        self.retired[number] = 0
        self.down[number] = backend.down
        self._note(member, JOINED)
        self._next_hops.forget(number)
        self._next_hops.update_member(number, member.high, member.low)
        return scheduled

    def take_backend(self, scheduled: Member) -> None:
        """Apply a change of the backend's configuration or health."""
        backend = scheduled.backend
        member = self.by_id[scheduled.index]
        if backend.down != self.down[member.id]:
            self._note(member, DOWN if backend.down else BACK_UP)
        if backend.weight != member.weight:
            self._note(member, WEIGHED)
        member.take_backend(backend)
        self.down[member.id] = backend.down

    def find(self, pool: Pool, high: int, low: int, port: int, vip_port: int) -> PoolMember | None:
        """The pool's member with this address to whose `port` packets to a VIP's port go; None if
        there is none."""
        address = address_of(high, low)
        exact = pool.members.get(Endpoint(address, port))
        if exact is not None:
            return self.by_id[exact.index]
        for scheduled in pool.ranged.get(address, ()):
            member = self.by_id[scheduled.index]
            if member.port_for(vip_port) == port:
                return member
        return None

    def retire(self, scheduled: Member) -> None:
        """Remove a member from its pool; it keeps its flows."""
        member = self.by_id[scheduled.index]
        self.retired[member.id] = 1
        self._note(member, LEFT)
        if not member.flows:
            self._free_id(member)

    def end_flow(self, member: PoolMember) -> None:
        """Note that a flow of the member has ended."""
        member.flows -= 1
        if self.retired[member.id] and not member.flows:
            self._free_id(member)

    def _free_id(self, member: PoolMember) -> None:
        self._source_ports.forget(member.target)
        self._port_holders.leave(member.target)
        self._free.append(member.id)

    def _note(self, member: PoolMember, kind: int) -> None:
        """Have the flight recorder note a change of a backend."""
        service = member.pool.service
        vip = service.vips[0]
        self._recorder.note_backend(
            kind,
            (*words_of(vip.address), vip.first_port),
            (member.high, member.low, member.scheduled.endpoint.port),
            service.protocol is Protocol.UDP,
            member.scheduled.weight,
        )

    def update_next_hops(self) -> None:
        """Take the next hops of all members from the topology, which has changed."""
        for member in self.by_id:
            self._next_hops.update_member(member.id, member.high, member.low)
