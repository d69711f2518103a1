"""The backends of a service while it runs. A `Pool` is a service with its schedulers and its
members. Members keep their identity, and so their counts of open flows, when the configuration
changes around them.

Members of one role are a tier with a scheduler of its own, or two tiers if the service prefers some
of them: a new flow goes to the first tier that has a usable member with room. A scheduler ignores
limits and ramps. If its pick can't take the flow, `Scheduler.overflow` chooses among the members
that can; so limits cost nothing for most flows, and consistent placement moves no other flow.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from featherlb.core.pools.connection_ids import ConnectionIds
from featherlb.core.pools.gate import Gate
from featherlb.core.pools.keys import KeyedFlow, UserKey, identity_of, key_of
from featherlb.core.pools.persistence import PersistenceTable
from featherlb.core.pools.schedulers import (
    Member,
    NewFlow,
    Scheduler,
    create_for,
    factory_of,
    hashed_parts,
)
from featherlb.core.pools.schedulers.hashing import FIVE_TUPLE, KeyedHash, bytes_with_key
from featherlb.core.pools.turn import Turn
from featherlb.model import (
    QUIC_KEY,
    Address,
    Backend,
    Endpoint,
    NatMode,
    Role,
    Service,
    Sync,
    SynCookies,
)
from featherlb.model.ticks import TICKS_PER_SECOND

SUSPECT = 100
"""Ticks for which a member that has failed of late is the last one to get a flow that others did
not take: it would cost the client another wait."""


class Tier:
    """The members of one role."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.usable: list[Member] = []

    def update(self, members: Sequence[Member]) -> None:
        self.usable = [member for member in members if member.weight > 0]
        self.scheduler.update(members)

    def pick(self, flow: NewFlow, ticks: int) -> Member | None:
        """The member for a new flow at this time (0.1 s), None if no member can take it."""
        member = self.scheduler.pick(flow)
        if (
            member is None
            or member.unlimited
            or (member.has_room and not self._waits(member, ticks))
        ):
            return member
        others = [one for one in self.usable if one is not member and one.has_room]
        steady = [one for one in others if not self._ramps(one, ticks)]
        if steady:
            return self.scheduler.overflow(flow, steady)
        # A member in its ramp is better than none.
        if member.has_room:
            return member
        return self.scheduler.overflow(flow, others) if others else None

    def repick(self, flow: NewFlow, ticks: int, tried: Collection[Member]) -> Member | None:
        """The member for a flow that those `tried` did not take, None if no other one can. It is
        one that has failed of late only if all have."""
        others = [one for one in self.usable if one not in tried and one.has_room]
        others = [one for one in others if ticks - one.failed >= SUSPECT] or others
        if not others:
            return None
        steady = [one for one in others if not self._ramps(one, ticks)]
        return self.scheduler.overflow(flow, steady or others)

    def _waits(self, member: Member, ticks: int) -> bool:
        """Whether a member in its ramp leaves this flow to others."""
        if not self._ramps(member, ticks):
            return False
        assert member.ramp is not None
        member.credit += member.ramp.progress(ticks / TICKS_PER_SECOND)
        if member.credit < 1:
            return True
        member.credit -= 1
        return False

    def _ramps(self, member: Member, ticks: int) -> bool:
        if member.ramp is None or self.scheduler.consistent:
            return False
        if member.ramp.progress(ticks / TICKS_PER_SECOND) >= 1:
            member.end_ramp()
        return member.ramp is not None


@dataclass(frozen=True, slots=True)
class Level:
    """Which members a tier has: those of a role, and of these perhaps only the preferred or the
    other ones."""

    role: Role
    preferred: bool | None = None

    def __str__(self) -> str:
        if self.preferred is None:
            return self.role
        return f"{self.role}, {'preferred' if self.preferred else 'not preferred'}"


class Spill:
    """Splits flows between the preferred backends and the others, if too few of the preferred ones
    are usable.

    By a hash, so that a consistent scheduler stays consistent: a flow's place in the split doesn't
    depend on the pool, and a change of the share moves as few flows as it can.
    """

    def __init__(self, service: Service, key: bytes, share: float) -> None:
        """`share` is the part of the flows that stay, from 0 to 1."""
        self.share = share
        self._limit = int(share * (1 << 64))
        self._hash = KeyedHash(key, b"spill")
        self._bytes = bytes_with_key(hashed_parts(service), FIVE_TUPLE)[1]

    def takes(self, flow: NewFlow) -> bool:
        """Whether the flow goes to the others first."""
        return self._hash(self._bytes(flow)) >= self._limit


