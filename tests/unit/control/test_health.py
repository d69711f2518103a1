"""The checks of an instance, against real listeners on the loopback interface."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from featherlb.config import Config
from featherlb.config.file import parse
from featherlb.config.resolve import resolve
from featherlb.control.events import Events, Listener
from featherlb.control.health import HealthChecks
from featherlb.control.tasks import Tasks
from featherlb.model import Endpoint, Health, Service
from tests.descriptors import descriptors_left
from tests.world import ONE, THREE, TWO, VIP, Connection, World, client

DEADLINE = 60


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
    (service,) = checks.judge(config, services(config)).services
    return [backend.weight for backend in service.backends]


def follow(checks: HealthChecks, config: Config) -> None:
    checks.follow(config, checks.judge(config, services(config)))


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
        checks = HealthChecks(events, Tasks(events))
        with events.listen() as heard, listener() as alive:
            with listener() as dying:
                names = [f"127.0.0.1:{one.getsockname()[1]}" for one in (alive, dying)]
                config = configuration(*names)
                follow(checks, config)
                (service,) = services(config)
                second = service.backends[1].endpoint
                assert weights(checks, config) == [1, 1]
            message = await hear(heard, "backend-down")
            assert message == f"web: {names[1]} is down: connection refused"
            assert checks.changed.is_set()
            assert weights(checks, config) == [1, 0]
            assert checks.state("web", second) is Health.DOWN
            assert checks.failure("web", second) == "connection refused"
            assert checks.fallen == [("web", second)]
            with listener(second.port):
                assert await hear(heard, "backend-up") == f"web: {names[1]} is up"
                assert weights(checks, config) == [1, 1]
                assert checks.failure("web", second) == ""
            await checks.stop()

    asyncio.run(run())


def test_a_backend_is_as_configured_before_its_first_result() -> None:
    checks = HealthChecks(Events(), Tasks(Events()))
    up = configuration("127.0.0.1:1", health="type: tcp")
    down = configuration("127.0.0.1:1", health="type: tcp, initial: down")
    assert weights(checks, up) == [1]
    assert weights(checks, down) == [0]
    assert weights(checks, configuration("127.0.0.1:1", health=None)) == [1]


def test_a_backend_is_missing_if_its_health_took_its_weight() -> None:
    checks = HealthChecks(Events(), Tasks(Events()))

    def missing(config: Config) -> list[bool]:
        (service,) = checks.judge(config, services(config)).services
        return [backend.missing for backend in service.backends]

    drained = "{address: '127.0.0.1:2', weight: 0}"
    assert missing(configuration("127.0.0.1:1", drained)) == [False, False]
    down = "type: tcp, initial: down"
    assert missing(configuration("127.0.0.1:1", drained, health=down)) == [True, False]
    panic = replace(configuration("127.0.0.1:1", health=down).services[0], panic_threshold=50)
    assert missing(Config(services=(panic,))) == [False]


def test_what_is_known_stays_with_another_check_and_goes_without_one() -> None:
    async def run() -> None:
        events = Events()
        checks = HealthChecks(events, Tasks(events))
        # Port 1 of the loopback address: nobody listens there.
        first = configuration("127.0.0.1:1")
        other = configuration("127.0.0.1:1", health="type: tcp, fall: 7")
        none = configuration("127.0.0.1:1", health=None)
        endpoint = services(first)[0].backends[0].endpoint
        with events.listen() as heard:
            follow(checks, first)
            await hear(heard, "backend-down")
            follow(checks, other)
            assert weights(checks, other) == [0]
            follow(checks, none)
            assert checks.state("web", endpoint) is None
            assert weights(checks, none) == [1]
            follow(checks, first)
            assert checks.state("web", endpoint) is Health.UP
            await checks.stop()

    asyncio.run(run())


def test_a_check_that_this_host_can_not_make_decides_nothing() -> None:
    async def run() -> None:
        events = Events()
        checks = HealthChecks(events, Tasks(events))
        with events.listen() as heard:
            with listener() as alive:
                place = Endpoint.parse(f"127.0.0.1:{alive.getsockname()[1]}")
                config = configuration(str(place), health="type: tcp, fall: 1, initial: down")
                follow(checks, config)
                await hear(heard, "backend-up")
                with descriptors_left(0):
                    message = await hear(heard, "health-no-verdict")
                    assert message == (
                        "1 health check could not run, backends keep their states: too many"
                        " open files"
                    )
                    await until(lambda: checks._without_verdict > 3)
                    assert checks.state("web", place) is Health.UP
                    assert checks.failure("web", place) == ""
            # The next word is of the backend: the log isn't filled, and checking goes on.
            assert await hear(heard, "backend-down") == f"web: {place} is down: connection refused"
            await checks.stop()

    asyncio.run(run())


def test_a_check_that_fails_in_a_way_that_nobody_expected_is_made_again() -> None:
    async def run() -> None:
        events = Events()
        tasks = Tasks(events)
        checks = HealthChecks(events, tasks)
        config = configuration("127.0.0.1:1", health="type: script, command: [x]")
        (service,) = config.services
        assert service.health is not None
        # No configuration has such a word: the system takes it for no program's name.
        broken = replace(service, health=replace(service.health, command=("\0",)))
        with events.listen() as heard:
            follow(checks, replace(config, services=(broken,)))
            message = await hear(heard, "task-failed")
            assert message.startswith(
                "task health-checks (127.0.0.1:1 of web) failed: ValueError: embedded null byte"
                " (system/processes.py:"
            )
            await hear(heard, "task-failed")
        (state,) = tasks.states()
        assert (state.name, state.restarts) == ("health-checks", 2)
        assert tasks.healthy
        await checks.stop()

    asyncio.run(run())


def test_scripts_end_with_the_checks(tmp_path: Path) -> None:
    async def run() -> None:
        pid = tmp_path / "pid"
        command = f'type: script, command: [/bin/sh, -c, "echo $$ > {pid}; sleep 600"]'
        config = configuration("127.0.0.1:1", health=command)
        checks = HealthChecks(Events(), Tasks(Events()))
        follow(checks, config)
        await until(lambda: pid.exists() and pid.read_text().endswith("\n"))
        assert Path(f"/proc/{pid.read_text().strip()}").exists()
        await checks.stop()
        assert not Path(f"/proc/{pid.read_text().strip()}").exists()

    asyncio.run(run())


PASSIVE = "passive_health: {failures: 3, ejection: 1h}"


def watched(*backends: str, more: str = PASSIVE) -> Config:
    """A service whose traffic is watched, and more options. Clients notice what backends do."""
    return parse(
        f"services:\n- name: web\n  vip: {VIP}\n  {more}\n"
        "  redispatch: {refused: false, silent: false}\n"
        f"  backends: [{', '.join(backends)}]\n",
        "f",
    )


def observe(checks: HealthChecks, world: World) -> None:
    """Let the checks see what has happened in a world of one worker."""
    checks.observe(world.services, [world.balancer.views.outcomes(["web"])])


@contextmanager
def refusing() -> Iterator[str]:
    """The endpoint of a backend that refuses connections: nobody listens there."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{holder.getsockname()[1]}"


