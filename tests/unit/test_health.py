"""The checks of an instance, against real listeners on the loopback interface."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from featherlb.config import Config, parse
from featherlb.config.resolve import resolve
from featherlb.events import Events, Listener
from featherlb.health import HealthChecks
from featherlb.model import Health, Service

DEADLINE = 20


@contextmanager
def listener(port: int = 0) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", port)) as server:
        yield server


def configuration(*backends: str, health: str | None = "type: tcp") -> Config:
    check = f"  health: {{{health}, interval: 20ms, timeout: 10s}}\n" if health else ""
    return parse(
        f"services:\n- name: web\n  vip: 10.0.0.10:80\n{check}"
        f"  backends: [{', '.join(backends)}]\n",
        "f",
    )


def services(config: Config) -> tuple[Service, ...]:
    return resolve(config, lambda name: [])


def weights(checks: HealthChecks, config: Config) -> list[int]:
    (service,) = checks.weigh(config, services(config))
    return [backend.weight for backend in service.backends]


async def hear(heard: Listener, kind: str) -> str:
    """The next event, which is of this kind; its message."""
    async with asyncio.timeout(DEADLINE):
        event = await heard.get()
    assert event.kind == kind, event
    return event.message


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.005)


def test_states_follow_the_backends_and_are_told_once() -> None:
    async def run() -> None:
        events = Events()
        checks = HealthChecks(events)
        with events.listen() as heard, listener() as alive:
            with listener() as dying:
                names = [f"127.0.0.1:{one.getsockname()[1]}" for one in (alive, dying)]
                config = configuration(*names)
                checks.follow(config, services(config))
                (service,) = services(config)
                second = service.backends[1].endpoint
                assert weights(checks, config) == [1, 1]
            message = await hear(heard, "backend-down")
            assert message == f"web: {names[1]} is down: connection refused"
            assert checks.changed.is_set()
            assert weights(checks, config) == [1, 0]
            assert checks.state("web", second) is Health.DOWN
            assert checks.failure("web", second) == "connection refused"
            assert checks.take_fallen() == [("web", second)]
            assert checks.take_fallen() == []
            with listener(second.port):
                assert await hear(heard, "backend-up") == f"web: {names[1]} is up"
                assert weights(checks, config) == [1, 1]
                assert checks.failure("web", second) == ""
            await checks.stop()

    asyncio.run(run())


def test_a_backend_is_as_configured_before_its_first_result() -> None:
    checks = HealthChecks(Events())
    up = configuration("127.0.0.1:1", health="type: tcp")
    down = configuration("127.0.0.1:1", health="type: tcp, initial: down")
    assert weights(checks, up) == [1]
    assert weights(checks, down) == [0]
    assert weights(checks, configuration("127.0.0.1:1", health=None)) == [1]


def test_what_is_known_stays_with_another_check_and_goes_without_one() -> None:
    async def run() -> None:
        events = Events()
        checks = HealthChecks(events)
        # Port 1 of the loopback address: nobody listens there.
        first = configuration("127.0.0.1:1")
        other = configuration("127.0.0.1:1", health="type: tcp, fall: 7")
        none = configuration("127.0.0.1:1", health=None)
        endpoint = services(first)[0].backends[0].endpoint
        with events.listen() as heard:
            checks.follow(first, services(first))
            await hear(heard, "backend-down")
            checks.follow(other, services(other))
            assert weights(checks, other) == [0]
            checks.follow(none, services(none))
            assert checks.state("web", endpoint) is None
            assert weights(checks, none) == [1]
            checks.follow(first, services(first))
            assert checks.state("web", endpoint) is Health.UP
            await checks.stop()

    asyncio.run(run())


def test_scripts_end_with_the_checks(tmp_path: Path) -> None:
    async def run() -> None:
        pid = tmp_path / "pid"
        command = f'type: script, command: [/bin/sh, -c, "echo $$ > {pid}; sleep 600"]'
        config = configuration("127.0.0.1:1", health=command)
        checks = HealthChecks(Events())
        checks.follow(config, services(config))
        await until(lambda: pid.exists() and pid.read_text().endswith("\n"))
        assert Path(f"/proc/{pid.read_text().strip()}").exists()
        await checks.stop()
        assert not Path(f"/proc/{pid.read_text().strip()}").exists()

    asyncio.run(run())
