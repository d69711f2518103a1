import pytest

from featherlb.core.pools.schedulers import Member, create
from tests.unit.core.pools.schedulers.pools import FLOW, KEY, make_pool, shares


def spread(name: str, pool: list[Member], flows: int) -> list[int]:
    """Open flows per member after so many that all stay open."""
    scheduler = create(name, seed=1, key=KEY)
    scheduler.update(pool)
    for _ in range(flows):
        member = scheduler.pick(FLOW)
        assert member is not None
        member.active += 1
    return [member.active for member in pool]


def test_the_worse_of_two_never_wins() -> None:
    pool = make_pool(1, 1)
    pool[0].active = 10
    scheduler = create("p2c", seed=1, key=KEY)
    scheduler.update(pool)
    # The loaded one is taken only when it is drawn twice: one time in four.
    assert shares(scheduler, pool, 10_000) == pytest.approx([0.25, 0.75], abs=0.02)


def test_load_is_taken_per_weight() -> None:
    pool = make_pool(3, 1)
    pool[0].active, pool[1].active = 5, 2
    scheduler = create("p2c", seed=1, key=KEY)
    scheduler.update(pool)
    # 5/3 is less than 2/1: only two draws of the second (1/16) choose it.
    assert shares(scheduler, pool, 10_000) == pytest.approx([15 / 16, 1 / 16], abs=0.01)


def test_it_is_far_more_even_than_one_choice() -> None:
    two = spread("p2c", make_pool(*[1] * 20), 4000)
    one = spread("random", make_pool(*[1] * 20), 4000)
    assert max(two) - min(two) <= 10
    assert max(one) - min(one) >= 3 * (max(two) - min(two))


def test_long_flows_settle_in_proportion_to_the_weights() -> None:
    assert spread("p2c", make_pool(5, 3, 2), 1000) == pytest.approx([500, 300, 200], abs=10)
