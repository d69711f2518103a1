"""Simulates a service's new flows: the real pools, schedulers, persistence and limits, without a
packet, a kernel or root.

Flows open at random times, at a mean rate, and stay open for random times; both are exponentially
distributed. Every scheduler gets the same flows; after a change they come once more, in another
order. With several workers each flow goes to the worker that would have it.
"""

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heappop, heappush
from ipaddress import IPv4Address, ip_address

from featherlb.config import BackendConfig, Config, ServiceConfig, resolve, values
from featherlb.config.resolve import Lookup
from featherlb.control.overrides import Action, Override, add, find_service, with_overrides
from featherlb.core.pools.latency import Latencies
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import Member, NewFlow, UserScheduler, goes_by_latency
from featherlb.model import Address, Backend, Endpoint, Network, Role, Service
from featherlb.model.errors import ConfigError
from featherlb.model.shard import Shard, remembered_prefix
from featherlb.model.ticks import TICKS_PER_SECOND
from featherlb.net.addresses import words_of
from featherlb.worker.loop import divide_limits

CLIENT_PORTS = range(32768, 61000)
"""Linux's default ephemeral ports (net.ipv4.ip_local_port_range)."""
STAND_INS = int(IPv4Address("198.18.0.0"))
"""The first address that stands for a name without one (RFC 2544: for benchmarks)."""
BASE = "round-robin"
"""What the cost of a pick is compared with: it computes nothing."""
TIMED_PICKS = 10_000
LATENCY = 0.001
"""Seconds that a backend takes to answer, unless a load says otherwise."""
ROUNDS = 7
"""How often the picks are timed; the fastest round counts, as it was disturbed least."""


@dataclass(frozen=True, slots=True)
class Load:
    """The flows to generate. `rate` is new flows per second, `duration` the mean time in seconds
    that a flow stays open."""

    clients: Network
    flows: int
    rate: float
    duration: float
    seed: int
    latencies: Mapping[str, float] = field(default_factory=dict)
    """How long backends take to answer, in seconds, by their names as in the configuration;
    `LATENCY` for others."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A new flow, and when it opens and closes, in seconds."""

    flow: NewFlow
    opens: float
    closes: float


@dataclass(frozen=True, slots=True)
class Share:
    """What one backend got. `wanted` and `share` are parts of 1: of the weights, and of the flows.

    `deviation` is how far the share is from the wanted one, as a part of that; None if none is
    wanted.
    """

    backend: str
    role: Role
    weight: int
    flows: int
    share: float
    wanted: float
    deviation: float | None


@dataclass(frozen=True, slots=True)
class Move:
    """What moves with a change: the parts of the flows and of the clients that get another backend
    if they come again.

    A client moves if any of its flows does. `least` is the smallest part of the flows that any
    scheduler could move and still follow the weights.
    """

    change: str
    flows: float
    clients: float
    least: float


@dataclass(frozen=True, slots=True)
class Trial:
    """One scheduler.

    `fairness` is Jain's index of flows per weight: 1 if all backends get what their weight
    demands, 1/n if one of n gets everything (Jain, Chiu and Hawe, "A quantitative measure of
    fairness and discrimination for resource allocation in shared computer systems", DEC-TR-301,
    1984). `one_backend` is the part of the clients with several flows whose flows all went to one
    backend, None if no client had several; `refused` are flows that no backend could take, or
    that their clients may not open. `cost` is the time of a pick as a multiple of round-robin's,
    `nanoseconds` that time on this machine.
    """

    scheduler: str
    shares: tuple[Share, ...]
    refused: int
    fairness: float
    one_backend: float | None
    moves: tuple[Move, ...]
    nanoseconds: float
    cost: float
    errors: int
    first_error: str | None


@dataclass(frozen=True, slots=True)
class Simulation:
    """The trials of one service with the same flows. `clients` is the number of different ones;
    `stand_ins` are addresses that stand for names without one."""

    service: str
    vip: str
    protocol: str
    workers: int
    load: Load
    clients: int
    stand_ins: Mapping[str, str]
    trials: tuple[Trial, ...]


