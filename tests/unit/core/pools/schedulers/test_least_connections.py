from featherlb.core.pools.schedulers import create
from tests.unit.core.pools.schedulers.pools import FLOW, KEY, letters, make_pool


def test_the_fewest_open_flows_win_whatever_the_weights() -> None:
    pool = make_pool(100, 1, 1)
    pool[0].active, pool[1].active, pool[2].active = 5, 4, 6
    scheduler = create("lc", seed=1, key=KEY)
    scheduler.update(pool)
    assert letters(scheduler, pool, 1) == "b"
    pool[1].active = 7
    assert letters(scheduler, pool, 1) == "a"


def test_an_idle_pool_is_used_in_turns() -> None:
    pool = make_pool(1, 1, 1)
    scheduler = create("lc", seed=1, key=KEY)
    scheduler.update(pool)
    assert letters(scheduler, pool, 6) == "abcabc"


def test_long_flows_even_out() -> None:
    pool = make_pool(1, 1, 1, 1)
    pool[2].active = 10
    scheduler = create("lc", seed=1, key=KEY)
    scheduler.update(pool)
    for _ in range(30):
        member = scheduler.pick(FLOW)
        assert member is not None
        member.active += 1
    assert [member.active for member in pool] == [10, 10, 10, 10]
