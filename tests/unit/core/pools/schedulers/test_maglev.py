from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherlb import model
from featherlb.core.pools.schedulers import Member
from featherlb.core.pools.schedulers.maglev import Maglev, fill
from tests.oracles import maglev as oracle
from tests.unit.core.pools.schedulers.pools import KEY, make_flow, make_pool, picks

PRIMES = [7, 11, 13, 101, 251]


def make(pool: list[Member], size: int = 65537) -> Maglev:
    scheduler = Maglev(seed=1, key=KEY, table_size=size)
    scheduler.update(pool)
    return scheduler


class TestKnownAnswers:
    """Table 1 of the paper: three backends, seven slots."""

    OFFSETS, SKIPS = (3, 0, 3), (4, 2, 1)

    def test_the_oracle_has_the_permutations_of_the_paper(self) -> None:
        columns = [
            oracle.permutation(offset, skip, 7)
            for offset, skip in zip(self.OFFSETS, self.SKIPS, strict=True)
        ]
        assert columns == [
            [3, 0, 4, 1, 5, 2, 6],
            [0, 2, 4, 6, 1, 3, 5],
            [3, 4, 5, 6, 0, 1, 2],
        ]

    def test_the_table_of_the_paper(self) -> None:
        assert fill(7, self.OFFSETS, self.SKIPS, (1, 1, 1)) == [1, 0, 1, 0, 2, 2, 0]

    def test_the_table_of_the_paper_after_backend_1_left(self) -> None:
        table = fill(7, self.OFFSETS[::2], self.SKIPS[::2], (1, 1))
        assert [(0, 2)[index] for index in table] == [0, 0, 0, 0, 2, 2, 2]

    def test_turns_by_weight(self) -> None:
        """Weights 2 and 1: at 0 both, at 1/2 the first, at 1 both, at 3/2 the first, …"""
        turns = oracle.turns((2, 1))
        assert [next(turns) for _ in range(8)] == [0, 1, 0, 0, 1, 0, 0, 1]


@given(data=st.data(), size=st.sampled_from(PRIMES))
def test_the_table_is_filled_as_by_the_pseudo_code(data: st.DataObject, size: int) -> None:
    count = data.draw(st.integers(1, 8))
    lists = st.lists(st.integers(0, size - 1), min_size=count, max_size=count)
    offsets = data.draw(lists)
    skips = [1 + skip % (size - 1) for skip in data.draw(lists)]
    weights = data.draw(
        st.lists(st.sampled_from([1, 2, 3, 7, 10, 65535]), min_size=count, max_size=count)
    )
    permutations = [
        oracle.permutation(offset, skip, size) for offset, skip in zip(offsets, skips, strict=True)
    ]
    assert fill(size, offsets, skips, weights) == oracle.populate(permutations, weights)


@pytest.mark.parametrize("size", [-7, 0, 1, 4, 65536])
def test_a_table_size_must_be_prime(size: int) -> None:
    with pytest.raises(ValueError, match="is not a prime number"):
        Maglev(seed=1, key=KEY, table_size=size)


@pytest.mark.parametrize("weights", [(1,) * 3, (1,) * 100, (5, 3, 2), (100, 1), (1, 0, 2)])
def test_slots_are_in_proportion_to_weights(weights: tuple[int, ...]) -> None:
    pool = make_pool(*weights)
    counted = Counter(make(pool)._table)
    for member in pool:
        assert counted[member] == pytest.approx(65537 * member.weight / sum(weights), abs=2)


def test_the_member_of_least_weight_still_has_a_slot() -> None:
    pool = make_pool(*[65535] * 10, 1)
    assert pool[-1] in make(pool)._table


def test_flows_spread_as_the_slots_do() -> None:
    pool = make_pool(1, 1, 1, 1, 1)
    counted = Counter(picks(make(pool), map(make_flow, range(20_000))))
    assert all(3800 <= counted[member] <= 4200 for member in pool)


def test_a_flow_is_known_by_all_of_its_5_tuple() -> None:
    scheduler = make(make_pool(*[1] * 50))
    for field in ("client", "client_port", "vip", "vip_port"):
        picked = set()
        for number in range(50):
            flow = make_flow(0)
            setattr(flow, field, 1000 + number)
            picked.add(scheduler.pick(flow))
        assert len(picked) > 10
    tcp, udp = [], []
    for number in range(50):
        flow = make_flow(number)
        tcp.append(scheduler.pick(flow))
        flow.protocol = 17
        udp.append(scheduler.pick(flow))
    assert tcp != udp


@pytest.mark.parametrize("gone", [0, 4, 9])
def test_few_slots_move_beyond_those_of_a_member_that_leaves(gone: int) -> None:
    pool = make_pool(*[1] * 10)
    before = make(pool)._table
    after = make(pool[:gone] + pool[gone + 1 :])._table
    others = [(old, new) for old, new in zip(before, after, strict=True) if old is not pool[gone]]
    moved = sum(old is not new for old, new in others)
    # Rehashing modulo the size of the pool would move 90 %.
    assert moved / 65537 < 0.01


def test_few_slots_move_when_a_weight_changes() -> None:
    pool = make_pool(10, 10, 10, 10)
    scheduler = make(pool)
    before = scheduler._table
    pool[0].weight = 11
    scheduler.update(pool)
    moved = sum(old is not new for old, new in zip(before, scheduler._table, strict=True))
    assert 0 < moved / 65537 < 0.04


def test_ports_of_one_address_are_members_of_their_own() -> None:
    address = make_pool(1)[0].endpoint.address
    pool = [
        Member(model.Backend(model.Endpoint(address, 8000 + index)), index) for index in range(4)
    ]
    counted = Counter(make(pool, 251)._table)
    assert all(counted[member] in (62, 63) for member in pool)


def test_the_order_of_the_pool_does_not_change_a_slot() -> None:
    pool = make_pool(*[1] * 10, *[2] * 10)
    assert make(pool[::-1])._table == make(pool)._table