def simulate(
    config: Config,
    name: str,
    load: Load,
    schedulers: Sequence[str],
    changes: Sequence[str],
    look_up: Lookup,
) -> Simulation:
    """Simulate a service with each of these schedulers, and each of these changes to its pool.

    Changes are texts for `read_change`; without any there are three: a backend leaves, one joins,
    a weight is doubled. ConfigError for what doesn't fit the configuration.
    """
    stand_ins: dict[str, str] = {}
    one = find_service(config, name)
    config = replace(config, services=(one,))
    names = with_stand_ins(look_up, stand_ins, config)
    (service,) = resolve(config, names)
    if not any(backend.weight for backend in service.backends):
        raise ConfigError([f"'{one.name}' has no backend with a weight: there is nothing to pick"])
    vip = service.vips[0]
    if vip.address.version != load.clients.version:
        raise ConfigError(
            [
                f"clients in {load.clients} can't reach the VIP {vip}: choose an IPv"
                f"{vip.address.version} network with --clients"
            ]
        )
    wanted = changes or list(_usual_changes(one, service))
    overrides = [read_change(text, one.name) for text in wanted]
    after = [
        resolve(with_overrides(config, add(config, (), override)), names)[0]
        for override in overrides
    ]
    arrivals = generate(service, load)
    scenarios = [("no change", service), *zip(wanted, after, strict=True)]
    latencies = latencies_of(load, one.backends, [service, *after], names)
    run = _Run(config, service, arrivals, load.seed, latencies)
    costs = cost_of_picks([replace(service, scheduler=s) for s in (BASE, *schedulers)], run)
    return Simulation(
        service=one.name,
        vip=str(vip),
        protocol=str(service.protocol),
        workers=config.workers,
        load=load,
        clients=len({arrival.flow.client for arrival in arrivals}),
        stand_ins=stand_ins,
        trials=tuple(
            _try(scheduler, service, scenarios, run, cost, cost / costs[0])
            for scheduler, cost in zip(schedulers, costs[1:], strict=True)
        ),
    )


def read_change(text: str, service: str) -> Override:
    """A change as in `featherlb backend`: `add BACKEND [WEIGHT]`, `remove BACKEND`, `drain BACKEND`
    or `weight BACKEND WEIGHT`. ConfigError for anything else."""
    words = text.split()
    expected = "add BACKEND [WEIGHT], remove BACKEND, drain BACKEND or weight BACKEND WEIGHT"
    try:
        action = Action(words[0])
        backend = values.backend(words[1])
        weight = values.weight(int(words[2])) if len(words) > 2 else None
    except (IndexError, ValueError):
        raise ConfigError([f"'{text}' is no change (expected {expected})"]) from None
    takes = {Action.ADD: (2, 3), Action.WEIGHT: (3,), Action.REMOVE: (2,), Action.DRAIN: (2,)}
    if len(words) not in takes.get(action, ()):
        raise ConfigError([f"'{text}' is no change (expected {expected})"])
    return Override(0, action, service, backend, weight)


def generate(service: Service, load: Load) -> list[Arrival]:
    """The flows, in the order in which they open."""
    chance = random.Random(load.seed)
    vip = service.vips[0]
    first, size = int(load.clients.network_address), load.clients.num_addresses
    protocol, version = int(service.protocol), vip.address.version
    arrivals = []
    now = 0.0
    for _ in range(load.flows):
        now += chance.expovariate(load.rate)
        flow = NewFlow(
            protocol,
            version,
            first + chance.randrange(size),
            chance.choice(CLIENT_PORTS),
            int(vip.address),
            vip.first_port,
        )
        arrivals.append(Arrival(flow, now, now + chance.expovariate(1 / load.duration)))
    return arrivals


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index: 1 for equal values, 1/n if all but one of n are 0."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def shares_of(service: Service) -> dict[Endpoint, float]:
    """What the weights demand: each backend's part of the new flows, while all have room."""
    for role in Role:
        serving = [one for one in service.backends if one.role is role and one.weight]
        preferred = [one for one in serving if service.prefer and service.prefer.covers(one)]
        serving = preferred or serving
        if total := sum(one.weight for one in serving):
            return {one.endpoint: one.weight / total for one in serving}
    return {}


def least_moved(before: Service, after: Service) -> float:
    """The part of the flows that has to move so that the shares follow the weights."""
    old, new = shares_of(before), shares_of(after)
    return sum(max(0.0, share - new.get(endpoint, 0.0)) for endpoint, share in old.items())


def latencies_of(
    load: Load, backends: Sequence[BackendConfig], services: Sequence[Service], look_up: Lookup
) -> dict[Endpoint, float]:
    """How long these backends take to answer; ConfigError for one that there is not."""
    endpoints = {one.endpoint for service in services for one in service.backends}
    found: dict[Endpoint, float] = {}
    for name, seconds in load.latencies.items():
        hosts = [one for one in backends if str(one) == name and isinstance(one.host, str)]
        addresses = {address for one in hosts for address in look_up(str(one.host))}
        named = {
            one
            for one in endpoints
            if str(one) == name or (one.address in addresses and one.port == hosts[0].port)
        }
        if not named:
            known = ", ".join(map(str, backends))
            raise ConfigError(
                [f"--latency: there is no backend '{name}' (the service has: {known})"]
            )
        found |= dict.fromkeys(named, seconds)
    return found


