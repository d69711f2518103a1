from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherlb.core.pools.schedulers import Member
from featherlb.core.pools.schedulers.hashing import KeyedHash, endpoint_bytes
from featherlb.core.pools.schedulers.rendezvous import ROWS, RendezvousTable, _mix
from tests.oracles import rendezvous as oracle
from tests.unit.core.pools.schedulers.pools import KEY, make_pool


def table_of(pool: list[Member]) -> RendezvousTable:
    table = RendezvousTable(KEY)
    table.update(pool)
    return table


def owners(table: RendezvousTable, rows: int = ROWS) -> list[Member | None]:
    return [table.owner(row) for row in range(rows)]


def test_splitmix64_known_answers() -> None:
    """The sequence from 1234567, as published with the generator's reference code."""
    known = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [oracle.splitmix64(1234567, steps) for steps in range(1, 6)] == known
    assert [_mix(1234567, row) for row in range(5)] == known


@given(
    changes=st.lists(
        st.lists(st.sampled_from([0, 1, 2, 7, 65535]), min_size=5, max_size=5),
        min_size=1,
        max_size=4,
    )
)
def test_rows_belong_to_the_best_whatever_came_before(changes: list[list[int]]) -> None:
    pool = make_pool(1, 1, 1, 1, 1)
    table = RendezvousTable(KEY)
    hash_backend = KeyedHash(KEY, b"rendezvous backend")
    for weights in changes:
        for member, weight in zip(pool, weights, strict=True):
            member.weight = weight
        table.update(pool)
        usable = [member for member in pool if member.weight]
        pairs = [
            (hash_backend(endpoint_bytes(member.endpoint)), member.weight) for member in usable
        ]
        for row in range(40):
            expected = usable[oracle.best(pairs, row)] if usable else None
            assert table.owner(row) is expected


def test_all_bits_above_the_row_are_ignored() -> None:
    table = table_of(make_pool(1, 1, 1))
    assert table.owner(5) is table.owner(5 + ROWS) is table.owner(5 + (1 << 63))


@pytest.mark.parametrize("weights", [(1,) * 10, (5, 3, 2), (10, 1), (1, 0, 2)])
def test_shares_are_as_the_weights(weights: tuple[int, ...]) -> None:
    pool = make_pool(*weights)
    counted = Counter(owners(table_of(pool)))
    for member in pool:
        # The standard deviation is at most 0.002.
        assert counted[member] / ROWS == pytest.approx(member.weight / sum(weights), abs=0.008)


@pytest.mark.parametrize("gone", [0, 5, 9])
def test_a_member_that_leaves_moves_only_its_own_rows(gone: int) -> None:
    pool = make_pool(*[1] * 10)
    table = table_of(pool)
    before = owners(table)
    table.update(pool[:gone] + pool[gone + 1 :])
    after = owners(table)
    heirs = Counter(
        new for old, new in zip(before, after, strict=True) if old is not new or old is pool[gone]
    )
    assert sum(heirs.values()) == before.count(pool[gone])
    assert 0.09 < before.count(pool[gone]) / ROWS < 0.11
    assert len(heirs) == 9
    assert max(heirs.values()) < 1.5 * min(heirs.values())
    table.update(pool)
    assert owners(table) == before


def test_a_higher_weight_only_gains_rows_and_a_lower_one_only_loses() -> None:
    pool = make_pool(2, 2, 2)
    table = table_of(pool)
    before = owners(table)
    for weight in (3, 1):
        pool[1].weight = weight
        table.update(pool)
        moved = [
            (old, new) for old, new in zip(before, owners(table), strict=True) if old is not new
        ]
        assert moved
        assert all((new if weight == 3 else old) is pool[1] for old, new in moved)


def test_a_member_whose_backend_changed_is_rehashed() -> None:
    pool = make_pool(1, 1)
    table = table_of(pool)
    before = owners(table, 200)
    pool[0].backend = make_pool(1, 1, 1)[2].backend
    table.update(pool)
    assert owners(table, 200) != before
    assert owners(table, 200) == owners(table_of(pool), 200)