class Canaries:
    """Backends on trial. They are in no tier: each gets an exact share of the pool's new flows.

    Of a consistent scheduler's flows it is chosen by a hash of what the scheduler hashes, so that a
    client stays with the canary, or never gets to it; of others, by counting.
    """

    def __init__(
        self, service: Service, key: bytes, members: Sequence[Member], consistent: bool
    ) -> None:
        self.members = members
        self._consistent = consistent
        self._hash = KeyedHash(key, b"canary")
        self._bytes = bytes_with_key(hashed_parts(service), FIVE_TUPLE)[1]

    def pick(self, flow: NewFlow) -> Member | None:
        """The one that gets a new flow, None if others do."""
        member = self.find(flow) if self._consistent else self._count()
        return member if member is not None and member.weight and member.has_room else None

    def find(self, flow: NewFlow) -> Member | None:
        """The one that has this flow's place in the hash."""
        place = self._hash(self._bytes(flow)) * 100 / (1 << 64)
        for member in self.members:
            place -= member.backend.canary
            if place < 0:
                return member
        return None

    def last_resort(self) -> Member | None:
        """One that can take a flow which nobody else can."""
        return next((one for one in self.members if one.weight and one.has_room), None)

    def _count(self) -> Member | None:
        found = None
        for member in self.members:
            member.credit += member.backend.canary
            if found is None and member.credit >= 100:
                member.credit -= 100
                found = member
        return found


