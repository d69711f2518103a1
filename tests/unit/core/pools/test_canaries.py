"""Backends on trial: each gets an exact share of its pool's new flows."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from featherlb.core.pools.explain import explain
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import Member, NewFlow
from featherlb.model import Backend, Persistence, Role
from tests.unit.core.pools.schedulers.test_registry import BUILT_INS
from tests.unit.core.pools.test_preference import flow_of
from tests.world import ONE, THREE, TWO, backend, service


def trying(share: float, *others: Backend, scheduler: str = "round-robin", **fields: Any) -> Pool:
    """A pool of ONE, TWO and the canary THREE, or of other backends and the canary."""
    canary = backend(THREE, canary=share, **fields)
    wanted = service(*(others or (backend(ONE), backend(TWO))), canary, scheduler=scheduler)
    pool = Pool(wanted, seed=1, key=b"")
    pool.update(wanted, lambda one: Member(one, 0))
    return pool


def counts(pool: Pool, flows: int = 1000) -> Counter[str]:
    """How often each backend was picked, for so many clients."""
    found: Counter[str] = Counter()
    for number in range(flows):
        member = pool.pick(flow_of(number), 0)
        found[str(member.endpoint) if member else "-"] += 1
    return found


@pytest.mark.parametrize("scheduler", BUILT_INS)
@pytest.mark.parametrize("share", [0.5, 5, 40])
def test_a_canary_gets_its_share_whatever_the_scheduler(scheduler: str, share: float) -> None:
    pool = trying(share, scheduler=scheduler)
    found = counts(pool, 4000)
    wanted = 40 * share
    if not pool.schedulers[0].consistent:
        assert found[THREE] == int(wanted)
    elif scheduler != "destination-hash":  # all these flows have one destination
        assert abs(found[THREE] - wanted) < 4 * wanted**0.5
    assert found.total() == 4000


@pytest.mark.parametrize("scheduler", ["maglev", "source-hash"])
def test_clients_stay_with_a_canary_and_no_other_flow_moves(scheduler: str) -> None:
    pool = trying(10, scheduler=scheduler)
    without = service(backend(ONE), backend(TWO), scheduler=scheduler)
    before = Pool(without, seed=1, key=b"")
    before.update(without, lambda one: Member(one, 0))
    for number in range(500):
        flow = flow_of(number)
        member, earlier = pool.pick(flow, 0), before.pick(flow, 0)
        assert member is not None
        assert earlier is not None
        assert pool.pick(flow_of(number), 0) is member
        # Of a connection from before the start, too.
        assert pool.consistent_choice(flow) is member
        if str(member.endpoint) != THREE:
            assert member.endpoint == earlier.endpoint


def test_the_members_of_another_role_get_nothing_of_it() -> None:
    pool = trying(10, backend(ONE), backend(TWO, role=Role.BACKUP))
    assert counts(pool) == {ONE: 900, THREE: 100}


@pytest.mark.parametrize("fields", [{"max_connections": 0}, {"weight": 0}])
def test_a_canary_without_room_gets_nothing(fields: dict[str, Any]) -> None:
    found = counts(trying(10, **fields))
    assert found == {ONE: 500, TWO: 500}


def test_a_canary_serves_where_nobody_else_does() -> None:
    pool = trying(10, backend(ONE, 0))
    assert counts(pool) == {THREE: 1000}


def test_several_canaries_each_get_their_share() -> None:
    for scheduler, exact in (("round-robin", True), ("maglev", False)):
        pool = trying(10, backend(ONE), backend(TWO, canary=30), scheduler=scheduler)
        found = counts(pool)
        assert abs(found[THREE] - 100) <= (1 if exact else 40)
        assert abs(found[TWO] - 300) <= (1 if exact else 60)


def test_bound_clients_stay() -> None:
    wanted = replace(
        service(backend(ONE), backend(TWO, canary=50)), persistence=Persistence(60, 32)
    )
    pool = Pool(wanted, seed=1, key=b"")
    pool.update(wanted, lambda one: Member(one, 0))
    first = [pool.pick(flow_of(number), 0) for number in range(20)]
    assert len(set(first)) == 2
    assert [pool.pick(flow_of(number, 41000), 0) for number in range(20)] == first


def test_a_refused_flow_of_a_canary_goes_to_the_others() -> None:
    pool = trying(50)
    (canary,) = pool.canaries.members if pool.canaries else ()
    for number in range(20):
        other = pool.repick(flow_of(number), 0, [canary])
        assert other is not None
        assert other is not canary


@pytest.mark.parametrize("scheduler", ["round-robin", "maglev"])
def test_asking_why_changes_nothing(scheduler: str) -> None:
    pool = trying(25, scheduler=scheduler)
    for number in range(40):
        flow = NewFlow(6, 4, 0x0A000001 + number, 40000, 0xC000020A, 80)
        decision = explain(pool, flow, 0)
        picked = pool.pick(flow, 0)
        assert picked is not None
        assert decision.backend == picked.endpoint
        reason = f"canary: {THREE} gets 25 % of the new flows"
        if str(picked.endpoint) == THREE:
            assert decision.reasons == (f"{reason}, and this one is among those of {THREE}",)
        else:
            assert decision.reasons[0] == f"{reason}; this one is left to the others"


def test_the_end_of_a_trial_gives_the_full_part() -> None:
    pool = trying(1)
    wanted = service(backend(ONE), backend(TWO), backend(THREE))
    pool.update(wanted, lambda one: Member(one, 0))
    assert counts(pool, 300) == {ONE: 100, TWO: 100, THREE: 100}
