"""Pools: members keep their identity while the configuration changes around them."""

import pytest

from featherlb.core.pool import Pool
from featherlb.core.scheduler import Member, NewFlow
from featherlb.model import Backend, Service
from tests.world import ONE, THREE, TWO, backend, service

FLOW = NewFlow(6, 4, 0x0A000001, 40000, 0xC000020A, 80)


def make_pool(first: Service) -> Pool:
    return Pool(first, seed=1, key=b"")


def update(pool: Pool, to: Service) -> list[str]:
    """Change the pool; the endpoints of the members that left."""

    def new_member(one: Backend) -> Member:
        return Member(one, 7)

    return sorted(str(member.endpoint) for member in pool.update(to, new_member))


def picks(pool: Pool, count: int) -> list[str]:
    members = [pool.pick(FLOW, 0) for _ in range(count)]
    return [str(member.endpoint) for member in members if member is not None]


def test_a_pool_is_empty_until_it_is_updated() -> None:
    pool = make_pool(service(ONE, TWO))
    assert pool.pick(FLOW, 0) is None
    assert update(pool, service(ONE, TWO)) == []
    assert sorted(picks(pool, 2)) == [ONE, TWO]


def test_members_that_stay_are_the_same_objects() -> None:
    pool = make_pool(service())
    update(pool, service(ONE, TWO))
    kept = pool.members[backend(TWO).endpoint]
    kept.active = 5
    assert update(pool, service(TWO, THREE)) == [ONE]
    assert pool.members[backend(TWO).endpoint] is kept
    assert [str(endpoint) for endpoint in pool.members] == [TWO, THREE]
    assert set(picks(pool, 4)) == {TWO, THREE}


def test_weights_and_backends_follow_the_configuration() -> None:
    pool = make_pool(service())
    update(pool, service(ONE, TWO))
    drained = backend(ONE, 0, local=True)
    assert update(pool, service(drained, TWO)) == []
    member = pool.members[drained.endpoint]
    assert (member.weight, member.backend) == (0, drained)
    assert picks(pool, 3) == [TWO] * 3


def test_a_removed_member_that_comes_back_is_a_new_one() -> None:
    pool = make_pool(service())
    update(pool, service(ONE))
    old = pool.members[backend(ONE).endpoint]
    assert update(pool, service()) == [ONE]
    assert pool.pick(FLOW, 0) is None
    update(pool, service(ONE))
    assert pool.members[backend(ONE).endpoint] is not old


def test_the_scheduler_is_replaced_only_when_its_name_changes() -> None:
    pool = make_pool(service())
    update(pool, service(ONE, TWO))
    before = pool.scheduler
    update(pool, service(TWO, ONE, nat="full"))
    assert pool.scheduler is before
    update(pool, service(ONE, TWO, scheduler="source-hash"))
    assert pool.scheduler.name == "source-hash"
    assert len(set(picks(pool, 3))) == 1  # it has the members


@pytest.mark.parametrize(
    ("scheduler", "nat", "adopts"),
    [
        ("round-robin", "dnat", False),
        ("least-connections", "dnat", False),
        ("source-hash", "dnat", True),
        ("five-tuple-hash", "dnat", True),
        ("maglev", "dnat", True),
        ("maglev", "full", False),  # the source port is lost with the table
    ],
)
def test_connections_are_joined_where_nothing_but_the_backend_was_chosen(
    scheduler: str, nat: str, adopts: bool
) -> None:
    pool = make_pool(service(scheduler=scheduler, nat=nat))
    assert pool.adopts is adopts
    assert pool.full is (nat == "full")