def failing(world: World, place: str, count: int) -> None:
    """Clients' connections, of which those to one backend are refused."""
    for number in range(count):
        connection = Connection(world, client(number, port=world.received + 1024))
        connection.send("S")
        connection.reply("RA" if connection.server == place else "SA")


def test_a_backend_is_ejected_for_what_it_does_to_connections() -> None:
    async def run() -> None:
        events = Events()
        checks = HealthChecks(events, Tasks(events))
        with events.listen() as heard, refusing() as one, refusing() as two:
            config = watched(one, two)
            follow(checks, config)
            world = World(*services(config))
            observe(checks, world)
            failing(world, one, 6)
            assert not checks.changed.is_set()
            observe(checks, world)
            message = await hear(heard, "backend-ejected")
            assert message == f"web: {one} is ejected for 3600 s: 3 of 3 connections failed"
            assert checks.changed.is_set()
            assert weights(checks, config) == [0, 1]
            endpoint = Endpoint.parse(one)
            assert checks.state("web", endpoint) is Health.EJECTED
            assert checks.state("web", Endpoint.parse(two)) is Health.UP
            assert checks.failure("web", endpoint) == "3 of 3 connections failed"
            assert checks.fallen == [("web", endpoint)]
            # Both must not be ejected at a time.
            failing(world, two, 20)
            observe(checks, world)
            assert weights(checks, config) == [0, 1]
            assert checks.ejections("web", endpoint) == 1
            assert checks.ejections("web", Endpoint.parse(two)) == 0
            # Other rules begin anew.
            other = watched(one, two, more="passive_health: {failures: 4}")
            follow(checks, other)
            assert weights(checks, other) == [1, 1]
            await checks.stop()

    asyncio.run(run())


