"""The topology that the raw datapath sends frames by: links, next hops and routes, kept up to date.

Runs in the supervisor, so that a packet never waits for it: the workers get a whole topology each
time. The kernel resolves the neighbours, as it does for packets of its own; it is only made to ask,
because it sees none of the workers' frames.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from featherlb.control.events import Events
from featherlb.control.tasks import Tasks
from featherlb.model import Address, Link, NextHop, Service, Topology
from featherlb.system import paths as driver
from featherlb.system.network import LOOPBACK
from featherlb.system.paths import Entry, Interface, Neighbour, NetworkState

log = logging.getLogger("featherlb")

SETTLE = 0.02
"""Seconds to wait for more news when there is some: changes come in swarms."""
REST = 4
"""A look at all routes is followed by a pause of so many times its duration."""
ASK_AGAIN = (1.0, 8.0)
"""Seconds until a silent neighbour is asked for again: at first, and after doubling at most. Each
time the kernel asks three times, a second apart (mcast_solicit in arp(7))."""
CONFIRM = 10.0
"""Seconds between two questions whether a neighbour is still where it was. It is taken to be gone
when it has not answered three of them, a second apart (ucast_solicit), and is then looked for."""
PATIENCE = 3.0
"""Seconds until a backend that can't be reached is told of."""
MAX_ROUTES = 10_000
"""Routes that workers can be told: where there are more, replies go back where the client's packets
came from."""
UNKNOWN = Entry(None)


class TopologyWatcher:
    """Keeps the topology `current`; `changed` is set whenever it changes."""

    def __init__(self, events: Events, tasks: Tasks) -> None:
        self.current = Topology()
        self.changed = asyncio.Event()
        self._events = events
        self._tasks = tasks
        self._backends: frozenset[Address] = frozenset()
        self._state = NetworkState({}, frozenset(), {}, {})
        self._neighbours: dict[Neighbour, Entry] = {}
        self._asking = Asking(random.random)
        self._complaints = Complaints()
        self._deaf: frozenset[str] = frozenset()
        self._heard: dict[Neighbour, Entry] = {}
        self._stale = False
        self._news = asyncio.Event()
        self._changes: driver.Changes | None = None
        self._task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    @property
    def active(self) -> bool:
        """Whether there is anything to watch."""
        return self._changes is not None

    async def follow(self, services: Sequence[Service]) -> None:
        """Watch the routes to the backends of those services that have the datapath raw. `current`
        has them when this returns."""
        raw = [service for service in services if service.datapath.takes_frames]
        backends = {backend.endpoint.address for service in raw for backend in service.backends}
        async with self._lock:
            if not raw:
                self._stop()
                return
            if self._changes is None:
                self._changes = driver.Changes()
                asyncio.get_running_loop().add_reader(self._changes.fileno(), self._hear)
                self._task = self._tasks.start("watch-topology", self._watch)
            elif backends == self._backends:
                return
            self._backends = frozenset(backends)
            self._stale = True
            await self._look()

    async def stop(self) -> None:
        """Watch no more."""
        async with self._lock:
            self._stop()

    def _stop(self) -> None:
        if self._changes is not None and self._task is not None:
            self._task.cancel()
            asyncio.get_running_loop().remove_reader(self._changes.fileno())
            self._changes.close()
            self._changes = self._task = None
        self.current = Topology()

    def _hear(self) -> None:
        assert self._changes is not None
        try:
            other, neighbours = self._changes.read()
        except OverflowError:
            other, neighbours = True, {}
        self._stale = self._stale or other
        self._heard |= neighbours
        if other or not neighbours.keys().isdisjoint(self._neighbours):
            self._news.set()

    async def _watch(self) -> None:
        while True:
            pause = min(self._asking.due, self._complaints.due) - time.monotonic()
            try:
                await asyncio.wait_for(self._news.wait(), max(0.0, pause))
                await asyncio.sleep(SETTLE)
            except TimeoutError:
                pass
            self._news.clear()
            began = time.monotonic()
            looks_at_all = self._stale
            async with self._lock:
                try:
                    await self._look()
                except Exception:
                    # Whatever was read may be lost: the next run reads all of it again.
                    self._stale = True
                    self._news.set()
                    raise
            if looks_at_all:
                await asyncio.sleep(REST * (time.monotonic() - began))

    async def _look(self) -> None:
        """Bring the topology up to date, and ask for the neighbours that are missing in it."""
        if self._stale:
            self._stale = False
            self._state = await asyncio.to_thread(driver.read_state, self._backends)
            self._neighbours = await asyncio.to_thread(driver.read_neighbours)
            self._name_deaf_interfaces()
        # A later word than what was read, or a repetition of an earlier one that is followed by it.
        heard, self._heard = self._heard, {}
        self._neighbours |= heard
        self._neighbours = {
            key: self._neighbours.get(key, UNKNOWN) for key in wanted(self._state, self._backends)
        }
        topology = build_topology(self._state, self._neighbours, self._backends)
        if topology != self.current:
            self.current = topology
            self.changed.set()
        now = time.monotonic()
        questions = self._asking.questions(self._neighbours, now)
        if questions.unknown or questions.known:
            await asyncio.to_thread(driver.solicit, questions.unknown, questions.known)
        reasons = unreachable(self._state, self.current, self._backends)
        for address, reason in self._complaints.update(reasons, now):
            if reason:
                text = f"no packet gets to backend {address}: {reason}"
                self._events.tell("path-lost", text, logging.WARNING, backend=str(address))
            else:
                text = f"backend {address} is reachable again"
                self._events.tell("path-found", text, backend=str(address))

    def _name_deaf_interfaces(self) -> None:
        deaf = frozenset(
            interface.name
            for interface in self._state.interfaces.values()
            if interface.up and not interface.ethernet and interface.name != LOOPBACK
        )
        for name in sorted(deaf - self._deaf):
            log.warning(
                "%s has no Ethernet frames: clients behind it can't reach services with the raw"
                " datapath; use nfqueue for them if there are such clients",
                name,
            )
        self._deaf = deaf


