from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherlb.core.pools.schedulers import create
from tests.unit.core.pools.schedulers.pools import KEY, letters, make_pool


@pytest.mark.parametrize(
    ("weights", "sequence"),
    [
        ((5, 1, 1), "aabacaa"),
        ((1, 1, 1), "abc"),
        ((2, 1), "aba"),
        ((4, 2, 1), "abacaba"),
        ((3, 0, 1), "aaca"),
    ],
)
def test_the_smooth_sequence(weights: tuple[int, ...], sequence: str) -> None:
    pool = make_pool(*weights)
    scheduler = create("wrr", seed=1, key=KEY)
    scheduler.update(pool)
    assert letters(scheduler, pool, 2 * len(sequence)) == 2 * sequence


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_each_round_is_in_exact_proportion(weights: list[int]) -> None:
    pool = make_pool(*weights)
    scheduler = create("wrr", seed=1, key=KEY)
    scheduler.update(pool)
    for _ in range(2):
        counted = Counter(letters(scheduler, pool, sum(weights)))
        assert [counted["abcdefgh"[index]] for index in range(len(pool))] == weights


def test_the_place_in_the_round_survives_an_update() -> None:
    pool = make_pool(5, 1, 1)
    scheduler = create("wrr", seed=1, key=KEY)
    scheduler.update(pool)
    assert letters(scheduler, pool, 3) == "aab"
    scheduler.update(pool)
    assert letters(scheduler, pool, 4) == "acaa"


def test_a_change_from_large_to_small_weights_starves_no_member() -> None:
    pool = make_pool(1000, 1)
    scheduler = create("wrr", seed=1, key=KEY)
    scheduler.update(pool)
    letters(scheduler, pool, 499)
    pool[0].weight = 1
    scheduler.update(pool)
    counted = Counter(letters(scheduler, pool, 20))
    assert abs(counted["a"] - counted["b"]) <= 2


def test_a_member_that_joins_neither_floods_nor_starves() -> None:
    pool = make_pool(5, 5, 5)
    scheduler = create("wrr", seed=1, key=KEY)
    scheduler.update(pool[:2])
    letters(scheduler, pool, 1001)
    scheduler.update(pool)
    counted = Counter(letters(scheduler, pool, 9))
    assert all(2 <= counted[letter] <= 4 for letter in "abc")