def test_a_backend_that_accepts_a_connection_of_our_own_is_not_ejected() -> None:
    """Somebody may send SYNs in the name of clients, or refusals in its name."""

    async def run() -> None:
        events = Events()
        checks = HealthChecks(events, Tasks(events))
        with events.listen() as heard, listener() as alive, refusing() as other:
            place = f"127.0.0.1:{alive.getsockname()[1]}"
            config = watched(place, other)
            follow(checks, config)
            world = World(*services(config))
            observe(checks, world)
            failing(world, place, 10)
            observe(checks, world)
            observe(checks, world)  # it is being asked
            message = await hear(heard, "backend-acquitted")
            assert message == (
                f"web: {place} is not ejected: 5 of 5 connections failed, but one of featherlb's"
                " own did not"
            )
            endpoint = Endpoint.parse(place)
            assert checks.state("web", endpoint) is Health.UP
            assert checks.acquittals("web", endpoint) == 1
            # It is not asked again for the same failures, nor is it told twice in a minute.
            observe(checks, world)
            failing(world, place, 10)
            observe(checks, world)
            await until(lambda: checks.acquittals("web", endpoint) == 2)
            # Once it is really gone, it goes.
            alive.close()
            failing(world, place, 10)
            observe(checks, world)
            failing(world, place, 10)
            observe(checks, world)
            await hear(heard, "backend-ejected")
            assert weights(checks, config) == [0, 1]
            await checks.stop()

    asyncio.run(run())


def late(world: World, place: str, seconds: float, count: int = 30) -> None:
    """Clients' connections, of which those to one backend are answered late."""
    for _ in range(count):
        connection = Connection(world, client(0, port=world.received + 1024))
        connection.send("S")
        world.now += seconds if connection.server == place else 0.001
        connection.reply("SA")
        connection.reply("R")


@pytest.mark.parametrize("checked", [False, True])
def test_a_backend_that_answers_late_is_ejected_and_keeps_its_flows(checked: bool) -> None:
    """Health checks, which it passes, don't end that."""

    async def run() -> None:
        events = Events()
        checks = HealthChecks(events, Tasks(events))
        with events.listen() as heard:
            more = "passive_health: {slower: 5, ejection: 1ms}"
            if checked:
                more += "\n  health: {type: script, command: ['true'], interval: 20ms}"
            config = watched(ONE, TWO, THREE, more=more)
            follow(checks, config)
            world = World(*services(config))
            endpoint = Endpoint.parse(ONE)
            for seconds in (0.03, 0.03):
                observe(checks, world)
                assert checks.state("web", endpoint) is Health.UP
                late(world, ONE, seconds)
            observe(checks, world)
            message = await hear(heard, "backend-ejected")
            reason = "it takes 30 ms to answer a SYN, the others take 1 ms"
            assert message == f"web: {ONE} is ejected for 0.001 s: {reason}"
            assert checks.failure("web", endpoint) == reason
            assert weights(checks, config) == [0, 1, 1]
            assert checks.fallen == []

            def back() -> bool:
                observe(checks, world)
                return weights(checks, config) == [1, 1, 1]

            await until(back)
            assert await hear(heard, "backend-up") == f"web: {ONE} is up"
            await checks.stop()

    asyncio.run(run())


def test_an_ejection_ends_with_its_time() -> None:
    async def run() -> None:
        events = Events()
        checks = HealthChecks(events, Tasks(events))
        with events.listen() as heard, refusing() as one:
            config = watched(one, TWO, more="passive_health: {failures: 1, ejection: 1ms}")
            follow(checks, config)
            world = World(*services(config))
            observe(checks, world)
            failing(world, one, 2)
            observe(checks, world)
            await hear(heard, "backend-ejected")

            def back() -> bool:
                observe(checks, world)
                return weights(checks, config) == [1, 1]

            await until(back)
            assert await hear(heard, "backend-up") == f"web: {one} is up"
            await checks.stop()

    asyncio.run(run())


