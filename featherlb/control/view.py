"""A view of an instance: what the API and the metrics show of it, all of one moment."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from featherlb.config import BackendConfig, Place, ServiceConfig
from featherlb.config.types import BackendKey, Host
from featherlb.control.canary import CanaryView
from featherlb.control.cluster import ClusterView
from featherlb.control.cookies import CookieView
from featherlb.control.faults import FaultView
from featherlb.control.health import HealthChecks, progress
from featherlb.control.host_watch import HostView
from featherlb.control.log_level import LogLevel
from featherlb.control.overrides import Override, drained
from featherlb.control.tasks import TaskState
from featherlb.control.transition import State
from featherlb.model import Address, Endpoint, Health, Service
from featherlb.model.reason import Reason
from featherlb.worker.protocol import WorkerStatistics


@dataclass(frozen=True, slots=True)
class Reloads:
    """How the reloads went."""

    done: int = 0
    refused: int = 0
    last: str = ""
    """When, ISO 8601 in UTC; empty if never."""
    error: str = ""
    """Why the last one was refused; empty if it was not."""


@dataclass(frozen=True, slots=True)
class BackendView:
    """One address of a configured backend."""

    config: BackendConfig
    """With the overrides."""
    endpoint: Endpoint | None
    """None if it has none that can be used: it is absent, and `failure` says why."""
    drained: bool
    """By an override."""
    health: Health | None
    """None if it isn't checked."""
    failure: str
    """Why its last check failed, or why it is ejected; else empty."""
    effective_weight: float
    """0 if it takes no new flows; less than the weight while it starts slowly."""
    ejections: int | None
    """None if connections to it are not watched, as are `acquittals`."""
    acquittals: int | None


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One service."""

    config: ServiceConfig
    """With the overrides."""
    served: Service | None
    """With VIPs resolved and the datapath picked; None while the names of its VIPs have no address.
    """
    panic: bool
    """Its backends' health is ignored."""
    backends: tuple[BackendView, ...]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker."""

    number: int
    pid: int
    statistics: WorkerStatistics | None
    """None if it has died, and its successor is starting, or if it does not answer in time."""
    alive: bool


@dataclass(frozen=True, slots=True)
class View:
    """One instance."""

    instance: int
    """The number of its first queue."""
    started: datetime
    uptime: float
    """Seconds since then, whatever became of the wall clock, and including a suspended host's."""
    assign: bool
    """VIPs that the host doesn't have are assigned to it."""
    overrides: tuple[Override, ...]
    canaries: CanaryView
    faults: tuple[FaultView, ...]
    absent: int
    """Backends whose names have no address that can be used."""
    hash_key: str
    """Where the key of the hash schedulers is (`HashKey.place`)."""
    log_level: LogLevel
    log_until: float | None
    """When the previous level returns, on the monotonic clock; None if it doesn't."""
    reloads: Reloads
    services: tuple[ServiceView, ...]
    workers: tuple[WorkerView, ...]
    worker_restarts: int
    refused: Mapping[tuple[str, Reason], int]
    """Packets of clients that rules have refused before workers saw them, by service and reason."""
    martians: int
    """Packets that rules have dropped because no client can have sent them."""
    tasks: tuple[TaskState, ...]
    host: HostView
    cookies: CookieView
    obstacles: tuple[str, ...]
    """Why it should get no traffic for now, as sentences."""
    cluster: ClusterView | None
    """None without other nodes."""
    watchdog_fed: bool
    """No task that packets depend on keeps failing."""

    @property
    def statistics(self) -> dict[int, WorkerStatistics]:
        """The workers' counters by their numbers, without dead workers."""
        return {one.number: one.statistics for one in self.workers if one.statistics is not None}


def view_services(
    state: State, health: HealthChecks, *, backends: bool = True
) -> tuple[ServiceView, ...]:
    """The services of a state, with their `backends` if they are wanted."""
    served = {service.name: service for service in state.services}
    return tuple(
        ServiceView(
            config=service,
            served=served.get(service.name),
            panic=service.name in health.panic,
            backends=tuple(_backends(service, served.get(service.name), state, health))
            if backends
            else (),
        )
        for service in state.running.services
    )


def _backends(
    service: ServiceConfig, served: Service | None, state: State, health: HealthChecks
) -> Iterator[BackendView]:
    resting = drained(service, state.overrides)
    backends = served.backends if served else ()
    weights = {one.endpoint: round(one.weight * progress(one), 2) for one in backends}
    places: dict[BackendKey, list[Place]] = {}
    for place in state.places.get(service.name, ()):
        places.setdefault(place.backend.key, []).append(place)
    for backend in service.backends:
        key = backend.key
        for place in places.get(key) or [Place(backend, _literal(backend.host))]:
            endpoint = None if place.problem else place.endpoint
            yield BackendView(
                config=backend,
                endpoint=endpoint,
                drained=key in resting,
                health=health.state(service.name, endpoint) if endpoint else None,
                failure=health.failure(service.name, endpoint) if endpoint else place.problem,
                effective_weight=weights.get(endpoint, 0) if endpoint else 0,
                ejections=health.ejections(service.name, endpoint) if endpoint else None,
                acquittals=health.acquittals(service.name, endpoint) if endpoint else None,
            )


def _literal(host: Host) -> Address | None:
    return None if isinstance(host, str) else host
