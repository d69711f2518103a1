"""hash_balance: consistent hashing with bounded loads, around each hash scheduler."""

from collections import Counter
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherlb.core.pools.schedulers import Member, Scheduler, create
from featherlb.core.pools.schedulers.bounded_load import BoundedLoad
from featherlb.core.pools.schedulers.maglev import Maglev
from tests.unit.core.pools.schedulers.pools import KEY, make_flow, make_pool, picks


def bounded(scheduler: Scheduler, pool: list[Member], balance: int = 125) -> BoundedLoad:
    made = BoundedLoad(scheduler, balance)
    made.update(pool)
    return made


@given(
    weights=st.lists(st.sampled_from([0, 1, 2, 3, 10]), min_size=1, max_size=6),
    balance=st.sampled_from([101, 110, 125, 200, 1000]),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=60),
    inner=st.sampled_from(["maglev", "source-hash"]),
)
def test_no_member_exceeds_its_bound_and_somebody_always_takes_the_flow(
    weights: list[int], balance: int, steps: list[tuple[bool, int]], inner: str
) -> None:
    pool = make_pool(*weights)
    hashing = create(inner, seed=1, key=KEY)
    if inner == "maglev":
        hashing = Maglev(seed=1, key=KEY, table_size=251)
    scheduler = bounded(hashing, pool, balance)
    usable = [member for member in pool if member.weight]
    for opens, client in steps:
        if not opens:
            pool[client % len(pool)].active = max(0, pool[client % len(pool)].active - 1)
            continue
        picked = scheduler.pick(make_flow(client))
        if not usable:
            assert picked is None
            continue
        assert picked in usable
        picked.active += 1
        total = sum(member.active for member in usable)
        share = total * picked.weight / sum(member.weight for member in usable)
        assert picked.active <= ceil(balance * share / 100 + 1e-9)


def test_one_busy_client_spreads_and_the_others_stay() -> None:
    pool = make_pool(1, 1, 1, 1)
    plain = create("source-hash", seed=1, key=KEY)
    plain.update(pool)
    flows = [make_flow(number) for number in range(400)]
    before = picks(plain, flows)
    scheduler = bounded(create("source-hash", seed=1, key=KEY), pool)
    # Equal loads: everybody is where it would be without the bound.
    for member in pool:
        member.active = 100
    assert picks(scheduler, flows) == before
    for member in pool:
        member.active = 0
    counted: Counter[Member] = Counter()
    for _ in range(400):
        picked = scheduler.pick(make_flow(1))
        assert picked is not None
        picked.active += 1
        counted[picked] += 1
    assert sorted(counted.values()) == [25, 125, 125, 125]


def test_a_full_member_gives_way_to_its_successors_alone() -> None:
    pool = make_pool(*[1] * 5)
    hashing = create("maglev", seed=1, key=KEY)
    scheduler = bounded(hashing, pool)
    for member in pool:
        member.active = 10
    flows = [make_flow(number) for number in range(1000)]
    before = picks(scheduler, flows)
    pool[2].active = 40
    after = picks(scheduler, flows)
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old is not new]
    assert {old for old, _ in moved} == {pool[2]}
    assert pool[2] not in after
    assert {new for _, new in moved} == {pool[0], pool[1], pool[3], pool[4]}


@pytest.mark.parametrize("name", ["maglev", "five-tuple-hash", "source-hash", "destination-hash"])
def test_peeking_and_reasons(name: str) -> None:
    pool = make_pool(1, 1)
    scheduler = bounded(create(name, seed=1, key=KEY), pool)
    flow = make_flow(1)
    first = scheduler.peek(flow)
    assert first is not None
    (other,) = set(pool) - {first}
    assert scheduler.explain(flow).endswith("it has 0 of at most 1 open flows (hash_balance)")
    first.active = 5
    assert scheduler.peek(flow) is scheduler.pick(flow) is other
    assert scheduler.explain(flow).startswith(f"{first.endpoint} is the first choice (")
    assert scheduler.explain(flow).endswith("has 5 open flows of at most 4 (hash_balance)")
    assert not scheduler.consistent
    assert set(scheduler.slots()) == set(pool)


def test_members_with_room_take_a_flow_even_above_their_bounds() -> None:
    pool = make_pool(1, 1, 1)
    scheduler = bounded(create("maglev", seed=1, key=KEY), pool)
    pool[0].active, pool[1].active = 9, 2
    assert scheduler.overflow(make_flow(1), pool[:2]) is pool[1]
    assert scheduler.overflow(make_flow(1), pool[:1]) is pool[0]
