"""A day in the life of featherlb: scenes, each under load from its beginning to its end.

A scene may lose no request, but for two kinds. Where a backend is killed, each connection that it
had, and each that was sent to it before its health checks noticed, may lose one. Where featherlb
itself is restarted, what the clients see is measured: it has no promise but that they are served
again.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from scripts.e2e import access, load
from scripts.e2e.engine import Container, Project, docker, wait_for
from scripts.e2e.settings import PORT, Settings

UNDISTURBED = 2
"""Seconds of load before and after the event of a scene."""
LONGEST = 300
"""Seconds that no scene takes."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The result of a scene: requests answered and failed, and how many may fail (None: measured
    only); the longest time without a response, in ms; responses by backend."""

    name: str
    rate: float
    answered: int
    errors: dict[str, int]
    allowed: int | None
    gap: int
    requests: dict[str, int]
    faults: list[str]
    output: str


@dataclass(frozen=True, slots=True)
class Day:
    """The containers of the day, and the events of the scenes."""

    project: Project
    directory: Path
    settings: Settings

    @property
    def balancer(self) -> Container:
        return self.project.containers("featherlb")[0]

    def backend(self, number: int) -> Container:
        (container,) = self.project.compose("ps", "-q", "-a", f"backend{number}").split()
        return Container(container)

    def featherlb(self, *arguments: str) -> str:
        return self.balancer.exec("featherlb", *arguments)

    def state(self, number: int) -> Any:
        """A backend's row of `featherlb backends`."""
        (service,) = json.loads(self.featherlb("backends", "-o", "json"))["services"]
        return next(one for one in service["backends"] if one["address"] == _endpoint(number))

    def wait_until(self, number: int, state: str) -> None:
        wait_for(lambda: self.state(number)["state"] == state, f"backend {number} to be {state}")

    def scenes(self) -> Iterator[Scene]:
        """The day, scene by scene; EngineError if an event doesn't happen."""
        yield self.play("rolling restart", [1, 2, 3], self.restart_all)
        yield self.play("a backend is added", [1, 2, 3, 4], self.add, busy=4)
        yield self.play("reload", [1, 2, 3, 4], self.reload, busy=4)
        yield self.play("a backend is killed", [1, 2, 3, 4], self.kill)
        yield self.play("it comes back", [1, 2, 3, 4], self.start, busy=2)
        yield self.play("featherlb is restarted", [1, 2, 3, 4], self.restart_balancer)
        yield self.play("featherlb is killed", [1, 2, 3, 4], self.kill_balancer)

    def restart_all(self) -> int:
        for number in (1, 2, 3):
            self.featherlb("backend", "drain", "web", _endpoint(number))
            wait_for(lambda: self.state(number)["active"] == 0, "the end of a drain")  # noqa: B023
            backend = self.backend(number)
            docker("restart", "--time", "30", backend.id)
            # It may have been down too briefly for health checks to notice, and a running container
            # is not yet a listening server.
            wait_for(lambda: _listens(backend), f"backend {number} to listen")  # noqa: B023
            self.featherlb("backend", "enable", "web", _endpoint(number))
            self.wait_until(number, "up")
        return 0

    def add(self) -> int:
        self.project.compose("up", "--detach", "--no-build", "--no-recreate", "backend4")
        self.featherlb("backend", "add", "web", _endpoint(4))
        self.wait_until(4, "up")
        return 0

    def reload(self) -> int:
        """To another scheduler, with the added backend in the file."""
        path = self.directory / "featherlb.yaml"
        text = path.read_text().replace("round-robin", "maglev")
        path.write_text(text.replace(f"{_endpoint(3)}]", f"{_endpoint(3)}, {_endpoint(4)}]"))
        self.featherlb("reload")
        return 0

    def kill(self) -> int:
        before = self.state(2)
        docker("kill", self.backend(2).id)
        self.wait_until(2, "down")
        opened = self.state(2)["flows"] - before["flows"]
        return int(before["active"] + opened)

    def start(self) -> int:
        self.project.compose("start", "backend2")
        self.wait_until(2, "up")
        return 0

    def restart_balancer(self) -> None:
        balancer = self.balancer
        docker("restart", "--time", "10", balancer.id)
        balancer.wait_until_ready()

    def kill_balancer(self) -> None:
        balancer = self.balancer
        docker("kill", balancer.id)
        docker("start", balancer.id)
        balancer.wait_until_ready()

    def play(
        self,
        name: str,
        backends: list[int],
        action: Callable[[], int | None],
        busy: int | None = None,
    ) -> Scene:
        """Load, during which an event happens; the backend `busy` must have work at the end."""
        clients = self.project.containers("client")
        began = _now()
        running = load.start(clients, self.settings, LONGEST)
        time.sleep(UNDISTURBED)
        allowed = action()
        happened = _now()
        time.sleep(UNDISTURBED)
        load.stop(clients)
        loads = load.collect(running)
        logs = {number: _read(self.backend(number), began) for number in backends}
        times = sorted(moment for log in logs.values() for moment in log.times)
        errors = {kind: sum(one.errors[kind] for one in loads) for kind in load.ERRORS}
        faults = []
        if allowed is not None and sum(errors.values()) > allowed:
            faults.append(f"{sum(errors.values())} requests failed, {allowed} may: {errors}")
        if times[-1] < happened:
            faults.append("no request was answered afterwards")
        if busy and not any(moment > happened for moment in logs[busy].times):
            faults.append(f"backend {busy} has no work")
        faults += _uncounted(loads, list(logs.values()), self.settings.connections_each)
        return Scene(
            name=name,
            rate=sum(one.rate for one in loads),
            answered=sum(one.requests for one in loads),
            errors=errors,
            allowed=allowed,
            gap=max(after - before for before, after in pairwise(times)),
            requests={f"backend{number}": log.requests.total() for number, log in logs.items()},
            faults=faults,
            output="\n".join(one.output for one in loads),
        )


def _endpoint(number: int) -> str:
    """As in docker-compose.day.yml."""
    return f"10.213.1.{10 + number}:{PORT}"


def _listens(backend: Container) -> bool:
    """Whether nginx listens: proc_net_tcp(5), state 0A."""
    sockets = (line.split() for line in backend.exec("cat", "/proc/net/tcp").splitlines()[1:])
    return any(one[1] == f"00000000:{PORT:04X}" and one[3] == "0A" for one in sockets)


def _now() -> int:
    """Unix milliseconds, as nginx writes them."""
    return int(time.time() * 1000)


def _read(backend: Container, since: int) -> access.AccessLog:
    """The clients' requests to a backend, running or dead, without health checks."""
    lines = (line.split(maxsplit=3) for line in access.text(backend).splitlines())
    return access.parse(
        "\n".join(
            " ".join(line)
            for line in lines
            if line[2] != "-" and int(line[0].replace(".", "")) >= since
        )
    )


def _uncounted(
    loads: Sequence[load.Load], logs: Sequence[access.AccessLog], connections: int
) -> Iterator[str]:
    """Each connection may have one more response in flight when it fails or wrk stops."""
    for number, one in enumerate(loads, 1):
        answered = sum(log.requests[str(number)] for log in logs)
        most = one.requests + connections + sum(one.errors.values())
        if not one.requests <= answered <= most:
            yield f"client {number} saw {one.requests} responses, the backends sent {answered}"
