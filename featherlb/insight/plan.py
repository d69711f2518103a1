"""What a reload to another configuration would do to a running instance. Nothing changes.

It goes by what the reload itself goes by: the steps of the transition (`control/transition.py`) and
the plan of the host (`host/plan.py`).
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from featherlb import host
from featherlb.config.file import load_text
from featherlb.control.controller import Controller
from featherlb.control.dataplane import filter_of
from featherlb.control.transition import EndFlows, State, Step, departing
from featherlb.control.workers import Cursor
from featherlb.core.path.export import FlowRecords, FlowView, read_flows
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import Member, NewFlow, is_consistent
from featherlb.insight.simulate import least_moved, shares_of
from featherlb.model import Backend, Endpoint, Protocol, Service

MAX_RECORDS = 1 << 17
"""Flow records that are looked at, at most."""


class Fate(StrEnum):
    """What becomes of an open flow."""

    STAY = "stay"
    DRAIN = "drain"
    """Its backend leaves, or gets weight 0, and the flow continues until it ends."""
    MOVE = "move"
    """It continues on another datapath."""
    DROP = "drop"
    """It is forgotten: its next packet is refused, or adopted by another backend."""
    RESET = "reset"
    """Both ends get a RST."""


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """One service that runs now or would run. `flows` are numbers of open flows by their fate.

    `slots` is the part of the hash slots that another backend would own, `least` the smallest part
    that could follow the weights; None without hash slots, or if the scheduler changes. `clients`
    is the number of clients with open flows, `moved` how many of them another backend would get
    with their next flow from one of these ports; None if the present backend says nothing about the
    next one.
    """

    name: str
    flows: Mapping[Fate, int]
    slots: float | None
    least: float | None
    clients: int
    moved: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole plan. `differences` are those between the configurations, `refused` is why the
    reload would be refused; then nothing else is known. `sampled` of `flows` were looked at."""

    differences: tuple[str, ...]
    refused: tuple[str, ...]
    services: tuple[ServicePlan, ...] = ()
    sampled: int = 0
    flows: int = 0
    host: tuple[str, ...] = ()


class Forecast:
    """What a transition with these steps would do to the open flows and their clients. The flows
    are added one after the other: there may be a million."""

    def __init__(self, before: State, wanted: State, steps: Sequence[Step], key: bytes) -> None:
        """`key` is the hash key of the instance."""
        old = {service.name: service for service in before.services}
        new = {service.name: service for service in wanted.services}
        self._leaving = (*before.departing, *departing(before.services, wanted.services))
        self._fates = _Fates(self._leaving, before, wanted, steps)
        self._clients = {name: _Clients(old.get(name), new.get(name), key) for name in (old | new)}
        self._counts: dict[str, Counter[Fate]] = {name: Counter() for name in self._clients}
        self.flows = 0

    def add(self, flow: FlowView) -> None:
        """Count an open flow."""
        self.flows += 1
        fate = self._fates.of(flow)
        if flow.service in self._counts:
            self._counts[flow.service][fate] += 1
            self._clients[flow.service].add(flow)

    def services(self) -> tuple[ServicePlan, ...]:
        """The services that are now and those that would be."""
        return tuple(
            ServicePlan(
                name=name,
                flows={fate: self._counts[name][fate] for fate in Fate},
                slots=clients.slots_moved(),
                least=clients.least,
                clients=clients.count,
                moved=clients.moved,
            )
            for name, clients in self._clients.items()
        )

    def departing(self, *, whole: bool) -> tuple[Service, ...]:
        """The services with the backends that leave and keep flows: the host keeps what those need.
        Unless the flows were the `whole`, any backend may have some."""
        kept = []
        for service in self._leaving:
            backends = tuple(
                one
                for one in service.backends
                if not self._fates.ends(service.name, one.endpoint)
                and (not whole or self._fates.holds(service.name, one.endpoint))
            )
            if backends:
                kept.append(replace(service, backends=backends))
        return tuple(kept)


def host_changes(before: host.HostPlan | None, after: host.HostPlan) -> list[str]:
    """What changes on the host, as shell commands: `-` for one whose effect goes, `+` for one that
    comes."""
    had = before.describe() if before else []
    has = after.describe()
    gone, fresh = Counter(had) - Counter(has), Counter(has) - Counter(had)
    return [*(f"- {line}" for line in gone.elements()), *(f"+ {line}" for line in fresh.elements())]


async def plan(controller: Controller, text: str, path: Path) -> Plan:
    """What a reload would do if the configuration file at this path had this text. ConfigError with
    the faults of the text."""
    file = await asyncio.to_thread(load_text, text, path)
    prospect = await controller.reloader.foresee(file)
    before, wanted = prospect.before, prospect.wanted
    if wanted is None:
        return Plan(prospect.differences, prospect.refused)
    key = controller.data.hash_key.key
    forecast = await asyncio.to_thread(Forecast, before, wanted, prospect.steps, key)
    whole = await _add_flows(forecast, controller)
    total = forecast.flows
    if not whole:
        statistics = await controller.data.workers.statistics()
        total = sum(one.core.flows for one in statistics.values())
    services = [*wanted.services, *forecast.departing(whole=whole)]
    after = await asyncio.to_thread(_host_plan, services, controller.data.options)
    return Plan(
        prospect.differences,
        prospect.refused,
        await asyncio.to_thread(forecast.services),
        forecast.flows,
        total,
        tuple(host_changes(controller.data.plan, after)),
    )


