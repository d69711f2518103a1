"""The topology that the raw datapath sends frames by: links, next hops and routes, kept up to date.

Runs in the supervisor, so that a packet never waits for it: the workers get a whole topology each
time. The kernel resolves the neighbours, as it does for packets of its own; it only has to be made
to ask, because it sees none of the workers' frames.

Every change comes from the kernel (`rtnetlink.Monitor`). Changes of neighbours are applied as they
come. After others, and after changes that the kernel had to drop, everything is read again.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from featherlb.control.events import Events
from featherlb.control.tasks import Tasks
from featherlb.model import (
    LOOPBACK,
    Address,
    Link,
    Neighbour,
    NeighbourKey,
    Network,
    NextHop,
    Route,
    Service,
    Topology,
)
from featherlb.model.errors import HostError
from featherlb.system import rtnetlink

log = logging.getLogger("featherlb")

DEBOUNCE = 0.02
"""Seconds to wait for more changes after the first: they come in swarms."""
REFRESH_PAUSE = 4
"""After everything was read, the next change waits for so many times the duration of that."""
RETRY_INTERVAL = 1.0
"""Seconds until the kernel is asked again after it has failed to answer."""
SOLICIT_INTERVALS = (1.0, 8.0)
"""Seconds until a silent neighbour is solicited again: at first, and after doubling at most. Each
time the kernel asks three times, a second apart (mcast_solicit in arp(7))."""
PROBE_INTERVAL = 10.0
"""Seconds between two probes of a neighbour that was resolved. It counts as gone when it has not
answered three questions, a second apart (ucast_solicit), and is then solicited."""
REPORT_DELAY = 3.0
"""Seconds until a backend that can't be reached is reported."""
MAX_ROUTES = 10_000
"""Routes that workers are sent. Where there are more they get none, and replies go back where the
client's packets came from."""


@dataclass(frozen=True, slots=True)
class NetworkState:
    """What the kernel has: links by index, addresses, routes, and its own choice of a route to each
    backend that it can route to."""

    links: Mapping[int, Link] = field(default_factory=dict)
    addresses: frozenset[Address] = frozenset()
    routes: Mapping[Network, Route] = field(default_factory=dict)
    backends: Mapping[Address, Route] = field(default_factory=dict)
    by_policy: frozenset[int] = frozenset()
    """See `Topology`."""


def read_state(backends: Iterable[Address]) -> NetworkState:
    """How things are now. Blocks; HostError if the kernel doesn't say."""
    # Answers of its own: none may be older than the change because of which it asks.
    with rtnetlink.asked_once():
        return NetworkState(
            links=rtnetlink.links(),
            addresses=frozenset(own.address.ip for own in rtnetlink.addresses()),
            routes=rtnetlink.routes(),
            by_policy=frozenset(rule.version for rule in rtnetlink.rules()),
            backends=read_routes(backends),
        )


def read_routes(backends: Iterable[Address]) -> dict[Address, Route]:
    """The kernel's choice of a route to each backend that it can route to. Blocks; HostError as
    `read_state`."""
    with rtnetlink.asked_once():
        routes = {backend: rtnetlink.route(backend) for backend in backends}
    # Frames don't get to an address of this host.
    return {backend: route for backend, route in routes.items() if route and not route.local}


