"""The backends of a service while it runs. Imports `model`, `persistence` and the schedulers.

A `Pool` is a service with its scheduler and its members. Members keep their identity, and so
their counts of open flows, when the configuration changes around them.
"""

from collections.abc import Callable, Iterable

from featherlb.core.persistence import PersistenceTable
from featherlb.core.scheduler import Member, NewFlow, Scheduler, factory_of
from featherlb.model import Backend, Datapath, Endpoint, NatMode, Service


class Pool:
    """A running service. Changed by `update` only."""

    def __init__(self, service: Service, *, seed: int, key: bytes) -> None:
        """`seed` and `key` are for the scheduler. The pool is empty until `update`."""
        self.service = service
        self.members: dict[Endpoint, Member] = {}
        self._seed = seed
        self._key = key
        self._factory = factory_of(service.scheduler)
        self.scheduler: Scheduler = self._factory(seed=seed, key=key)
        self.persistence = _table(service)

    @property
    def full(self) -> bool:
        return self.service.nat is NatMode.FULL

    @property
    def raw(self) -> bool:
        """Whether packets from the network come as frames."""
        return self.service.datapath is Datapath.RAW

    @property
    def one_packet(self) -> bool:
        return self.service.one_packet

    @property
    def adopts(self) -> bool:
        """Whether a connection that is already under way can be joined: the scheduler would
        have put it on the same backend, and nothing but the backend had to be chosen."""
        return self.scheduler.consistent and not self.full and self.persistence is None

    def update(self, service: Service, new_member: Callable[[Backend], Member]) -> Iterable[Member]:
        """Become `service`; the members that it no longer has are returned."""
        factory = factory_of(service.scheduler)
        # A user's edited code is another factory of the same name.
        if factory is not self._factory:
            self._factory = factory
            self.scheduler = factory(seed=self._seed, key=self._key)
        gone = dict(self.members)
        members: dict[Endpoint, Member] = {}
        for backend in service.backends:
            member = gone.pop(backend.endpoint, None)
            if member is None:
                member = new_member(backend)
            member.backend = backend
            member.weight = backend.weight
            members[backend.endpoint] = member
        if service.persistence != self.service.persistence:
            self.persistence = _table(service)
        self.service = service
        self.members = members
        self.scheduler.update(list(members.values()))
        return gone.values()

    def pick(self, flow: NewFlow, ticks: int) -> Member | None:
        """The member for a new flow at this time (0.1 s), None if no backend is usable."""
        if self.persistence is None:
            return self.scheduler.pick(flow)
        member = self.persistence.find(flow, ticks)
        if member is None or not self.usable(member):
            member = self.scheduler.pick(flow)
        if member is not None:
            self.persistence.remember(flow, member, ticks)
        return member

    def usable(self, member: Member) -> bool:
        """Whether a member takes new flows: it may have left the pool."""
        return member.weight > 0 and self.members.get(member.endpoint) is member


def _table(service: Service) -> PersistenceTable | None:
    return PersistenceTable(service.persistence) if service.persistence else None
