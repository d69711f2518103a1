"""first, failover, overflow: one member at a time, in an order; never-queue: idle members first."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import Member, create, within_weights
from featherlb.model import Backend, Endpoint, Protocol, Service, Vip
from tests.unit.core.pools.schedulers.pools import FLOW, KEY, letters, make_pool

SERVICE = Service("web", Protocol.TCP, (Vip(Endpoint.parse("10.0.0.10:80").address, 80, 80),))


def opened(scheduler: str, count: int, *backends: tuple[int, int | None]) -> str:
    """Who gets so many flows that stay open, as letters; `-` if nobody does. Each backend has a
    weight and a limit."""
    service = Service(
        "web",
        SERVICE.protocol,
        SERVICE.vips,
        tuple(
            Backend(Endpoint.parse(f"10.0.1.{number}:80"), weight, max_connections=limit)
            for number, (weight, limit) in enumerate(backends, 1)
        ),
        scheduler,
    )
    members: list[Member] = []

    def new_member(backend: Backend) -> Member:
        members.append(Member(backend, len(members)))
        return members[-1]

    pool = Pool(service, seed=1, key=KEY)
    pool.update(within_weights(service), new_member)
    text = ""
    for _ in range(count):
        member = pool.pick(FLOW, 0)
        text += "-" if member is None else "abcdefgh"[members.index(member)]
        if member is not None:
            member.active += 1
    return text


@pytest.mark.parametrize(
    ("scheduler", "backends", "expected"),
    [
        ("first", [(1, 2), (9, 3), (5, None)], "aabbbccc"),
        ("first", [(0, None), (1, 1), (1, 1)], "bc------"),
        ("failover", [(1, None), (9, 3), (5, 2)], "bbbccaaa"),
        ("failover", [(1, 1), (7, 1), (7, 1)], "bca-----"),
        ("overflow", [(1, None), (3, None), (2, None)], "bbbcca--"),
        ("overflow", [(1, None), (3, 1), (2, 9)], "bcca----"),
        ("overflow", [(0, None), (9, None)], "bbbbbbbb"),
    ],
)
def test_members_fill_in_order(
    scheduler: str, backends: Sequence[tuple[int, int | None]], expected: str
) -> None:
    assert opened(scheduler, 8, *backends) == expected


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(1, 5)), max_size=6))
def test_overflow_never_exceeds_a_weight_and_refuses_only_when_all_are_full(
    backends: list[tuple[int, int | None]],
) -> None:
    text = opened("overflow", 31, *backends)
    rooms = [min(weight, limit or weight) for weight, limit in backends]
    assert [text.count(letter) for letter in "abcdef"[: len(rooms)]] == rooms
    assert text.rstrip("-") == text.replace("-", "")


def test_a_member_of_more_weight_takes_over() -> None:
    pool = make_pool(2, 1)
    scheduler = create("fo", seed=1, key=KEY)
    scheduler.update(pool)
    assert letters(scheduler, pool, 2) == "aa"
    pool[1].weight = 3
    scheduler.update(pool)
    assert letters(scheduler, pool, 2) == "bb"


def test_an_idle_member_never_queues_however_light() -> None:
    pool = make_pool(100, 1, 1)
    pool[0].active = 1
    scheduler = create("nq", seed=1, key=KEY)
    scheduler.update(pool)
    assert letters(scheduler, pool, 4) == "bcbc"
    # With none idle, the shortest expected delay: 2/100 against 2/1.
    pool[1].active = pool[2].active = 1
    assert letters(scheduler, pool, 1) == "a"
    pool[0].active = 250
    assert letters(scheduler, pool, 1) in "bc"


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_shortest_expected_delay_is_the_least_of_open_plus_one_per_weight(
    loads: list[tuple[int, int]],
) -> None:
    pool = make_pool(*(weight for weight, _ in loads))
    for member, (_, active) in zip(pool, loads, strict=True):
        member.active = active
    scheduler = create("sed", seed=1, key=KEY)
    scheduler.update(pool)
    picked = scheduler.pick(FLOW)
    assert picked is not None
    assert (picked.active + 1) / picked.weight == min(
        (member.active + 1) / member.weight for member in pool
    )
