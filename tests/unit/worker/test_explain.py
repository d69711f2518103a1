"""worker/explain.py: custom schedulers are asked in a copy of the process."""

import os
import time
from collections.abc import Sequence

import pytest

from featherlb.core.pools.schedulers import scheduler
from featherlb.model import Endpoint, Protocol
from featherlb.worker import explain
from featherlb.worker.protocol import Explain, Explained
from tests.world import CLIENT, ONE, THREE, TWO, VIP, World, client, service


def ask(world: World, source: str = CLIENT, vip: str = VIP) -> Explained:
    question = Explain(Protocol.TCP, Endpoint.parse(source), Endpoint.parse(vip))
    return explain.answer(world.balancer.views, question, world.now)


def backend(answer: Explained) -> str:
    assert answer.explanation is not None, answer.failure
    return str(answer.explanation.decision.backend)


def test_what_a_custom_scheduler_changes_stays_in_the_copy() -> None:
    turns = []

    @scheduler("test-turns")
    def turn(flow: object, backends: Sequence[object]) -> object:
        turns.append(os.getpid())
        return backends[len(turns) % 3 - 1]

    world = World(service(ONE, TWO, THREE, scheduler="test-turns"))
    for number, expected in enumerate([ONE, TWO, THREE, ONE]):
        assert {backend(ask(world, client(number))) for _ in range(3)} == {expected}
        assert world.connect(client(number)).server == expected
    assert turns == [os.getpid()] * 4


def test_a_built_in_scheduler_needs_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", None)
    world = World(service(ONE, TWO))
    assert backend(ask(world)) == ONE
    assert ask(world, vip="192.0.2.99:80").failure == "the worker has no service 192.0.2.99:80/tcp"


def test_a_scheduler_that_hangs_or_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "PATIENCE", 0.05)

    @scheduler("test-hangs")
    def hang(flow: object, backends: Sequence[object]) -> object:
        time.sleep(3600)
        return backends[0]

    @scheduler("test-ends")
    def end(flow: object, backends: Sequence[object]) -> object:
        os._exit(1)

    for name in ("test-hangs", "test-ends"):
        world = World(service(ONE, TWO, scheduler=name))
        failure = f"{name}: the scheduler did not answer within 0.05 s"
        assert ask(world) == Explained(None, failure)
    # Nobody is left.
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_scheduler_that_fails_is_explained() -> None:
    @scheduler("test-raises")
    def fail(flow: object, backends: Sequence[object]) -> object:
        raise RuntimeError("no idea")

    world = World(service(ONE, scheduler="test-raises"))
    answer = ask(world)
    assert answer.explanation is not None
    assert "RuntimeError('no idea')" in answer.explanation.decision.reasons[0]
    assert world.statistics().scheduler_errors == {"web": 0}