class _Run:
    """What all trials have in common."""

    def __init__(
        self,
        config: Config,
        service: Service,
        arrivals: Sequence[Arrival],
        seed: int,
        latencies: Mapping[Endpoint, float],
    ) -> None:
        self.arrivals = arrivals
        self.latencies = latencies
        flows = [arrival.flow for arrival in arrivals]
        self.order = random.Random(seed).sample(range(len(flows)), len(flows))
        """In which the flows come for the second time."""
        self.again = [
            replace(arrival, flow=flows[number])
            for arrival, number in zip(arrivals, self.order, strict=True)
        ]
        self.seed = seed
        self.key = config.hash_key.encode()
        prefixes = (remembered_prefix([service], family) for family in (4, 6))
        one = Shard(0, config.workers, seed, *prefixes)
        self.shards = [replace(one, worker=number) for number in range(config.workers)]

    def worker(self, flow: NewFlow) -> int:
        """Which worker has this flow."""
        words = words_of(flow.client_address)
        return next(one.worker for one in self.shards if one.has(*words, flow.client_port))


class _DataPlane:
    """The pools of one service in all workers, with their open flows."""

    def __init__(self, service: Service, run: _Run) -> None:
        self._run = run
        self.pools = [
            Pool(service, seed=run.seed + shard.worker, key=run.key) for shard in run.shards
        ]
        self._members = 0
        self._latencies = [Latencies() for _ in run.shards]
        self._timed = goes_by_latency(service.scheduler) or any(self.user_schedulers)
        self._answers: list[tuple[float, int, Member]] = []
        self._closing: list[tuple[float, int, Member, Pool, Address]] = []
        self._opened = 0
        self.update(service)

    def update(self, service: Service) -> None:
        """Serve another pool."""
        parts = zip(self.pools, self._run.shards, self._latencies, strict=True)
        for pool, shard, latencies in parts:
            (divided,) = divide_limits((service,), shard)
            pool.update(divided, partial(self._new_member, latencies=latencies))

    def _new_member(self, backend: Backend, latencies: Latencies) -> Member:
        self._members += 1
        latencies.begin(self._members)
        return Member(backend, self._members, latencies)

    def serve(self, arrivals: Sequence[Arrival], start: float) -> list[Member | None]:
        """Open these flows, from this time on; the member that gets each, None if none can."""
        closing = self._closing
        chosen: list[Member | None] = []
        pools = self.pools
        pool = pools[0]
        for arrival in arrivals:
            now = start + arrival.opens
            while closing and closing[0][0] <= now:
                _, _, member_of, pool_of, of = heappop(closing)
                self._count(member_of, pool_of, of, -1)
            if self._timed:
                self._answer(now)
            flow = arrival.flow
            if len(pools) > 1:
                pool = pools[self._run.worker(flow)]
            member = None
            if not pool.guarded or not pool.gate.refusal(*words_of(flow.client_address), now):
                member = pool.pick(flow, int(now * TICKS_PER_SECOND))
            chosen.append(member)
            if member is not None:
                self._count(member, pool, flow.client_address, 1)
                self._opened += 1
                closes = start + arrival.closes
                heappush(closing, (closes, self._opened, member, pool, flow.client_address))
                if self._timed:
                    latency = self._run.latencies.get(member.endpoint, LATENCY)
                    heappush(self._answers, (now + latency, self._opened, member))
        return chosen

    def _answer(self, now: float) -> None:
        """Have the members answer up to this time."""
        answers = self._answers
        while answers and answers[0][0] <= now:
            at, _, member = heappop(answers)
            assert member.latencies is not None
            latency = self._run.latencies.get(member.endpoint, LATENCY)
            member.latencies.take(member.index, latency, at)
        for latencies in self._latencies:
            latencies.now = now

    def _count(self, member: Member, pool: Pool, client: Address, change: int) -> None:
        """Note that a flow has opened (1) or closed (-1)."""
        member.active += change
        if pool.counts_clients:
            pool.gate.count(*words_of(client), change)

    @property
    def user_schedulers(self) -> Iterator[UserScheduler]:
        for pool in self.pools:
            for scheduler in pool.schedulers:
                if isinstance(scheduler, UserScheduler):
                    yield scheduler