def usable(interface: Interface | None) -> bool:
    """Whether frames can be taken from and given to an interface that may be gone."""
    return interface is not None and interface.carries_frames


def wanted(state: NetworkState, backends: Iterable[Address]) -> set[Neighbour]:
    """The neighbours whose MAC addresses are needed: those on the way to the backends, and the
    gateways on the way to clients."""
    found = {
        (way.link, way.gateway or backend)
        for backend in backends
        if (way := state.ways.get(backend)) is not None
    }
    if len(state.routes) <= MAX_ROUTES:
        found |= {
            (way.link, way.gateway) for way in state.routes.values() if way.gateway is not None
        }
    return {key for key in found if usable(state.interfaces.get(key[0]))}


def build_topology(
    state: NetworkState, neighbours: Mapping[Neighbour, Entry], backends: Iterable[Address]
) -> Topology:
    """The topology that these tables of the kernel make."""

    def hop(link: int, neighbour: Address | None) -> NextHop:
        known = neighbours.get((link, neighbour), UNKNOWN) if neighbour is not None else UNKNOWN
        return NextHop(link, known.address)

    routes = state.routes if len(state.routes) <= MAX_ROUTES else {}
    return Topology(
        links=tuple(
            Link(interface.index, interface.name, interface.address, interface.mtu)
            for _, interface in sorted(state.interfaces.items())
            if usable(interface)
        ),
        next_hops={
            backend: hop(way.link, way.gateway or backend)
            for backend in sorted(backends, key=lambda address: (address.version, int(address)))
            if (way := state.ways.get(backend)) is not None
            and usable(state.interfaces.get(way.link))
        },
        routes=tuple(
            (network, hop(way.link, way.gateway))
            for network, way in sorted(
                routes.items(), key=lambda item: (-item[0].prefixlen, str(item[0]))
            )
        ),
        addresses=state.addresses,
    )


