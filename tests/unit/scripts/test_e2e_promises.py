"""What the end-to-end test takes for a scheduler's promise: that one keeps it, others don't."""

from collections import Counter
from collections.abc import Iterator

import pytest

from featherlb.core.pools.schedulers import NewFlow, create, names
from scripts.e2e.promises import PROMISES, Pool
from tests.unit.core.pools.schedulers.pools import KEY, VIP, make_pool

WEIGHTS = (1, 2, 3)
CLIENTS = range(5)
CONNECTIONS = 99
BLIND = [
    (promise, scheduler)
    for promise, others in {
        "round-robin": ("random", "weighted-round-robin", "maglev", "source-hash"),
        "weighted-round-robin": ("random", "round-robin", "five-tuple-hash", "source-hash"),
        "least-connections": ("random", "weighted-least-connections", "two-choices"),
        "weighted-least-connections": ("random", "least-connections", "source-hash"),
        "random": ("round-robin", "least-connections"),
        "never-queue": ("random", "least-connections", "source-hash"),
        "first": ("random", "source-hash"),
        "failover": ("random", "source-hash"),
        "destination-hash": ("random", "source-hash"),
        "two-choices": ("round-robin", "least-connections"),
        "source-hash": ("maglev", "round-robin", "random"),
        "five-tuple-hash": ("round-robin", "least-connections"),
        "maglev": ("round-robin", "least-connections"),
    }.items()
    for scheduler in others
]
"""Promises, and schedulers that they must not be taken for."""


def flows() -> Iterator[tuple[str, NewFlow]]:
    """Of clients that all connect at once, with ports as Linux gives them."""
    for number in range(CONNECTIONS):
        for client in CLIENTS:
            yield str(client), NewFlow(6, 4, 0x0AD50002 + client, 40000 + 2 * number, VIP, 80)


def served(name: str, silent: int = 0) -> Pool:
    """What a scheduler does with them."""
    pool = make_pool(*WEIGHTS)
    # A seed with which no count of chance is near its mean.
    scheduler = create(name, seed=7, key=KEY)
    scheduler.update(pool)
    counts: Counter[tuple[str, int]] = Counter()
    for client, flow in flows():
        member = scheduler.pick(flow)
        assert member is not None
        member.active += 1
        counts[client, pool.index(member)] += 1
    by_client = {
        str(client): [counts[str(client), index] for index in range(len(WEIGHTS))]
        for client in CLIENTS
    }
    return Pool(WEIGHTS, by_client, silent)


def test_every_scheduler_has_a_promise() -> None:
    assert PROMISES.keys() == set(names()) - {"overflow", "least-latency"}


@pytest.mark.parametrize("name", PROMISES)
def test_the_scheduler_keeps_it(name: str) -> None:
    assert PROMISES[name].broken(served(name)) == []


@pytest.mark.parametrize(("promise", "scheduler"), BLIND)
def test_another_scheduler_breaks_it(promise: str, scheduler: str) -> None:
    assert PROMISES[promise].broken(served(scheduler, silent=len(CLIENTS))) != []


def test_a_break_is_said_in_words() -> None:
    pool = Pool((1, 1), {"1": (60, 40)}, 2)
    assert PROMISES["round-robin"].broken(pool) == [
        "backend 1 got 60 connections instead of 50.0 ± 3.0",
        "backend 2 got 40 connections instead of 50.0 ± 3.0",
    ]
    assert PROMISES["source-hash"].broken(pool) == ["client 1 was sent to 2 backends: [60, 40]"]
