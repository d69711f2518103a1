"""Runs each scheduler under load, on each topology, and counts on both sides."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.e2e import access, load
from scripts.e2e.checks import check
from scripts.e2e.engine import Container, Project, docker
from scripts.e2e.promises import PROMISES
from scripts.e2e.settings import COMPOSE_FILES, PORT, VIP, Settings

Tick = Callable[[str, str, float], None]
"""Called with NAT mode, scheduler and seconds of load elapsed."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend, and what its access log says of a run."""

    name: str
    address: str
    weight: int
    requests: int
    connections: int


@dataclass(frozen=True, slots=True)
class Result:
    """One scheduler under load. `rate` is requests/s; latencies are in ms, of the worst client."""

    nat: str
    scheduler: str
    promise: str
    requests: int
    rate: float
    latencies: dict[str, float]
    errors: dict[str, int]
    backends: list[Backend]
    faults: list[str]
    output: str
    """What each wrk printed."""


@dataclass(frozen=True, slots=True)
class Site:
    """The containers of a topology, and the directory of featherlb's configuration."""

    nat: str
    balancer: Container
    backends: list[Container]
    clients: list[Container]
    directory: Path

    @property
    def endpoints(self) -> list[str]:
        """The backends' addresses."""
        return [one for backend in self.backends for one in backend.addresses.values()]

    def configure(self, scheduler: str, settings: Settings) -> None:
        """Write featherlb's configuration; it takes effect when featherlb starts."""
        backends = "".join(
            f"      - {{address: '{address}:{PORT}', weight: {weight}}}\n"
            for address, weight in zip(self.endpoints, settings.weights, strict=True)
        )
        (self.directory / "featherlb.yaml").write_text(
            f"services:\n  - name: web\n    vip: {VIP}:80\n    nat: {self.nat}\n"
            f"    datapath: {settings.datapath}\n    scheduler: {scheduler}\n"
            f"    backends:\n{backends}"
        )

    def peers(self) -> dict[str, set[str]]:
        """The addresses that each client may have at the backends."""
        if self.nat == "full":
            own = {*self.balancer.addresses.values(), VIP}
            return {str(number): own for number, _ in enumerate(self.clients, 1)}
        return {
            str(number): set(client.addresses.values())
            for number, client in enumerate(self.clients, 1)
        }


def run(settings: Settings, tick: Tick) -> Iterator[Result]:
    """Every scheduler on every topology; EngineError if a container fails."""
    for nat in settings.nat:
        with site(nat, settings) as ready:
            for scheduler in settings.schedulers:
                tick(nat, scheduler, 0)
                yield measure(ready, scheduler, settings, lambda gone: tick(nat, scheduler, gone))  # noqa: B023


@contextmanager
def site(nat: str, settings: Settings) -> Iterator[Site]:
    """The containers of a topology, all running except featherlb."""
    with tempfile.TemporaryDirectory(prefix="featherlb-e2e-") as directory:
        # Root in the container can't read other users' files.
        Path(directory).chmod(0o755)
        (Path(directory) / "featherlb.yaml").write_text(f"services:\n  - vip: {VIP}:80\n")
        project = Project(COMPOSE_FILES[nat], {"FEATHERLB_CONFIG_DIR": directory})
        scales = {"backend": len(settings.weights), "client": settings.clients}
        options = [f"--scale={service}={count}" for service, count in scales.items()]
        with project.up(*options):
            (balancer,) = project.containers("featherlb")
            backends = project.containers("backend")
            clients = project.containers("client")
            yield Site(nat, balancer, backends, clients, Path(directory))


def measure(
    site: Site, scheduler: str, settings: Settings, tick: Callable[[float], None]
) -> Result:
    """Restart featherlb with a scheduler, put it under load, count."""
    site.configure(scheduler, settings)
    docker("restart", "--time", "10", site.balancer.id)
    site.balancer.wait_until_ready()
    for backend in site.backends:
        access.empty(backend)
    loads = load.run(site.clients, settings, tick)
    logs = [access.parse(access.text(backend)) for backend in site.backends]
    return Result(
        nat=site.nat,
        scheduler=scheduler,
        promise=PROMISES[scheduler].text,
        requests=sum(one.requests for one in loads),
        rate=sum(one.rate for one in loads),
        latencies={name: max(one.latencies[name] for one in loads) for name in load.PERCENTILES},
        errors={name: sum(one.errors[name] for one in loads) for name in load.ERRORS},
        backends=[
            Backend(
                name=container.name,
                address=address,
                weight=weight,
                requests=log.requests.total(),
                connections=log.connections.total(),
            )
            for container, address, weight, log in zip(
                site.backends, site.endpoints, settings.weights, logs, strict=True
            )
        ],
        faults=check(
            scheduler, settings.weights, loads, logs, site.peers(), settings.connections_each
        ),
        output="\n".join(one.output for one in loads),
    )