def unreachable(
    state: NetworkState, topology: Topology, backends: Iterable[Address]
) -> dict[Address, str]:
    """The backends that no frame can be sent to, each with the reason."""
    found = {}
    for backend in backends:
        way = state.ways.get(backend)
        interface = state.interfaces.get(way.link) if way is not None else None
        hop = topology.next_hops.get(backend)
        if way is None or interface is None:
            found[backend] = "there is no route to it"
        elif hop is None:
            found[backend] = (
                f"its route leads through {interface.name}, which the datapath raw can't use"
            )
        elif hop.mac is None:
            found[backend] = f"{way.gateway or backend} does not answer on {interface.name}"
    return found


@dataclass(frozen=True, slots=True)
class Questions:
    """Neighbours to ask for: nobody knows where they are, or whether they still are there."""

    unknown: tuple[Neighbour, ...]
    known: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """When to ask for a neighbour next, how long the pause before was, and whether it is known."""

    when: float
    pause: float
    resolved: bool


class Asking:
    """When to ask for which neighbour. Sans-IO; times are seconds of a monotonic clock."""

    def __init__(self, draw: Callable[[], float]) -> None:
        """`draw` gives random numbers from 0 to 1: not all are asked at the same moment."""
        self.due = float("inf")
        """When `questions` has something to ask, if nothing happens until then."""
        self._draw = draw
        self._plans: dict[Neighbour, _Plan] = {}

    def questions(self, neighbours: Mapping[Neighbour, Entry], now: float) -> Questions:
        """Whom to ask for now, of all neighbours that are needed. They count as asked."""
        unknown: list[Neighbour] = []
        known: list[Neighbour] = []
        plans: dict[Neighbour, _Plan] = {}
        for key, entry in neighbours.items():
            if entry.fixed:
                continue
            resolved = entry.address is not None
            plan = self._plans.get(key)
            if plan is None or plan.resolved != resolved:
                # What was just found is there; what was just lost is looked for at once.
                wait = CONFIRM * (0.5 + self._draw() / 2) if resolved else 0.0
                plan = _Plan(now + wait, 0.0, resolved)
            if plan.when <= now and resolved:
                known.append(key)
                plan = _Plan(now + CONFIRM, 0.0, resolved)
            elif plan.when <= now:
                unknown.append(key)
                pause = min(max(2 * plan.pause, ASK_AGAIN[0]), ASK_AGAIN[1])
                plan = _Plan(now + pause, pause, resolved)
            plans[key] = plan
        self._plans = plans
        self.due = min((plan.when for plan in plans.values()), default=float("inf"))
        return Questions(tuple(unknown), tuple(known))


class Complaints:
    """What to tell of backends that can't be reached: neither at once nor twice. Sans-IO."""

    def __init__(self) -> None:
        self.due = float("inf")
        """When `update` has something to tell, if nothing happens until then."""
        self._since: dict[Address, float] = {}
        self._told: dict[Address, str] = {}

    def update(
        self, reasons: Mapping[Address, str], now: float
    ) -> Iterator[tuple[Address, str | None]]:
        """What to tell now, when these can't be reached: the reason, None for a recovery."""
        self._since = {address: self._since.get(address, now) for address in reasons}
        news: list[tuple[Address, str | None]] = []
        for address in self._told.keys() - reasons.keys():
            del self._told[address]
            news.append((address, None))
        for address, reason in reasons.items():
            if now - self._since[address] >= PATIENCE and self._told.get(address) != reason:
                self._told[address] = reason
                news.append((address, reason))
        self.due = min(
            (
                since + PATIENCE
                for address, since in self._since.items()
                if address not in self._told
            ),
            default=float("inf"),
        )
        return iter(news)
