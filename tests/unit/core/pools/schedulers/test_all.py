"""What holds for every built-in scheduler."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherlb.core.pools.schedulers import Member, create
from tests.unit.core.pools.schedulers.pools import KEY, make_flow, make_pool, picks
from tests.unit.core.pools.schedulers.test_registry import BUILT_INS

# Maglev's builds are slow for hundreds of random pools; test_maglev covers it with small tables.
CHEAP = [name for name in BUILT_INS if name != "maglev"]
CONSISTENT = ["destination-hash", "five-tuple-hash", "maglev", "source-hash"]
ONE_AT_A_TIME = ["destination-hash", "failover", "first", "overflow"]
"""Those that use one member for flows like these, as long as it has room."""
SPREADING = [name for name in BUILT_INS if name not in ONE_AT_A_TIME]

every_built_in = pytest.mark.parametrize("name", BUILT_INS)


@every_built_in
def test_an_empty_pool_picks_no_member(name: str) -> None:
    scheduler = create(name, seed=1, key=KEY)
    assert scheduler.pick(make_flow(1)) is None
    scheduler.update([])
    assert scheduler.pick(make_flow(1)) is None


@every_built_in
def test_no_member_is_picked_if_all_weights_are_0(name: str) -> None:
    scheduler = create(name, seed=1, key=KEY)
    scheduler.update(make_pool(0, 0))
    assert scheduler.pick(make_flow(1)) is None


@pytest.mark.parametrize("name", SPREADING)
def test_weight_0_gets_nothing_and_all_others_something(name: str) -> None:
    pool = make_pool(1, 0, 2, 1)
    scheduler = create(name, seed=1, key=KEY)
    scheduler.update(pool)
    picked = set()
    for number in range(200):
        member = scheduler.pick(make_flow(number))
        assert member is not None
        member.active += 1
        picked.add(member)
    assert picked == {pool[0], pool[2], pool[3]}


@every_built_in
def test_a_pool_that_empties_and_fills_again(name: str) -> None:
    pool = make_pool(1, 1)
    scheduler = create(name, seed=1, key=KEY)
    scheduler.update(pool)
    assert scheduler.pick(make_flow(1)) in pool
    scheduler.update([])
    assert scheduler.pick(make_flow(1)) is None
    scheduler.update(pool)
    assert scheduler.pick(make_flow(1)) in pool


@every_built_in
def test_the_same_seed_and_key_give_the_same_picks(name: str) -> None:
    pool = make_pool(3, 1, 2)
    flows = [make_flow(number) for number in range(100)]
    runs = []
    for _ in range(2):
        scheduler = create(name, seed=7, key=KEY)
        scheduler.update(pool)
        runs.append(picks(scheduler, flows))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", ["random", "two-choices"])
def test_another_seed_gives_other_picks(name: str) -> None:
    pool = make_pool(1, 1, 1)
    flows = [make_flow(number) for number in range(100)]
    runs = []
    for seed in (1, 2):
        scheduler = create(name, seed=seed, key=KEY)
        scheduler.update(pool)
        runs.append(picks(scheduler, flows))
    assert runs[0] != runs[1]


@pytest.mark.parametrize("name", CONSISTENT)
def test_hashes_ignore_seed_history_and_order_but_not_the_key(name: str) -> None:
    pool = make_pool(1, 5, 2, 1, 1)
    flows = [make_flow(number) for number in range(300)]
    for number, flow in enumerate(flows):
        flow.vip += number
    scheduler = create(name, seed=1, key=KEY)
    scheduler.update(pool)
    expected = picks(scheduler, flows)

    shuffled = random.Random(3).sample(pool, len(pool))
    other = create(name, seed=2, key=KEY)
    other.update(shuffled[:2])
    picks(other, flows)
    other.update(shuffled)
    assert picks(other, flows) == expected

    stranger = create(name, seed=1, key=b"another")
    stranger.update(pool)
    assert picks(stranger, flows) != expected


@pytest.mark.parametrize("name", CHEAP)
@given(
    changes=st.lists(
        st.dictionaries(st.integers(0, 5), st.sampled_from([0, 1, 2, 7, 65535]), max_size=6),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_the_pool_does_picks_are_usable_members(
    name: str, changes: list[dict[int, int]]
) -> None:
    scheduler = create(name, seed=1, key=KEY)
    slots = make_pool(1, 1, 1, 1, 1, 1)
    for change in changes:
        members: list[Member] = []
        for index, weight in change.items():
            slots[index].weight = weight
            members.append(slots[index])
        scheduler.update(members)
        usable = {member for member in members if member.weight > 0}
        for number in range(10):
            picked = scheduler.pick(make_flow(number))
            assert (picked in usable) if usable else (picked is None)
            if picked is not None:
                picked.active += 1


@every_built_in
def test_peeking_tells_the_next_pick_and_changes_nothing(name: str) -> None:
    pool, twins = make_pool(3, 1, 0, 2), make_pool(3, 1, 0, 2)
    asked, left_alone = create(name, seed=7, key=KEY), create(name, seed=7, key=KEY)
    asked.update(pool)
    left_alone.update(twins)
    assert asked.rewindable
    for number in range(200):
        flow = make_flow(number)
        peeks = {asked.peek(flow) for _ in range(number % 4)}
        reasons = {asked.explain(flow) for _ in range(number % 3)}
        picked, twin = asked.pick(flow), left_alone.pick(flow)
        assert picked is not None
        assert twin is not None
        assert picked.index == twin.index
        assert peeks <= {picked}
        assert len(reasons) <= 1
        # Loads differ, and change as flows open and close.
        picked.active += number % 3
        twin.active += number % 3


@every_built_in
def test_peeking_into_an_empty_pool(name: str) -> None:
    assert create(name, seed=1, key=KEY).peek(make_flow(1)) is None