class TopologyWatcher:
    """Keeps the topology `current`; `changed` is set whenever it changes."""

    def __init__(self, events: Events, tasks: Tasks) -> None:
        self.current = Topology()
        self.changed = asyncio.Event()
        self._events = events
        self._tasks = tasks
        self._backends: frozenset[Address] = frozenset()
        self._state = NetworkState()
        self._neighbours: dict[NeighbourKey, Neighbour] = {}
        self._no_room: frozenset[NeighbourKey] = frozenset()
        self._solicitations = Solicitations(random.random)
        self._reports = Reports()
        self._without_frames: frozenset[str] = frozenset()
        self._updates: dict[NeighbourKey, Neighbour] = {}
        self._stale = False
        self._overrun = False
        self._wake = asyncio.Event()
        self._monitor: rtnetlink.Monitor | None = None
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    @property
    def active(self) -> bool:
        """Whether there is anything to watch."""
        return self._monitor is not None

    async def follow(self, services: Sequence[Service]) -> None:
        """Watch the routes to the backends of those services that take frames. `current` has them
        when this returns; HostError if the kernel doesn't say."""
        raw = [service for service in services if service.datapath.takes_frames]
        backends = {backend.endpoint.address for service in raw for backend in service.backends}
        async with self._lock:
            if not raw:
                self._stop()
                return
            if self._monitor is None:
                self._monitor = rtnetlink.Monitor()
                asyncio.get_running_loop().add_reader(self._monitor.fileno(), self._read_changes)
                self._task = self._tasks.start("watch-topology", self._watch)
                self._stale = True
            elif backends == self._backends:
                return
            added = backends - self._backends
            self._backends = frozenset(backends)
            if not self._stale:
                await self._read_added(added)
            await self._refresh()

    async def stop(self) -> None:
        """Watch no more."""
        async with self._lock:
            self._stop()

    def _stop(self) -> None:
        if self._monitor is not None and self._task is not None:
            self._task.cancel()
            asyncio.get_running_loop().remove_reader(self._monitor.fileno())
            self._monitor.close()
            self._monitor = self._task = None
        self.current = Topology()

    def _read_changes(self) -> None:
        assert self._monitor is not None
        try:
            other, neighbours = self._monitor.read()
        except OverflowError:
            other, neighbours = True, {}
            if not self._overrun:
                log.warning(
                    "links, routes or neighbours changed faster than featherlb could read it:"
                    " reading all of them again"
                )
            self._overrun = True
        self._stale = self._stale or other
        self._updates |= neighbours
        if other or not neighbours.keys().isdisjoint(self._neighbours):
            self._wake.set()

    async def _watch(self) -> None:
        failing = False
        while True:
            pause = min(self._solicitations.due, self._reports.due) - time.monotonic()
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
                await asyncio.sleep(DEBOUNCE)
            except TimeoutError:
                pass
            self._wake.clear()
            began = time.monotonic()
            full = self._stale
            try:
                with self._tasks.round():
                    async with self._lock:
                        await self._refresh()
            except HostError as error:
                if not failing:
                    log.error("%s; trying again every %g s", error, RETRY_INTERVAL)
                failing = True
                self._wake.set()
                await asyncio.sleep(RETRY_INTERVAL)
                continue
            except Exception:
                # What was read may be lost: once restarted, this reads everything again.
                self._stale = True
                self._wake.set()
                raise
            if failing:
                log.info("links, routes and neighbours are being watched again")
                failing = False
            if full:
                await asyncio.sleep(REFRESH_PAUSE * (time.monotonic() - began))

    async def _refresh(self) -> None:
        """Bring the topology up to date, and solicit the neighbours that are missing in it."""
        if self._stale:
            await self._read_all()
        # An update is newer than what was read, or repeats something older and is followed by it.
        updates, self._updates = self._updates, {}
        self._neighbours |= updates
        # There was room: the kernel says that it was resolved, or that nobody answered.
        self._no_room = self._no_room.difference(updates)
        self._neighbours = {
            key: self._neighbours.get(key, Neighbour(*key))
            for key in needed(self._state, self._backends)
        }
        topology = build_topology(self._state, self._neighbours, self._backends)
        if topology != self.current:
            self.current = topology
            self.changed.set()
        now = time.monotonic()
        due = self._solicitations.take_due(self._neighbours, now)
        if due.unresolved or due.resolved:
            refused = await asyncio.to_thread(rtnetlink.solicit, due.unresolved, due.resolved)
            self._no_room |= refused
        reasons = unreachable(self._state, self.current, self._backends, self._no_room)
        for address, reason in self._reports.update(reasons, now):
            if reason:
                text = f"no packet gets to backend {address}: {reason}"
                self._events.emit("path-lost", text, logging.WARNING, backend=str(address))
            else:
                text = f"backend {address} is reachable again"
                self._events.emit("path-found", text, backend=str(address))

    async def _read_added(self, backends: Set[Address]) -> None:
        """Read what more backends need; the rest is up to date."""
        try:
            found = await asyncio.to_thread(read_routes, backends)
            known = await asyncio.to_thread(rtnetlink.neighbours)
        except BaseException:
            self._stale = True
            raise
        kept = {one: route for one, route in self._state.backends.items() if one in self._backends}
        self._state = replace(self._state, backends=kept | found)
        self._neighbours = known

    async def _read_all(self) -> None:
        self._stale = self._overrun = False
        try:
            self._state = await asyncio.to_thread(read_state, self._backends)
            self._neighbours = await asyncio.to_thread(rtnetlink.neighbours)
        except BaseException:
            self._stale = True
            raise
        without = frozenset(
            link.name
            for link in self._state.links.values()
            if link.up and not link.ethernet and link.name != LOOPBACK
        )
        for name in sorted(without - self._without_frames):
            log.warning(
                "%s has no Ethernet frames: clients behind it can't reach services with the raw"
                " datapath; use nfqueue for them if there are such clients",
                name,
            )
        self._without_frames = without


def usable(link: Link | None) -> bool:
    """Whether frames can be taken from and given to a link that may be gone."""
    return link is not None and link.carries_frames


def needed(state: NetworkState, backends: Iterable[Address]) -> set[NeighbourKey]:
    """The neighbours whose MAC addresses are needed: those that are next hops to the backends, and
    the gateways of routes to clients."""
    found = {
        (route.link, route.gateway or backend)
        for backend in backends
        if (route := state.backends.get(backend)) is not None
    }
    if len(state.routes) <= MAX_ROUTES:
        found |= {
            (route.link, route.gateway)
            for route in state.routes.values()
            if route.gateway is not None
        }
    return {key for key in found if usable(state.links.get(key[0]))}


