"""New flows go where they are answered soonest, and slow members get their chance again."""

import math

import pytest

from featherlb.core.pools.latency import Latencies
from featherlb.core.pools.schedulers import Member, NewFlow, create
from tests.unit.core.pools.schedulers.pools import FLOW, KEY, make_flow, make_pool, shares

FAST, SLOW = 0.0003, 0.03
FADING = 2.0
"""Seconds in which what was measured falls to 1/e."""


def measured(pool: list[Member], *seconds: float | None) -> Latencies:
    """Members take so long to answer, since time 0; None: that is not known."""
    latencies = Latencies()
    for member, one in zip(pool, seconds, strict=True):
        latencies.begin(member.index)
        member.latencies = latencies
        if one is not None:
            latencies.take(member.index, one, 0.0)
    return latencies


def test_the_slow_one_of_four_gets_nothing_while_that_is_known() -> None:
    pool = make_pool(1, 1, 1, 1)
    measured(pool, FAST, FAST, SLOW, FAST)
    scheduler = create("least-latency", seed=1, key=KEY)
    scheduler.update(pool)
    assert shares(scheduler, pool, 9000) == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3], abs=0.03)


def test_open_flows_count() -> None:
    pool = make_pool(1, 1)
    measured(pool, 0.001, 0.004)
    pool[0].active, pool[1].active = 4, 0
    scheduler = create("peak-ewma", seed=1, key=KEY)
    scheduler.update(pool)
    assert scheduler.pick(FLOW) is pool[1]
    pool[1].active = 1
    assert scheduler.pick(FLOW) is pool[0]


def test_weights_count() -> None:
    pool = make_pool(1, 4)
    measured(pool, 0.001, 0.003)
    scheduler = create("least-latency", seed=1, key=KEY)
    scheduler.update(pool)
    assert scheduler.pick(FLOW) is pool[1]
    # Equally fast and without load, the draws decide, which go by weight as well.
    pool = make_pool(1, 1, 2)
    measured(pool, FAST, FAST, FAST)
    scheduler.update(pool)
    # Whenever the last one is drawn it wins: as the first choice, or as the second of the rest.
    wanted = [1 / 12, 1 / 12, 1 / 2 + 1 / 2 * 2 / 3]
    assert shares(scheduler, pool, 8000) == pytest.approx(wanted, abs=0.03)


def test_an_unknown_member_gets_one_flow_to_find_out() -> None:
    pool = make_pool(1, 1)
    measured(pool, FAST, None)
    scheduler = create("least-latency", seed=1, key=KEY)
    scheduler.update(pool)
    assert scheduler.pick(FLOW) is pool[1]
    pool[1].active = 1
    assert scheduler.pick(FLOW) is pool[0]


def test_members_that_nobody_measures_are_chosen_by_load() -> None:
    pool = make_pool(1, 1)
    pool[0].active, pool[1].active = 7, 3
    scheduler = create("least-latency", seed=1, key=KEY)
    scheduler.update(pool)
    assert {scheduler.pick(make_flow(number)) for number in range(50)} == {pool[1]}


def serve(pool: list[Member], rate: float, seconds: float, slow: float, seed: int) -> list[int]:
    """So many flows a second, of which each is over at its answer; the last member takes `slow`
    seconds, the others `FAST`. The number of flows of each."""
    latencies = pool[0].latencies
    assert latencies is not None
    scheduler = create("least-latency", seed=seed, key=KEY)
    scheduler.update(pool)
    counts = [0] * len(pool)
    waiting: list[tuple[float, float, Member]] = []
    begin = latencies.now
    for number in range(int(rate * seconds)):
        now = begin + number / rate
        for one in sorted(waiting, key=lambda one: one[0]):
            if one[0] <= now:
                waiting.remove(one)
                one[2].active -= 1
                latencies.take(one[2].index, one[1], one[0])
        latencies.now = now
        member = scheduler.pick(NewFlow(6, 4, number, 40000, 1, 80))
        assert member is not None
        counts[member.index] += 1
        member.active += 1
        takes = slow if member is pool[-1] else FAST
        waiting.append((now + takes, takes, member))
    for at, takes, member in waiting:
        member.active -= 1
        latencies.take(member.index, takes, at)
    return counts


@pytest.mark.parametrize("rate", [5, 50, 2000])
def test_a_slow_one_of_four_gets_few_flows_and_recovers_by_itself(rate: float) -> None:
    pool = make_pool(1, 1, 1, 1)
    latencies = measured(pool, None, None, None, None)
    latencies.now = 1.0
    counts = serve(pool, rate, 40, SLOW, seed=3)
    assert 0 < counts[-1] <= 0.05 * sum(counts)
    # It is as fast as the others again, and known to be so once it was tried.
    serve(pool, rate, FADING * math.log(SLOW / FAST) + 5, FAST, seed=4)
    counts = serve(pool, rate, 40, FAST, seed=5)
    assert counts[-1] == pytest.approx(sum(counts) / 4, rel=0.25)


def test_it_explains_itself_and_asking_changes_nothing() -> None:
    pool = make_pool(1, 2)
    measured(pool, 0.001, None)
    pool[1].active = 3
    scheduler = create("least-latency", seed=1, key=KEY)
    scheduler.update(pool)
    state = scheduler.save()
    texts = {scheduler.explain(FLOW)}
    assert scheduler.save() == state
    for _ in range(20):
        scheduler.pick(FLOW)
        texts.add(scheduler.explain(FLOW))
    one = "10.0.1.1:80 (1 ms, 0 open / weight 1)"
    two = "10.0.1.2:80 (not measured, 3 open / weight 2)"
    assert texts == {
        f"of the random choices {one} and {two} it should answer no later",
        f"of the random choices {two} and {one} it should answer sooner",
    }
    scheduler.update(pool[:1])
    assert scheduler.explain(FLOW) == "it is the only one"