def _try(
    scheduler: str,
    service: Service,
    scenarios: Sequence[tuple[str, Service]],
    run: _Run,
    nanoseconds: float,
    cost: float,
) -> Trial:
    moves = []
    for change, after in scenarios:
        plane = _DataPlane(replace(service, scheduler=scheduler), run)
        before = plane.serve(run.arrivals, 0.0)
        plane.update(replace(after, scheduler=scheduler))
        moved = _moved(run, before, plane.serve(run.again, run.arrivals[-1].opens))
        moves.append(Move(change, *moved, least_moved(service, after)))
    found = Counter(member.endpoint for member in before if member is not None)
    wanted = shares_of(service)
    users = list(plane.user_schedulers)
    return Trial(
        scheduler=scheduler,
        shares=tuple(_share(backend, found, wanted) for backend in service.backends),
        refused=before.count(None),
        fairness=jain([found[endpoint] / share for endpoint, share in wanted.items()]),
        one_backend=_on_one_backend(run.arrivals, before),
        moves=tuple(moves),
        nanoseconds=nanoseconds,
        cost=cost,
        errors=sum(one.errors for one in users),
        first_error=next((one.first_error for one in users if one.first_error), None),
    )


def _share(backend: Backend, found: Counter[Endpoint], wanted: Mapping[Endpoint, float]) -> Share:
    share = found[backend.endpoint] / max(1, found.total())
    target = wanted.get(backend.endpoint, 0.0)
    return Share(
        backend=str(backend),
        role=backend.role,
        weight=backend.weight,
        flows=found[backend.endpoint],
        share=share,
        wanted=target,
        deviation=share / target - 1 if target else None,
    )


def _moved(
    run: _Run, before: Sequence[Member | None], after: Sequence[Member | None]
) -> tuple[float, float]:
    """The parts of the flows and of the clients that get another member the second time."""
    moved = [
        arrival.flow.client
        for arrival, number, member in zip(run.again, run.order, after, strict=True)
        if member is not before[number]
    ]
    clients = {arrival.flow.client for arrival in run.arrivals}
    return len(moved) / len(run.arrivals), len(set(moved)) / len(clients)


def _on_one_backend(arrivals: Sequence[Arrival], chosen: Sequence[Member | None]) -> float | None:
    """The part of the clients with several flows whose flows all have one backend."""
    flows: Counter[int] = Counter()
    backends: defaultdict[int, set[Endpoint | None]] = defaultdict(set)
    for arrival, member in zip(arrivals, chosen, strict=True):
        flows[arrival.flow.client] += 1
        backends[arrival.flow.client].add(member.endpoint if member else None)
    several = [client for client, count in flows.items() if count > 1]
    if not several:
        return None
    return sum(len(backends[client]) == 1 for client in several) / len(several)


def cost_of_picks(services: Sequence[Service], run: _Run) -> list[float]:
    """Nanoseconds per pick with each service's scheduler; all are timed in turn, so that whatever
    else the machine does meets all of them."""
    flows = [arrival.flow for arrival in run.arrivals[:TIMED_PICKS]]
    picks: list[Callable[[NewFlow], object]] = [
        _DataPlane(service, run).pools[0].schedulers[0].pick for service in services
    ]
    best = [float("inf")] * len(picks)
    empty = float("inf")
    # Rows and the like are computed at their first use.
    for pick in picks:
        _time(pick, flows)
    for _ in range(ROUNDS):
        empty = min(empty, _time(_nothing, flows))
        for index, pick in enumerate(picks):
            best[index] = min(best[index], _time(pick, flows))
    return [max(1.0, (one - empty) / len(flows)) for one in best]


def _time(pick: Callable[[NewFlow], object], flows: Sequence[NewFlow]) -> float:
    begun = time.perf_counter_ns()
    for flow in flows:
        pick(flow)
    return time.perf_counter_ns() - begun


def _nothing(flow: NewFlow) -> None:
    """What calling a function costs."""


def _usual_changes(config: ServiceConfig, service: Service) -> Iterator[str]:
    """A backend leaves, one joins, a weight is doubled."""
    serving = [one for one in service.backends if one.endpoint in shares_of(service)]
    first = next(one for one in config.backends if one.weight and one.role is serving[0].role)
    if len(config.backends) > 1:
        yield f"remove {first}"
    highest = max(one.endpoint.address for one in service.backends)
    yield f"add {Endpoint(highest + 1, first.port, first.last_port)} {first.weight}"
    yield f"weight {first} {min(2 * first.weight, 65535)}"


def with_stand_ins(look_up: Lookup, stand_ins: dict[str, str], config: Config) -> Lookup:
    """A lookup that has an address for every name of the only service in a configuration; those
    that it invents are entered in `stand_ins`."""
    (service,) = config.services
    hosts = [vip.host for vip in service.vips] + [one.host for one in service.backends]
    family = next((host.version for host in hosts if not isinstance(host, str)), 4)

    def find(name: str) -> Sequence[Address]:
        if name in stand_ins:
            return [ip_address(stand_ins[name])]
        if found := [one for one in look_up(name) if one.version == family]:
            return found
        first = STAND_INS if family == 4 else STAND_INS | 0x20010DB8 << 96
        stand_in = ip_address(first + len(stand_ins) + 1)
        stand_ins[name] = str(stand_in)
        return [stand_in]

    return find