def test_where_there_are_checks_they_end_an_ejection() -> None:
    async def run() -> None:
        events = Events()
        checks = HealthChecks(events, Tasks(events))
        with events.listen() as heard, listener() as alive, refusing() as place:
            port = alive.getsockname()[1]
            health = f"health: {{type: tcp, port: {port}, interval: 20ms, timeout: 10s}}\n  "
            rules = "passive_health: {failures: 1, ejection: 1ms, max_ejected: 100}"
            config = watched(place, more=health + rules)
            follow(checks, config)
            world = World(*services(config))
            observe(checks, world)
            failing(world, place, 1)
            observe(checks, world)
            message = await hear(heard, "backend-ejected")
            assert "is ejected until its health checks succeed" in message
            assert weights(checks, config) == [0]
            observe(checks, world)
            assert weights(checks, config) == [0]
            await hear(heard, "backend-up")
            assert weights(checks, config) == [1]
            await checks.stop()

    asyncio.run(run())


def ramps(checks: HealthChecks, config: Config) -> list[bool]:
    (service,) = checks.judge(config, services(config)).services
    return [backend.ramp is not None for backend in service.backends]


def test_who_joins_or_comes_back_starts_slowly_and_nobody_else() -> None:
    async def run(one: str) -> None:
        checks = HealthChecks(Events(), Tasks(Events()))
        slow = "slow_start: 1h\n  passive_health: {failures: 1, ejection: 1ms}"
        first, more = watched(one, TWO, more=slow), watched(one, TWO, THREE, more=slow)
        assert ramps(checks, first) == [False, False]
        follow(checks, first)
        assert ramps(checks, first) == [False, False]
        assert ramps(checks, more) == [False, False, True]
        follow(checks, more)
        (service,) = checks.judge(more, services(more)).services
        joined = service.backends[2].ramp
        assert joined is not None
        assert joined.duration == 3600
        world = World(*services(more))
        observe(checks, world)
        failing(world, one, 3)
        observe(checks, world)
        await until(lambda: checks.ejections("web", Endpoint.parse(one)) == 1)

        def back() -> bool:
            observe(checks, world)
            return weights(checks, more) == [1, 1, 1]

        await until(back)
        assert ramps(checks, more) == [True, False, True]
        # It grows from where it was, whatever else changes.
        follow(checks, more)
        (service,) = checks.judge(more, services(more)).services
        assert service.backends[2].ramp == joined
        # Who leaves and joins again starts anew.
        follow(checks, first)
        assert ramps(checks, more) == [True, False, True]
        (service,) = checks.judge(more, services(more)).services
        assert service.backends[2].ramp != joined
        follow(checks, more)
        short = watched(one, TWO, THREE, more=slow.replace("1h", "1ms"))
        await until(lambda: ramps(checks, short) == [False, False, False])
        await checks.stop()

    with refusing() as place:
        asyncio.run(run(place))


def test_in_panic_all_are_used_and_it_is_told_once() -> None:
    async def run() -> None:
        events = Events()
        checks = HealthChecks(events, Tasks(events))
        with refusing() as one, events.listen() as heard:
            rules = "passive_health: {failures: 1, ejection: 1h, max_ejected: 100}"
            panic = rules + "\n  panic_threshold: 60"
            config, calm = watched(one, TWO, more=panic), watched(one, TWO, more=rules)
            follow(checks, config)
            world = World(*services(config))
            observe(checks, world)
            failing(world, one, 2)
            observe(checks, world)
            await hear(heard, "backend-ejected")
            assert weights(checks, config) == [1, 1]
            for _ in range(2):
                follow(checks, config)
            assert checks.panic == {"web"}
            assert await hear(heard, "panic") == "web: too few backends are healthy, all are used"
            assert weights(checks, calm) == [0, 1]
            follow(checks, calm)
            await hear(heard, "panic-over")
            assert checks.panic == set()

    asyncio.run(run())


def test_a_judgement_that_nothing_follows_starts_no_slow_start() -> None:
    """As of a reload that is refused, or only planned."""

    async def run() -> None:
        checks = HealthChecks(events := Events(), Tasks(events))
        slow = "slow_start: 1h\n  passive_health: {failures: 1, ejection: 1ms}"
        first, more = watched(ONE, more=slow), watched(ONE, TWO, more=slow)
        follow(checks, first)

        def since() -> float:
            (service,) = checks.judge(more, services(more)).services
            ramp = service.backends[1].ramp
            assert ramp is not None
            return ramp.since

        before = since()
        judgement = checks.judge(more, services(more))
        after = since()
        assert before < after
        checks.follow(more, judgement)
        joined = since()
        assert before < joined < after
        assert since() == joined
        await checks.stop()

    asyncio.run(run())
