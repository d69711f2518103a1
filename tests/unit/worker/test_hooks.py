"""Which hooks are called, and of what they are told."""

from dataclasses import replace
from typing import Any

from featherlb.core.flows import lifecycle
from featherlb.core.path.export import FlowView
from featherlb.core.pools.guard import Guard
from featherlb.model import Service
from featherlb.worker.hooks import AT_ONCE, Hooks
from tests.world import BACKENDS, ONE, THREE, TWO, World, backend, client, service

OPEN, CLOSE, CHANGE = "h.py:opened", "h.py:closed", "h.py:changed"


class Told:
    """Hooks of a world, and what they were told."""

    def __init__(self, world: World, *, first: bool = True) -> None:
        self.world = world
        self.calls: list[tuple[str, Any]] = []
        guards = {
            name: Guard(name, lambda about, name=name: self.calls.append((name, about)), lambda: 0)
            for name in (OPEN, CLOSE, CHANGE)
        }
        self.hooks = Hooks(world.balancer, guards.__getitem__, first=first)
        self.hooks.apply((), world.services)

    def serve(self, after: Service) -> None:
        before = self.world.services
        self.world.apply(after)
        self.hooks.apply(before, self.world.services)

    def take(self) -> list[tuple[str, Any]]:
        while self.hooks.busy:
            self.hooks.run(self.world.now)
        calls, self.calls = self.calls, []
        return calls


def hooked(*backends: object, **hooks: str) -> Service:
    return replace(service(*(backends or BACKENDS)), **hooks)  # type: ignore[arg-type]


def test_flows_that_open_and_end() -> None:
    world = World(hooked(on_open=OPEN, on_close=CLOSE))
    told = Told(world)
    connection = world.connect()
    ((name, flow),) = told.take()
    assert (name, type(flow), flow.service) == (OPEN, FlowView, "web")
    assert (str(flow.client), str(flow.backend)) == (connection.client, connection.server)
    connection.send("PA", b"x" * 100)
    world.advance(2)
    connection.reply("R")
    world.advance(60)
    ((name, flow),) = told.take()
    assert (name, flow.state.name, flow.service) == (CLOSE, "CLOSED", "web")
    assert flow.bytes_forward == 3 * 40 + 100
    assert 60 <= flow.age <= 63


def test_only_what_the_service_asks_for() -> None:
    other = replace(hooked(on_close=CLOSE), name="mail", vips=service(vips="192.0.2.11:25").vips)
    world = World(hooked(), other)
    told = Told(world)
    world.connect(client(1))
    world.connect(client(2), "192.0.2.11:25").reply("R")
    assert told.take() == []
    world.advance(60)
    assert [(name, flow.service) for name, flow in told.take()] == [(CLOSE, "mail")]
    told.serve(hooked())
    world.connect(client(3)).reply("R")
    world.advance(60)
    assert told.take() == []
    assert not world.balancer.views.has_noted


def test_changes_of_backends() -> None:
    def pool(*backends: object) -> Service:
        return hooked(*backends, on_backend_change=CHANGE)

    for first in (True, False):
        told = Told(World(pool(backend(ONE), backend(TWO, 2))), first=first)
        down = backend(ONE, 0, down=True)
        said = []
        for after in (
            pool(down, backend(TWO, 2)),
            pool(down, backend(TWO, 5), backend(THREE)),
            pool(backend(ONE), backend(THREE)),
        ):
            told.serve(after)
            said.append({(str(one.backend), one.what, one.weight) for _, one in told.take()})
        assert said == (
            [
                {(ONE, "down", 0)},
                {(TWO, "weight", 5), (THREE, "joined", 1)},
                {(ONE, "up", 1), (TWO, "left", 0)},
            ]
            if first
            else [set(), set(), set()]
        )


def test_packets_go_between() -> None:
    world = World(hooked(on_open=OPEN), capacity=200)
    told = Told(world)
    for number in range(AT_ONCE + 5):
        world.connect(client(number))
    told.hooks.run(world.now)
    assert len(told.calls) == AT_ONCE
    assert told.hooks.busy
    assert len(told.take()) == AT_ONCE + 5


def test_what_is_too_much_is_counted() -> None:
    world = World(hooked(on_open=OPEN), capacity=5000)
    told = Told(world)
    world.balancer.lifecycle.noted = [None] * lifecycle.MAX_NOTED  # type: ignore[list-item]
    world.connect()
    assert world.balancer.views.missed == 1
    world.balancer.lifecycle.noted = []
    assert told.take() == []
