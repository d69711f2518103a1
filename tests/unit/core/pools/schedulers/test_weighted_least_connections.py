from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from featherlb.core.pools.schedulers import create
from tests.unit.core.pools.schedulers.pools import FLOW, KEY, letters, make_pool


@given(st.lists(st.tuples(st.integers(1, 65535), st.integers(0, 10**6)), min_size=1, max_size=8))
def test_the_smallest_load_after_the_flow_wins(members: list[tuple[int, int]]) -> None:
    pool = make_pool(*(weight for weight, _ in members))
    for member, (_, active) in zip(pool, members, strict=True):
        member.active = active
    scheduler = create("wlc", seed=1, key=KEY)
    scheduler.update(pool)
    picked = scheduler.pick(FLOW)
    assert picked is not None
    loads = [Fraction(member.active + 1, member.weight) for member in pool]
    assert loads[pool.index(picked)] == min(loads)


def test_long_flows_settle_in_proportion_to_the_weights() -> None:
    pool = make_pool(5, 3, 2)
    scheduler = create("wlc", seed=1, key=KEY)
    scheduler.update(pool)
    for _ in range(1000):
        member = scheduler.pick(FLOW)
        assert member is not None
        member.active += 1
    assert [member.active for member in pool] == [500, 300, 200]


def test_equals_take_turns() -> None:
    pool = make_pool(2, 2, 1)
    scheduler = create("wlc", seed=1, key=KEY)
    scheduler.update(pool)
    assert letters(scheduler, pool, 4) == "abab"