class Pool:
    """A running service. Changed by `update` only.

    The packet path reads these attributes for each new flow: `full`: NAT mode; `raw`: packets from
    the network come as frames; `offloaded`: the kernel translates its flows; `carries`: a program
    in the kernel carries packets of its open flows; `adopts`: established
    connections can be adopted mid-stream, as the scheduler would choose the same backend again and
    a flow has no other state; `all_ports`: it has the ports of a VIP that no other service has;
    `awaiting_rules`: the rules of its datapath are not applied on this host yet, so it opens no
    flows; `keeps_openings`: the SYN of a new flow is stored, in case the backend refuses it;
    `gate`: who may open a flow; `guarded`: not everybody may; `counts_clients`: the gate wants to
    know of each flow that becomes active, or no longer is;
    `cookies_allowed`, `cookies_always`: SYNs are answered with cookies during a flood, or at all
    times;
    `key` finds what is hashed of a flow's first datagram; `connection_ids` are those of QUIC
    connections, and servers' answers are searched for them; `sync`: when its flows are announced
    to other nodes, as its place in `model.Sync`.
    """

    def __init__(self, service: Service, *, seed: int, key: bytes) -> None:
        """`seed` and `key` are for the schedulers. The pool is empty until `update`."""
        self.gate = Gate()
        self._take(service)
        self.members: dict[Endpoint, Member] = {}
        self.ranged: dict[Address, list[Member]] = {}
        """The members that stand for several ports, by their address."""
        self.awaiting_rules = False
        self._seed = seed
        self._key = key
        self._strategy = _strategy(service)
        self._tiers: dict[Level, Tier] = {}
        self.spill: Spill | None = None
        """What is split between preferred backends and others."""
        self.turn: Turn | None = None
        """Who gets the next flow, if a program in the kernel opens flows in turn or at random."""
        self.left_to_worker = ""
        """If the program carries its flows: why it doesn't open them, as a clause."""
        self.canaries: Canaries | None = None
        self.persistence = _table(service)
        self.connection_ids: ConnectionIds | None = None
        self._take_key(service)
        self._update_tiers()

    @property
    def schedulers(self) -> list[Scheduler]:
        """One for each tier that has had members."""
        return [tier.scheduler for tier in self._tiers.values()]

    @property
    def tiers(self) -> Mapping[Level, Tier]:
        """In the order in which they are asked, unless a flow spills (`tiers_for`)."""
        return self._tiers

    def tier_of(self, member: Member) -> Tier:
        """The tier that has this member."""
        return self._tiers[self._level(member.backend)]

    def tiers_for(self, flow: NewFlow) -> Mapping[Level, Tier]:
        """The tiers in the order in which they are asked for this flow."""
        if self.spill is None or not self.spill.takes(flow):
            return self._tiers
        return self._spilling

    def slots(self) -> Sequence[Member]:
        """The owner of each slot of the scheduler in service (`Scheduler.slots`)."""
        return self._serving.scheduler.slots()

    @property
    def rewindable(self) -> bool:
        """Whether picks can be undone: a custom scheduler's can't."""
        return all(scheduler.rewindable for scheduler in self.schedulers)

    @property
    def usable(self) -> bool:
        """Whether any member takes new flows, if it has room."""
        return bool(self._serving.usable)

    def _take(self, service: Service) -> None:
        self.service = service
        self.full = service.nat is NatMode.FULL
        self.raw = service.datapath.takes_frames
        self.offloaded = service.datapath.kernel_forwards
        self.carries = service.datapath.carries
        self.cookies_always = service.syn_cookies is SynCookies.ALWAYS
        self.cookies_allowed = service.syn_cookies is not SynCookies.OFF
        self.one_packet = service.one_packet
        self.responses = service.responses
        self.all_ports = any(vip.all_ports for vip in service.vips)
        self.gate.update(service.admission, service.vips[0].address.version)
        self.guarded = self.gate.guards
        self.counts_clients = self.gate.counts

    def _take_key(self, service: Service) -> None:
        self.key = key_of(service.key) if service.key else None
        if service.key != QUIC_KEY:
            self.connection_ids = None
        elif self.connection_ids is None:
            self.connection_ids = ConnectionIds()

    @property
    def user_key(self) -> UserKey | None:
        """The key, if it is a user's."""
        return self.key if isinstance(self.key, UserKey) else None

    def update(self, service: Service, new_member: Callable[[Backend], Member]) -> Iterable[Member]:
        """Change to `service`; returns the members that it no longer has."""
        strategy = _strategy(service)
        gone = dict(self.members)
        members: dict[Endpoint, Member] = {}
        for backend in service.backends:
            member = gone.pop(backend.endpoint, None)
            if member is None:
                member = new_member(backend)
            member.take_backend(backend)
            members[backend.endpoint] = member
        if service.persistence != self.service.persistence:
            self.persistence = _table(service)
        self._take(service)
        if strategy != self._strategy:
            self._strategy = strategy
            self._take_key(service)
            self._tiers = {level: self._new_tier() for level in self._tiers}
        self.members = members
        self.ranged = {}
        for endpoint, member in members.items():
            if endpoint.last_port:
                self.ranged.setdefault(endpoint.address, []).append(member)
        self._update_tiers()
        return gone.values()

    def _new_tier(self) -> Tier:
        return Tier(create_for(self.service, seed=self._seed, key=self._key))

    def _update_tiers(self) -> None:
        tiers: dict[Level, Tier] = {}
        by_level: dict[Level, list[Member]] = {}
        for member in self.members.values():
            if not member.backend.canary:
                by_level.setdefault(self._level(member.backend), []).append(member)
        for role in Role:
            for preferred in (None,) if self.service.prefer is None else (True, False):
                level = Level(role, preferred)
                if level in by_level or level in self._tiers or not tiers:
                    tiers[level] = self._tiers.get(level) or self._new_tier()
                    tiers[level].update(by_level.get(level, ()))
        self._tiers = tiers
        serving = next((level for level, tier in tiers.items() if tier.usable), next(iter(tiers)))
        self._serving = tiers[serving]
        on_trial = [member for member in self.members.values() if member.backend.canary]
        self._takers = frozenset(
            (
                *(
                    member
                    for level, tier in tiers.items()
                    if level.role is serving.role
                    for member in tier.usable
                ),
                *(member for member in on_trial if member.weight),
            )
        )
        self._split(serving)
        self.canaries = None
        if on_trial:
            consistent = self._serving.scheduler.consistent
            self.canaries = Canaries(self.service, self._key, on_trial, consistent)
        self._plain = self.spill is None and self.canaries is None
        self.sync = tuple(Sync).index(self.service.sync)
        redispatch = self.service.redispatch
        self.keeps_openings = redispatch.refused and len(self.members) > 1
        self.adopts = (
            self._serving.scheduler.consistent and not self.full and self.persistence is None
        )

    def _level(self, backend: Backend) -> Level:
        prefer = self.service.prefer
        return Level(backend.role, prefer.covers(backend) if prefer else None)

    def _split(self, serving: Level) -> None:
        """Split the flows, if too few preferred members of the role in service are usable."""
        self.spill = None
        others = Level(serving.role, preferred=False)
        prefer = self.service.prefer
        if prefer is None or not serving.preferred or others not in self._tiers:
            return
        missing = sum(
            one.backend.missing and not one.backend.canary and self._level(one.backend) == serving
            for one in self.members.values()
        )
        share = prefer.share(len(self._serving.usable), missing)
        if share < 1 and self._tiers[others].usable:
            self.spill = Spill(self.service, self._key, share)
            self._spilling = {others: self._tiers[others], **self._tiers}

    def _holds(self, member: Member) -> bool:
        """Whether a member can have connections still."""
        return self.members.get(member.endpoint) is member and not member.backend.down

    def pick_keyed(self, flow: KeyedFlow, ticks: int) -> Member | None:
        """Like `pick`, by the key in the flow's first datagram. A QUIC connection stays where it
        is, also with a backend that takes no new ones."""
        if self.connection_ids is not None:
            member = self.connection_ids.find(flow.payload)
            if member is not None and self._holds(member):
                return member
        if self.key is not None:
            flow.key = self.key(flow)
        return self.pick(flow, ticks)

    def pick(self, flow: NewFlow, ticks: int) -> Member | None:
        """The member for a new flow at this time (0.1 s), None if no backend is usable or all
        are full."""
        if self.turn is not None:
            return self.turn.take()
        if self.persistence is None:
            return self._pick(flow, ticks)
        member = self._choose(self.persistence, flow, ticks)
        if member is not None:
            self.persistence.remember(flow, member, ticks)
        return member

    def repick(self, flow: NewFlow, ticks: int, tried: Collection[Member]) -> Member | None:
        """The member for a flow that those `tried` did not take, None if no other one has room. The
        client is bound to it, too."""
        found = (tier.repick(flow, ticks, tried) for tier in self._tiers.values())
        member = next(filter(None, found), None)
        if member is not None and self.persistence is not None:
            self.persistence.remember(flow, member, ticks)
        return member

    def has_other(self, tried: Collection[Member]) -> bool:
        """Whether `repick` would find a member."""
        usable = (one for tier in self._tiers.values() for one in tier.usable)
        return any(one.has_room and one not in tried for one in usable)

    def peek(self, flow: NewFlow, ticks: int) -> Member | None:
        """What `pick` would return; changes nothing, if the pool is `rewindable`."""
        if self.turn is not None:
            return self.turn.peek()
        with self.rewinding():
            if self.persistence is None:
                return self._pick(flow, ticks)
            return self._choose(self.persistence, flow, ticks)

    @contextmanager
    def rewinding(self) -> Iterator[None]:
        """Undo, at the end of the block, what picks have changed in it."""
        states = [(one, one.save()) for one in self.schedulers]
        ramps = [(one, one.ramp, one.credit, one.unlimited) for one in self.members.values()]
        try:
            yield
        finally:
            for scheduler, state in states:
                scheduler.restore(state)
            for member, ramp, credit, unlimited in ramps:
                member.ramp, member.credit, member.unlimited = ramp, credit, unlimited

    def _choose(self, persistence: PersistenceTable, flow: NewFlow, ticks: int) -> Member | None:
        member = persistence.find(flow, ticks)
        if member is not None and member in self._takers and member.has_room:
            return member
        return self._pick(flow, ticks)

    def _pick(self, flow: NewFlow, ticks: int) -> Member | None:
        tiers: Mapping[Level, Tier] = self._tiers
        if not self._plain:
            member = None if self.canaries is None else self.canaries.pick(flow)
            if member is not None:
                return member
            tiers = self.tiers_for(flow)
        for tier in tiers.values():
            member = tier.pick(flow, ticks)
            if member is not None:
                return member
        return None if self.canaries is None else self.canaries.last_resort()

    def consistent_choice(self, flow: NewFlow) -> Member | None:
        """The member of this established connection, in a pool that `adopts`."""
        if self.canaries is not None and (member := self.canaries.find(flow)) is not None:
            return member
        tiers = self.tiers_for(flow).values()
        return next((one for one in tiers if one.usable), self._serving).scheduler.pick(flow)


def _strategy(service: Service) -> tuple[object, ...]:
    """What a scheduler is made from. A user's edited code is another object of the same name."""
    code = factory_of(service.scheduler), identity_of(service.key)
    return *code, service.hash_on, service.hash_balance


def _table(service: Service) -> PersistenceTable | None:
    return PersistenceTable(service.persistence) if service.persistence else None
