from featherlb.core.pools.schedulers import create
from tests.unit.core.pools.schedulers.pools import FLOW, KEY, letters, make_pool


def test_members_take_turns_whatever_their_weights() -> None:
    pool = make_pool(1, 100, 3)
    scheduler = create("rr", seed=1, key=KEY)
    scheduler.update(pool)
    assert letters(scheduler, pool, 7) == "abcabca"


def test_the_turn_survives_an_update() -> None:
    pool = make_pool(1, 1, 1, 1)
    scheduler = create("rr", seed=1, key=KEY)
    scheduler.update(pool)
    assert letters(scheduler, pool, 2) == "ab"
    scheduler.update(pool)
    assert letters(scheduler, pool, 1) == "c"


def test_the_next_member_follows_one_that_leaves_before_its_turn() -> None:
    pool = make_pool(1, 1, 1, 1)
    scheduler = create("rr", seed=1, key=KEY)
    scheduler.update(pool)
    assert letters(scheduler, pool, 2) == "ab"
    scheduler.update([pool[0], pool[1], pool[3]])
    assert letters(scheduler, pool, 4) == "dabd"


def test_a_weight_of_0_takes_a_member_out_of_the_round_and_a_weight_brings_it_back() -> None:
    pool = make_pool(1, 1, 1)
    scheduler = create("rr", seed=1, key=KEY)
    scheduler.update(pool)
    pool[1].weight = 0
    scheduler.update(pool)
    assert letters(scheduler, pool, 4) == "acac"
    pool[1].weight = 1
    scheduler.update(pool)
    assert letters(scheduler, pool, 3) == "abc"


def test_new_members_replace_old_ones() -> None:
    scheduler = create("rr", seed=1, key=KEY)
    scheduler.update(make_pool(1, 1))
    scheduler.pick(FLOW)
    pool = make_pool(1, 1, 1)
    scheduler.update(pool)
    assert letters(scheduler, pool, 3) == "abc"