def build_topology(
    state: NetworkState,
    neighbours: Mapping[NeighbourKey, Neighbour],
    backends: Iterable[Address],
) -> Topology:
    """The topology that follows from what the kernel has."""

    def hop(link: int, address: Address | None) -> NextHop:
        known = neighbours.get((link, address)) if address is not None else None
        return NextHop(link, known.mac if known is not None else None)

    routes = state.routes if len(state.routes) <= MAX_ROUTES else {}
    return Topology(
        links=tuple(link for _, link in sorted(state.links.items()) if usable(link)),
        next_hops={
            backend: hop(route.link, route.gateway or backend)
            for backend in sorted(backends, key=lambda address: (address.version, int(address)))
            if (route := state.backends.get(backend)) is not None
            and usable(state.links.get(route.link))
        },
        routes=tuple(
            (network, hop(route.link, route.gateway))
            for network, route in sorted(
                routes.items(), key=lambda item: (-item[0].prefixlen, str(item[0]))
            )
        ),
        addresses=state.addresses,
        by_policy=state.by_policy,
    )


def unreachable(
    state: NetworkState,
    topology: Topology,
    backends: Iterable[Address],
    no_room: Set[NeighbourKey] = frozenset(),
) -> dict[Address, str]:
    """The backends that no frame can be sent to, each with the reason. The kernel has `no_room` for
    these neighbours."""
    found = {}
    for backend in backends:
        route = state.backends.get(backend)
        link = state.links.get(route.link) if route is not None else None
        hop = topology.next_hops.get(backend)
        if route is None or link is None:
            found[backend] = "there is no route to it"
        elif hop is None:
            found[backend] = (
                f"its route leads through {link.name}, which the datapath raw can't use"
            )
        elif hop.mac is None:
            neighbour = route.gateway or backend
            if (route.link, neighbour) in no_room:
                family = "ipv4" if neighbour.version == 4 else "ipv6"
                found[backend] = (
                    f"the kernel's neighbour table is full, so {neighbour} can't be resolved on"
                    f" {link.name}; raise net.{family}.neigh.default.gc_thresh3"
                )
            else:
                found[backend] = f"{neighbour} does not answer on {link.name}"
    return found


@dataclass(frozen=True, slots=True)
class Due:
    """Neighbours to solicit now: those that are not resolved, and resolved ones to be probed."""

    unresolved: tuple[NeighbourKey, ...]
    resolved: tuple[NeighbourKey, ...]


@dataclass(frozen=True, slots=True)
class _Timer:
    """When a neighbour is solicited next, how long the pause before was, and whether it is
    resolved."""

    when: float
    pause: float
    resolved: bool


class Solicitations:
    """When to solicit which neighbour. Sans-IO; times are seconds of a monotonic clock."""

    def __init__(self, draw: Callable[[], float]) -> None:
        """`draw` gives random numbers from 0 to 1, so that not all are probed at one moment."""
        self.due = float("inf")
        """When `take_due` has something next, if nothing happens until then."""
        self._draw = draw
        self._timers: dict[NeighbourKey, _Timer] = {}

    def take_due(self, neighbours: Mapping[NeighbourKey, Neighbour], now: float) -> Due:
        """Which of all neighbours that are needed to solicit now. They count as solicited."""
        unresolved: list[NeighbourKey] = []
        resolved: list[NeighbourKey] = []
        timers: dict[NeighbourKey, _Timer] = {}
        for key, neighbour in neighbours.items():
            if neighbour.fixed:
                continue
            known = neighbour.mac is not None
            timer = self._timers.get(key)
            if timer is None or timer.resolved != known:
                # A neighbour that was just resolved is there; one just lost is solicited at once.
                wait = PROBE_INTERVAL * (0.5 + self._draw() / 2) if known else 0.0
                timer = _Timer(now + wait, 0.0, known)
            if timer.when <= now and known:
                resolved.append(key)
                timer = _Timer(now + PROBE_INTERVAL, 0.0, known)
            elif timer.when <= now:
                unresolved.append(key)
                pause = min(max(2 * timer.pause, SOLICIT_INTERVALS[0]), SOLICIT_INTERVALS[1])
                timer = _Timer(now + pause, pause, known)
            timers[key] = timer
        self._timers = timers
        self.due = min((timer.when for timer in timers.values()), default=float("inf"))
        return Due(tuple(unresolved), tuple(resolved))


class Reports:
    """Which unreachable backends to report: neither at once nor twice. Sans-IO."""

    def __init__(self) -> None:
        self.due = float("inf")
        """When `update` has something to report, if nothing happens until then."""
        self._since: dict[Address, float] = {}
        self._reported: dict[Address, str] = {}

    def update(
        self, reasons: Mapping[Address, str], now: float
    ) -> Iterator[tuple[Address, str | None]]:
        """What to report now, when these can't be reached: the reason, None for a recovery."""
        self._since = {address: self._since.get(address, now) for address in reasons}
        news: list[tuple[Address, str | None]] = []
        for address in self._reported.keys() - reasons.keys():
            del self._reported[address]
            news.append((address, None))
        for address, reason in reasons.items():
            if now - self._since[address] >= REPORT_DELAY and self._reported.get(address) != reason:
                self._reported[address] = reason
                news.append((address, reason))
        self.due = min(
            (
                since + REPORT_DELAY
                for address, since in self._since.items()
                if address not in self._reported
            ),
            default=float("inf"),
        )
        return iter(news)
