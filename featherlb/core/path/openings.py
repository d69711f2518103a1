"""The tables by which a program in the kernel opens flows by itself (featherlb/bpf/flows.c).

They lie in memory that the program shares: for each service how it chooses and where its table of
members is, and the members' addresses and loads. Only the places that packets go to, VIPs above
all, are keys of a hash table, which the engine writes (`places`). Each worker has its own tables,
for the flows of its shard.
"""

import struct
from array import array
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from featherlb.core.flows.carried import Carried
from featherlb.core.flows.counters import Counters
from featherlb.core.path.own_addresses import OwnAddresses
from featherlb.core.path.services import Services
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import Member
from featherlb.core.pools.schedulers.hash_scheduler import HashScheduler
from featherlb.core.pools.turn import MASK32, How, Turn
from featherlb.core.pools.wheel import Wheel, wheel_of
from featherlb.model import Protocol
from featherlb.model.shard import Shard
from featherlb.net.addresses import words_of

SERVICES = 256
"""Numbers of a worker's services, of which 0 is unused."""
MEMBERS = 4096
"""Numbers of its members."""
PLACES = 8192
"""Places that the program knows for it."""
ROWS = 1 << 18
"""Rows of its tables."""
SLOTS_OF_ROW = 4
SCORES = 4000
"""Scores for owners of slots that are found in 0.1 s: a few milliseconds."""

SERVICE_SIZE, MEMBER_SIZE = 64, 40
"""Bytes of `struct service` and `struct member`."""

_SERVICE = struct.Struct("=IIQ32s16x")
"""`struct service`: how, the cursor, the table, the state of its hash."""
_HOW, _CURSOR, _HASH = 0, 1, slice(4, 12)
"""Where these are, in words of 32 bits."""
_TABLE = 1
"""The same, of 64 bits."""
_MEMBER = struct.Struct("!QQH")
"""The beginning of `struct member`: address and port. What follows is in the machine's order."""
_STATE = struct.Struct("=HII")
"""What follows: usable, active, weight."""
_REPEATED = struct.Struct("=II")
"""The rest, which the program counts: segments that came again, of clients and of the member."""
_REPEATED_AT = _MEMBER.size + _STATE.size
_PLACE = struct.Struct("!QQHBB")
"""`struct place`: address, port, protocol, worker."""
_STEERING = struct.Struct("=II4s16s")
"""The part of `struct control` that says which worker has a client's flows: workers, the start of
the hash, the masks of IPv4 and IPv6 addresses."""
_STEERING_AT = 16


@dataclass(frozen=True, slots=True)
class Tables:
    """A worker's part of the program's tables as memory; `control` is that of all."""

    services: memoryview
    members: memoryview
    rows: memoryview
    queue: memoryview
    spare: memoryview
    control: memoryview


@dataclass(slots=True)
class _Served:
    """A service as its tables have it: the rows from `first` on have the `numbers` of its slots."""

    wheel: Wheel
    first: int = 0
    numbers: "array[int]" = field(default_factory=lambda: array("H"))
    members: tuple[Member, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.numbers) // SLOTS_OF_ROW


COUNTED = (How.IN_TURN, How.AT_RANDOM, How.BY_LOAD)
"""Ways to choose that go by the cursor."""
BY_WORKER = _Served(Wheel(How.BY_WORKER))