async def _add_flows(forecast: Forecast, controller: Controller) -> bool:
    """Add the open flows to a forecast; False if there are so many that some were left out."""

    def add(page: FlowRecords) -> None:
        for _, _, flow in read_flows(page):
            forecast.add(flow)

    scanned = 0
    async for page, following in controller.data.workers.copies(Cursor()):
        await asyncio.to_thread(add, page)
        scanned += len(page.records) // 128
        if scanned >= MAX_RECORDS and following is not None:
            return False
    return True


def _host_plan(services: Sequence[Service], options: host.Options) -> host.HostPlan:
    return host.build(services, options, host.survey(services))


class _Fates:
    """What becomes of each flow."""

    def __init__(
        self, leaving: Sequence[Service], before: State, wanted: State, steps: Sequence[Step]
    ) -> None:
        endings = [step.action for step in steps if isinstance(step.action, EndFlows)]
        self._endings = [(one, filter_of(one)) for one in endings]
        self._draining = [
            (one.name, each.endpoint)
            for services in (leaving, wanted.services)
            for one in services
            for each in one.backends
            if services is leaving or not each.weight
        ]
        new = {service.name: service.datapath for service in wanted.services}
        self._moving = {
            one.name
            for one in before.services
            if one.name in new and new[one.name] is not one.datapath
        }
        self._known: dict[tuple[str, Protocol, Endpoint, Endpoint], Fate] = {}

    def ends(self, service: str, backend: Endpoint) -> bool:
        """Whether all flows of a service to this backend are ended."""
        return any(
            one.service == service and one.backend in (None, backend) and not one.spared
            for one, _ in self._endings
        )

    def holds(self, service: str, backend: Endpoint) -> bool:
        """Whether a backend has any of the flows that were asked for."""
        return any(name == service and backend.covers(one) for name, _, _, one in self._known)

    def of(self, flow: FlowView) -> Fate:
        key = flow.service, flow.protocol, flow.vip, flow.backend
        if key not in self._known:
            self._known[key] = self._find(flow)
        return self._known[key]

    def _find(self, flow: FlowView) -> Fate:
        for ending, which in self._endings:
            if which.matches(flow):
                return Fate.RESET if ending.reset else Fate.DROP
        if flow.service in self._moving:
            return Fate.MOVE
        draining = any(
            name == flow.service and endpoint.covers(flow.backend)
            for name, endpoint in self._draining
        )
        return Fate.DRAIN if draining else Fate.STAY


class _Clients:
    """The clients of a service with open flows, and where their next flows would go."""

    def __init__(self, old: Service | None, new: Service | None, key: bytes) -> None:
        self._all: set[int] = set()
        self._moved: set[int] = set()
        self._pools: tuple[Pool, Pool] | None = None
        self.least: float | None = None
        self._persists = bool(old and new and old.persistence and new.persistence)
        if old is None or new is None:
            return
        if is_consistent(old.scheduler) and is_consistent(new.scheduler):
            self._pools = _pool(old, key), _pool(new, key)
            if (old.scheduler, old.hash_on) == (new.scheduler, new.hash_on):
                self.least = least_moved(old, new)
        self._taking = shares_of(new).keys()

    @property
    def count(self) -> int:
        return len(self._all)

    @property
    def moved(self) -> int | None:
        if not self._persists and self._pools is None:
            return None
        return len(self._moved)

    def add(self, flow: FlowView) -> None:
        """Count the client of a flow."""
        client = int(flow.client.address)
        self._all.add(client)
        if self._persists:
            if not any(one.covers(flow.backend) for one in self._taking):
                self._moved.add(client)
        elif self._pools is not None:
            opening = NewFlow.between(int(flow.protocol), flow.client, flow.vip)
            before, after = (pool.pick(opening, 0) for pool in self._pools)
            if _endpoint(before) != _endpoint(after):
                self._moved.add(client)

    def slots_moved(self) -> float | None:
        """The part of the hash slots that another backend would own."""
        if self._pools is None or self.least is None:
            return None
        before, after = (pool.slots() for pool in self._pools)
        pairs = list(zip(before, after, strict=False))
        if not pairs:
            return float(bool(before) != bool(after))
        return sum(old.endpoint != new.endpoint for old, new in pairs) / len(pairs)


def _pool(service: Service, key: bytes) -> Pool:
    """A pool as a worker would have it, without flows."""
    numbers = iter(range(len(service.backends)))

    def new_member(backend: Backend) -> Member:
        return Member(backend, next(numbers))

    pool = Pool(service, seed=0, key=key)
    pool.update(service, new_member)
    return pool


def _endpoint(member: Member | None) -> Endpoint | None:
    return None if member is None else member.endpoint
