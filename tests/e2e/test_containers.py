"""A short form of `make e2e`, wherever a Docker engine answers: all schedulers, a second each."""

import pytest

from scripts.e2e import engine
from scripts.e2e.run import run
from scripts.e2e.settings import TOP, Settings

SHORT = Settings(seconds=1, threads=4, connections=100, clients=2)


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    if obstacle := engine.obstacle():
        pytest.skip(f"containers can't be run: {obstacle}")
    engine.build(TOP)


def test_every_scheduler_keeps_its_promise_in_containers() -> None:
    results = list(run(SHORT, lambda nat, scheduler, gone: None))
    assert len(results) == len(SHORT.nat) * len(SHORT.schedulers)
    assert {
        (result.nat, result.scheduler): result.faults for result in results if result.faults
    } == {}
    assert all(result.requests > 0 for result in results)