class Openings:
    """`places` are the keys of what the program must know, with their numbers among all workers':
    the VIPs whose flows it may open, with those of their services; these services' backends and
    this host's addresses, with 0. `suspended` says why a worker opens all flows for the moment,
    `flooded` are the protocols for which there is a flood of new flows."""

    def __init__(
        self,
        services: Services,
        carried: Carried,
        own_addresses: OwnAddresses,
        shard: Shard,
        counters: Counters,
        seed: int,
    ) -> None:
        self.places: dict[bytes, int] = {}
        self.suspended = ""
        self.flooded: frozenset[Protocol] = frozenset()
        self._services = services
        self._carried = carried
        self._own_addresses = own_addresses
        self._shard = shard
        self._seed = seed & MASK32
        self._counters = counters
        self._repeated: dict[int, tuple[int, int]] = {}
        """By the number of a member, what was counted of it so far."""
        self._tables: Tables | None = None
        self._numbers: dict[str, int] = {}
        self._served: dict[str, _Served] = {}
        self._left: list[_Served] = []
        self._resting: list[_Served] = []
        self._ramping = False
        self._crowded = False

    def attach(self, tables: Tables) -> None:
        """Write these tables from now on. The program opens nothing until `update`."""
        self._tables = tables
        self._repeated = {number: self._read_repeated(number) for number in range(MEMBERS)}
        for number in range(SERVICES):
            _SERVICE.pack_into(tables.services, number * SERVICE_SIZE, 0, 0, 0, b"")
        shard = self._shard
        _STEERING.pack_into(
            tables.control,
            _STEERING_AT,
            shard.workers,
            shard.start,
            _mask(shard.prefix4, 32),
            _mask(shard.prefix6, 128),
        )
        self._carried.attach_spare(tables.queue, tables.spare)

    def suspend(self, reason: str, flooded: frozenset[Protocol]) -> None:
        """Have a worker open all flows, for this reason (a clause); if it is empty, no longer. The
        same for those of `flooded` protocols, as far as workers do something about that."""
        if (reason, flooded) != (self.suspended, self.flooded):
            self.suspended, self.flooded = reason, flooded
            self.update()

    def update(self) -> None:
        """Write the tables for the services as they are now."""
        if self._tables is None:
            return
        pools = {name: pool for name, pool in self._services.pools.items() if pool.carries}
        for name in self._numbers.keys() - pools.keys():
            self._write(name, BY_WORKER)
            del self._numbers[name], self._served[name]
        self._crowded = False
        room = PLACES - len(self._own_addresses.addresses)
        for name, pool in pools.items():
            places = len(pool.service.vips) + len(pool.members)
            self._serve(name, pool, self._wheel(name, pool, places <= room))
            room -= 0 if pool.left_to_worker else places
        self._list_places(pools.values())
        self._ramping = self._ramps()
        self._write_loads()

    def refresh(self) -> None:
        """Write the members' loads and the owners of slots that were not known before, and give the
        program entries for flows to open. Call it every 0.1 s."""
        if self._tables is None:
            return
        if self._ramping and not self._ramps():
            self.update()
            return
        self._write_loads()
        self._count_repeated()
        for name, served in self._served.items():
            self._complete(name, served)
        # By the next time, no packet is on its way through a table that was replaced before.
        freed, self._resting, self._left = self._resting, self._left, []
        if freed and self._crowded:
            self.update()

    def explain(self) -> dict[str, str]:
        """Why a worker opens the flows of each service of this datapath; empty if the program
        does."""
        return {
            name: pool.left_to_worker for name, pool in self._services.pools.items() if pool.carries
        }

    def _wheel(self, name: str, pool: Pool, fits: bool) -> Wheel:
        """How flows of a service are opened now, which `fits` into the map of places or doesn't."""
        if self.suspended:
            return Wheel(How.BY_WORKER, reason=self.suspended)
        protocol = pool.service.protocol
        if protocol in self.flooded and (pool.cookies_allowed or protocol is Protocol.UDP):
            what = "SYNs" if protocol is Protocol.TCP else "datagrams"
            return Wheel(How.BY_WORKER, reason=f"there is a flood of {what}")
        wheel = wheel_of(pool)
        if wheel.how is How.BY_WORKER:
            return wheel
        numbered = all(one.index < MEMBERS for one in pool.members.values())
        if not fits or not numbered or not self._number(name):
            return Wheel(How.BY_WORKER, reason="there are too many services or backends")
        if wheel.how in COUNTED:
            return replace(wheel, hash_state=struct.pack("=I28x", self._seed))
        return wheel

    def _serve(self, name: str, pool: Pool, wheel: Wheel) -> None:
        """Have the program open flows of a service by this wheel from now on."""
        number = self._number(name)
        before = self._served.get(name, BY_WORKER)
        if wheel.how is not How.BY_WORKER:
            numbers = _padded(_numbers(wheel))
            same = wheel.how is before.wheel.how and wheel.hash_state == before.wheel.hash_state
            if not same or numbers != before.numbers:
                served = self._place(wheel, numbers, pool)
                if served is None:
                    wheel = Wheel(How.BY_WORKER, reason="its table finds no room")
                    self._crowded = True
                else:
                    self._write(name, served)
        if wheel.how is How.BY_WORKER and number and before is not BY_WORKER:
            self._write(name, BY_WORKER)
        pool.left_to_worker = wheel.reason
        pool.turn = None
        if wheel.how in COUNTED:
            slots = [one for one in wheel.slots if one is not None]
            count = self._service(number).cast("I")[_CURSOR : _CURSOR + 1]
            pool.turn = Turn(wheel.how, slots, count, self._seed)

    def _place(self, wheel: Wheel, numbers: "array[int]", pool: Pool) -> _Served | None:
        """Find rows for a table and write them; None if there are none."""
        assert self._tables is not None
        rows = len(numbers) // SLOTS_OF_ROW
        first = 0
        for one in sorted(
            [*self._served.values(), *self._left, *self._resting], key=lambda one: one.first
        ):
            if one.rows and one.first - first >= rows:
                break
            first = max(first, one.first + one.rows)
        if first + rows > ROWS:
            return None
        members = tuple(one for one in pool.members.values() if one.weight > 0)
        for member in members:
            endpoint = member.endpoint
            place = member.index * MEMBER_SIZE
            _MEMBER.pack_into(
                self._tables.members, place, *words_of(endpoint.address), endpoint.port
            )
            self._write_state(member)
        self._tables.rows[first * 8 : (first + rows) * 8] = memoryview(numbers).cast("B")
        return _Served(wheel, first, numbers, members)

    def _write(self, name: str, served: _Served) -> None:
        """Put a table in force, by one store. The program opens nothing while more changes."""
        before = self._served[name]
        service = self._service(self._numbers[name])
        words, longs = service.cast("I"), service.cast("Q")
        wheel = served.wheel
        if (wheel.how, wheel.hash_state) != (before.wheel.how, before.wheel.hash_state):
            words[_HOW] = How.BY_WORKER
        if wheel.how is not How.BY_WORKER:
            words[_CURSOR] = _following(before.wheel, words[_CURSOR], wheel)
            if wheel.hash_state:
                words[_HASH] = memoryview(wheel.hash_state).cast("I")
            longs[_TABLE] = served.first << 32 | len(wheel.slots)
        words[_HOW] = wheel.how
        self._left.append(before)
        self._served[name] = served

    def _complete(self, name: str, served: _Served) -> None:
        """Find owners of a table's slots that aren't known yet, and write them."""
        assert self._tables is not None
        if served.wheel.how not in (How.BY_CLIENT, How.BY_TUPLE):
            return
        scheduler = next(
            tier.scheduler for tier in self._services.pools[name].tiers.values() if tier.usable
        )
        assert isinstance(scheduler, HashScheduler)
        found = scheduler.find_owners(SCORES)
        if not found:
            return
        table = scheduler.table()
        slots = self._tables.rows.cast("H")
        for at in found:
            owner = table[at]
            number = 0 if owner is None else owner.index + 1
            if served.numbers[at] != number:
                served.numbers[at] = slots[served.first * SLOTS_OF_ROW + at] = number

    def _service(self, number: int) -> memoryview:
        """A service's structure."""
        assert self._tables is not None
        at = number * SERVICE_SIZE
        return self._tables.services[at : at + SERVICE_SIZE]

    def _list_places(self, pools: Collection[Pool]) -> None:
        worker = self._shard.worker
        self.places = {}
        for pool in pools:
            if pool.left_to_worker:
                continue
            protocol = int(pool.service.protocol)
            number = worker * SERVICES + self._numbers[pool.service.name]
            for vip in pool.service.vips:
                key = _PLACE.pack(*words_of(vip.address), vip.first_port, protocol, worker)
                self.places[key] = number
            # What clients send to these themselves, the program must know.
            for endpoint in pool.members:
                key = _PLACE.pack(*words_of(endpoint.address), endpoint.port, protocol, worker)
                self.places.setdefault(key, 0)
        if self.places:
            for high, low in self._own_addresses.addresses:
                self.places.setdefault(_PLACE.pack(high, low, 0, 0, worker), 0)

    def _ramps(self) -> bool:
        """Whether a backend starts slowly; its end makes the program open flows."""
        return any(
            one.ramp is not None
            for pool in self._services.pools.values()
            if pool.carries
            for one in pool.members.values()
        )

    def _number(self, name: str) -> int:
        """The number of a service, 0 if none is free."""
        if name not in self._numbers:
            taken = set(self._numbers.values())
            number = next((one for one in range(1, SERVICES) if one not in taken), 0)
            if not number:
                return 0
            self._numbers[name] = number
            self._served[name] = BY_WORKER
        return self._numbers[name]

    def _count_repeated(self) -> None:
        """Count what the program has counted of the members of carried services."""
        for pool in self._services.pools.values():
            if not pool.carries:
                continue
            for member in pool.members.values():
                number = member.index
                if number >= MEMBERS:
                    continue
                known, found = self._repeated[number], self._read_repeated(number)
                if found == known:
                    continue
                self._repeated[number] = found
                for reply in (0, 1):
                    more = (found[reply] - known[reply]) % (1 << 32)
                    self._counters.count_repeated(number, reply, more)

    def _read_repeated(self, number: int) -> tuple[int, int]:
        assert self._tables is not None
        at = number * MEMBER_SIZE + _REPEATED_AT
        forward, reply = _REPEATED.unpack_from(self._tables.members, at)
        return forward, reply

    def _write_loads(self) -> None:
        """Write what members have, and give the program entries for flows to open."""
        for served in self._served.values():
            for member in served.members:
                self._write_state(member)
        if self.places:
            self._carried.spare()

    def _write_state(self, member: Member) -> None:
        assert self._tables is not None
        place = member.index * MEMBER_SIZE + _MEMBER.size
        usable = member.weight > 0
        _STATE.pack_into(self._tables.members, place, usable, member.active, member.weight)


def _mask(prefix: int, bits: int) -> bytes:
    """The mask of a prefix; zeros for none."""
    return ((1 << prefix) - 1 << bits - prefix).to_bytes(bits // 8, "big")


def _numbers(wheel: Wheel) -> "array[int]":
    """The numbers in a wheel's slots: those of members plus 1, or 0."""
    return array("H", [0 if one is None else one.index + 1 for one in wheel.slots])


def _padded(numbers: "array[int]") -> "array[int]":
    """As many numbers as fill rows."""
    numbers.extend([0] * (-len(numbers) % SLOTS_OF_ROW))
    return numbers


def _following(before: Wheel, cursor: int, after: Wheel) -> int:
    """The cursor in another wheel: the member that was next stays next; if it left, the first of
    the following ones that is there."""
    if not before.how is after.how is How.IN_TURN:
        return cursor
    place = cursor % len(before.slots)
    due = (*before.slots[place:], *before.slots[:place])
    return next((after.slots.index(one) for one in due if one in after.slots), 0)
