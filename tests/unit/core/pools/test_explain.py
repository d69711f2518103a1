"""core/pools/explain.py: where a new flow would go, and why, without a change."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import pytest

from featherlb.core.pools.explain import Decision, explain
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import Member, create, scheduler
from featherlb.model import Persistence, Ramp, Role, Service
from tests.unit.core.pools.schedulers.pools import KEY, make_flow
from tests.unit.core.pools.schedulers.test_registry import BUILT_INS
from tests.world import ONE, THREE, TWO, backend, service

LIMITED = (backend(ONE, 2, max_connections=12), backend(TWO, max_connections=5), backend(THREE, 3))
RAMPING = (backend(ONE, 2), backend(TWO, ramp=Ramp(0.0, 30.0)), backend(THREE, 1))
SPARE = (backend(ONE, max_connections=4), backend(TWO, role=Role.BACKUP, max_connections=9))
POOLS = {
    "plain": service(ONE, backend(TWO, 3), backend(THREE, 0)),
    "limited": service(*LIMITED),
    "ramping": service(*RAMPING),
    "spare": service(*SPARE),
    "persistent": replace(service(*LIMITED), persistence=Persistence(20.0, 30)),
    "empty": service(),
}


def make_pool(wanted: Service) -> Pool:
    numbers = count()
    pool = Pool(wanted, seed=3, key=KEY)
    pool.update(wanted, lambda one: Member(one, next(numbers)))
    return pool


def tell(wanted: Service, *active: int, number: int = 1) -> Decision:
    """The decision about a flow, with so many flows open at each backend."""
    pool = make_pool(wanted)
    for member, flows in zip(pool.members.values(), active, strict=False):
        member.active = flows
    return explain(pool, make_flow(number), 0)


@pytest.mark.parametrize("wanted", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("name", BUILT_INS)
def test_the_explanation_is_what_the_next_pick_does_and_changes_nothing(
    name: str, wanted: Service
) -> None:
    wanted = replace(wanted, scheduler=name)
    asked, left_alone = make_pool(wanted), make_pool(wanted)
    opened: list[tuple[Member, Member]] = []
    for number in range(120):
        flow, ticks = make_flow(number % 50), number * 3
        told = [explain(asked, flow, ticks) for _ in range(number % 3)]
        picked, twin = asked.pick(flow, ticks), left_alone.pick(flow, ticks)
        endpoint = None if picked is None else picked.endpoint
        assert endpoint == (None if twin is None else twin.endpoint)
        assert {one.backend for one in told} <= {endpoint}
        assert all(one.reasons for one in told)
        if endpoint is not None:
            assert all(str(endpoint) in one.reasons[-1] for one in told)
        if picked is not None and twin is not None:
            opened.append((picked, twin))
            picked.active += 1
            twin.active += 1
        if number % 5 == 4 and opened:
            for member in opened.pop(0):
                member.active -= 1


@pytest.mark.parametrize(
    ("name", "active", "expected"),
    [
        ("rr", (), f"primary: round-robin picks {ONE}, as it is next in turn, number 1 of 2"),
        (
            "wrr",
            (),
            f"picks {TWO}, as it has the most credit, 3, and pays the sum of all weights, ",
        ),
        ("lc", (2, 1), f"picks {TWO}, as it has the fewest open flows, 1"),
        ("lc", (1, 1), "fewest open flows, 1, and of 2 with as many it has waited longest"),
        ("wlc", (1, 5), f"picks {ONE}, as its load with this flow, (open + 1) / weight = 2, is"),
        ("nq", (1, 0), f"picks {TWO}, as it is idle"),
        ("nq", (0, 0), "it is idle, and of 2 with as many it has waited longest"),
        ("nq", (1, 5), f"picks {ONE}, as none is idle and its load with this flow, (open + 1)"),
        ("first", (9, 0), f"picks {ONE}, as it is the first in the configuration's order"),
        ("fo", (), f"picks {TWO}, as it has the greatest weight, 3"),
        ("dh", (), "as the VIP's address hashes to row "),
        ("random", (), "as the random number "),
        ("p2c", (), "random choice"),
        ("sh", (), "as the client's address hashes to row "),
        ("hash", (), "as addresses, ports and protocol hash to row "),
        ("mh", (), " of 65537, one of the "),
    ],
)
def test_reasons_of_schedulers(name: str, active: Sequence[int], expected: str) -> None:
    wanted = service(ONE, backend(TWO, 3), scheduler=create(name, seed=1, key=b"").name)
    (reason,) = tell(wanted, *active).reasons
    assert expected in reason


def test_a_slot_that_is_named_is_owned_by_the_backend() -> None:
    wanted = service(ONE, TWO, THREE, scheduler="maglev")
    pool = make_pool(wanted)
    (tier,) = pool.tiers.values()
    for number in range(50):
        told = explain(pool, make_flow(number), 0)
        slot = int(told.reasons[0].partition("slot ")[2].partition(" ")[0])
        owner = tier.scheduler._table[slot]  # type: ignore[attr-defined]
        assert owner.endpoint == told.backend


def test_a_full_backend_a_backup_and_nobody() -> None:
    full = service(backend(ONE, max_connections=1), TWO, backend(THREE, role=Role.BACKUP))
    told = tell(full, 1)
    assert told.reasons == (
        f"primary: round-robin picks {ONE}, as it is next in turn, number 1 of 2",
        f"{ONE} is full, so {TWO} takes it",
    )
    assert [one.max_connections for one in told.candidates] == [1, None, None]
    assert [one.active for one in told.candidates] == [1, 0, 0]
    down = replace(full, backends=tuple(replace(one, weight=0) for one in full.backends[:2]))
    assert tell(down).reasons == ("primary: no backend takes new flows",)
    assert tell(down).backend is None
    spare = service(backend(ONE, max_connections=1), backend(THREE, role=Role.BACKUP))
    assert tell(spare, 1).reasons == (
        "primary: all backends are full",
        f"backup: round-robin picks {THREE}, as it is next in turn, number 1 of 1",
    )


def test_slow_start() -> None:
    told = tell(service(backend(ONE, ramp=Ramp(0.0, 10.0)), TWO))
    assert [one.progress for one in told.candidates] == [0.0, 1.0]
    assert told.reasons[1] == f"{ONE} is in slow start and leaves this flow to others, so {TWO} takes it"  # noqa: E501  # fmt: skip


def test_persistence() -> None:
    wanted = replace(service(ONE, TWO), persistence=Persistence(20.0, 32))
    pool = make_pool(wanted)
    flow = make_flow(1)
    assert explain(pool, flow, 0).reasons[0] == "persistence: the client is not bound to a backend"
    pool.pick(flow, 0)
    told = explain(pool, flow, 50)
    assert told.binding is not None
    assert (str(told.binding.backend), told.binding.remaining) == (ONE, 15.0)
    assert told.reasons == (f"persistence: the client is bound to {ONE} for another 15 s",)
    drained = replace(wanted, backends=(replace(wanted.backends[0], weight=0), wanted.backends[1]))
    pool.update(drained, lambda one: Member(one, 7))
    told = explain(pool, flow, 50)
    assert told.reasons[0].endswith(", but that takes no new flows")
    assert str(told.backend) == TWO
    pool.update(replace(wanted, backends=wanted.backends[1:]), lambda one: Member(one, 7))
    assert explain(pool, flow, 50).reasons[0].endswith(", but that has left the pool")
    assert explain(pool, flow, 200).binding is None


def test_custom_schedulers_can_not_be_rewound() -> None:
    @scheduler("test-last")
    def last(flow: object, backends: Sequence[object]) -> object:
        return backends[-1]

    @scheduler("test-fails")
    def fails(flow: object, backends: Sequence[object]) -> object:
        raise RuntimeError("no idea")

    pool = make_pool(service(ONE, TWO, scheduler="test-last"))
    assert not pool.rewindable
    told = explain(pool, make_flow(1), 0)
    assert told.reasons == (f"primary: the code of test-last picks {TWO}",)
    told = explain(make_pool(service(ONE, TWO, scheduler="test-fails")), make_flow(1), 0)
    assert told.reasons[0].startswith("test-fails fails (pick() raised RuntimeError('no idea')")
