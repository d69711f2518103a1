"""Pools: members keep their identity while the configuration changes around them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import Member, NewFlow
from featherlb.model import Backend, HashField, HashPart, Label, Persistence, Ramp, Role, Service
from tests.unit.core.pools.schedulers.test_registry import BUILT_INS
from tests.world import ONE, THREE, TWO, backend, service

FOUR = "10.1.0.4:8080"
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
    (before,) = pool.schedulers
    update(pool, service(TWO, ONE, nat="full"))
    assert pool.schedulers == [before]
    update(pool, service(ONE, TWO, scheduler="source-hash"))
    assert [one.name for one in pool.schedulers] == ["source-hash"]
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
def test_connections_are_adopted_if_only_the_backend_was_chosen(
    scheduler: str, nat: str, adopts: bool
) -> None:
    pool = make_pool(service(scheduler=scheduler, nat=nat))
    assert pool.adopts is adopts
    assert pool.full is (nat == "full")


def role(name: str, *endpoints: str, weight: int = 1) -> list[Backend]:
    return [backend(one, weight, role=Role(name)) for one in endpoints]


def test_backups_serve_while_no_primary_backend_can() -> None:
    pool = make_pool(service())
    backups, sorry = role("backup", TWO, THREE), role("sorry", FOUR)
    update(pool, service(ONE, *sorry, *backups))
    assert set(picks(pool, 4)) == {ONE}
    update(pool, service(*role("primary", ONE, weight=0), *sorry, *backups))
    assert picks(pool, 4) == [TWO, THREE, TWO, THREE]
    update(pool, service(*role("primary", ONE, weight=0), *sorry))
    assert set(picks(pool, 2)) == {FOUR}
    assert pool.usable
    update(pool, service(ONE, *sorry, *backups))
    assert set(picks(pool, 4)) == {ONE}
    update(pool, service(*role("backup", TWO, weight=0)))
    assert picks(pool, 1) == []
    assert not pool.usable


def test_a_member_may_change_its_role() -> None:
    pool = make_pool(service())
    update(pool, service(ONE, *role("backup", TWO)))
    kept = pool.members[backend(TWO).endpoint]
    update(pool, service(*role("backup", ONE), *role("primary", TWO)))
    assert pool.members[backend(TWO).endpoint] is kept
    assert picks(pool, 2) == [TWO, TWO]


def sticky(one: Service) -> Service:
    return replace(one, persistence=Persistence(300.0, 32))


def test_persistence_ends_where_the_backup_is_not_needed_any_more() -> None:
    pool = make_pool(sticky(service()))
    down = sticky(service(backend(ONE, 0), *role("backup", TWO, THREE)))
    update(pool, down)
    assert picks(pool, 3) == [TWO] * 3
    update(pool, sticky(service(ONE, *role("backup", TWO, THREE))))
    assert picks(pool, 3) == [ONE] * 3


def limited(limit: int, *endpoints: str, role: Role = Role.PRIMARY) -> list[Backend]:
    return [backend(one, max_connections=limit, role=role) for one in endpoints]


def open_flows(pool: Pool, count: int) -> list[str]:
    """Flows that stay open, each of another client."""
    opened = []
    for number in range(count):
        member = pool.pick(NewFlow(6, 4, 0x0A000001 + number, 40000, 0xC000020A, 80), 0)
        if member is not None:
            member.active += 1
            opened.append(str(member.endpoint))
    return opened


@pytest.mark.parametrize("scheduler", BUILT_INS)
def test_a_full_member_gets_no_flows_and_a_full_pool_refuses(scheduler: str) -> None:
    pool = make_pool(service(scheduler=scheduler))
    update(pool, service(*limited(3, ONE, TWO), *limited(2, THREE), scheduler=scheduler))
    opened = Counter(open_flows(pool, 20))
    assert opened == {ONE: 3, TWO: 3, THREE: 2}
    assert pool.usable
    pool.members[backend(TWO).endpoint].active -= 1
    assert open_flows(pool, 2) == [TWO]


def test_full_primaries_overflow_into_the_backups() -> None:
    pool = make_pool(service())
    backups = limited(2, THREE, role=Role.BACKUP)
    update(pool, service(*limited(2, ONE, TWO), *backups, *role("sorry", FOUR)))
    assert Counter(open_flows(pool, 8)) == {ONE: 2, TWO: 2, THREE: 2, FOUR: 2}


def test_a_full_member_is_no_reason_to_break_persistence_for_others() -> None:
    pool = make_pool(sticky(service()))
    update(pool, sticky(service(*limited(2, ONE), TWO)))
    assert picks(pool, 2) == [ONE, ONE]
    pool.members[backend(ONE).endpoint].active = 2
    assert picks(pool, 2) == [TWO, TWO]


def ramping(pool: Pool, scheduler: str, *others: str) -> None:
    risen = backend(THREE, ramp=Ramp(since=100.0, duration=100.0))
    update(pool, service(*others, risen, scheduler=scheduler))


def shares_of_the_risen(pool: Pool, moments: Sequence[float]) -> list[int]:
    """In per cent, of 600 flows at each moment."""
    found = []
    for moment in moments:
        members = [pool.pick(flow_of(number), int(moment * 10)) for number in range(600)]
        risen = sum(member is not None and str(member.endpoint) == THREE for member in members)
        found.append(round(risen / 6))
    return found


def flow_of(number: int) -> NewFlow:
    return NewFlow(6, 4, 0x0A000001 + number, 40000, 0xC000020A, 80)


def test_a_ramp_is_a_share_that_grows() -> None:
    pool = make_pool(service())
    ramping(pool, "round-robin", ONE, TWO)
    shares = shares_of_the_risen(pool, [100, 110, 125, 150, 175, 200, 300])
    wanted = [0, 3, 8, 17, 25, 33, 33]
    assert all(abs(share - target) <= 4 for share, target in zip(shares, wanted, strict=True))
    assert shares == sorted(shares)
    assert shares[0] == 0


@pytest.mark.parametrize("scheduler", ["least-connections", "weighted-least-connections"])
def test_a_ramp_keeps_the_idle_member_from_getting_all(scheduler: str) -> None:
    pool = make_pool(service())
    ramping(pool, scheduler, ONE, TWO)
    for endpoint in (ONE, TWO):
        pool.members[backend(endpoint).endpoint].active = 100
    assert shares_of_the_risen(pool, [110, 150]) == [10, 50]


@pytest.mark.parametrize("scheduler", BUILT_INS)
def test_a_single_member_in_its_ramp_gets_all_flows(scheduler: str) -> None:
    pool = make_pool(service(scheduler=scheduler))
    ramping(pool, scheduler)
    assert shares_of_the_risen(pool, [100]) == [100]
    # Those that are full don't count as others.
    ramping(pool, scheduler, ONE)
    update(pool, service(*limited(0, ONE), *pool.service.backends[1:], scheduler=scheduler))
    assert shares_of_the_risen(pool, [100]) == [100]


@pytest.mark.parametrize("scheduler", ["source-hash", "five-tuple-hash", "maglev"])
def test_consistent_placement_knows_no_ramp(scheduler: str) -> None:
    pool = make_pool(service(scheduler=scheduler))
    ramping(pool, scheduler, ONE, TWO)
    first = [pool.pick(flow_of(number), 1000) for number in range(200)]
    assert first == [pool.pick(flow_of(number), 9999) for number in range(200)]
    assert first == [pool.consistent_choice(flow_of(number)) for number in range(200)]


@pytest.mark.parametrize("scheduler", ["source-hash", "five-tuple-hash", "maglev"])
def test_overflow_of_consistent_placement_moves_no_other_flow(scheduler: str) -> None:
    """Where it goes instead is the same each time, and spreads."""
    pool = make_pool(service(scheduler=scheduler))
    update(pool, service(*limited(1, ONE), TWO, THREE, FOUR, scheduler=scheduler))
    flows = [flow_of(number) for number in range(400)]
    before = [pool.pick(flow, 0) for flow in flows]
    full = pool.members[backend(ONE).endpoint]
    full.active = 1
    after = [pool.pick(flow, 0) for flow in flows]
    assert [pool.pick(flow, 0) for flow in flows] == after
    moved = Counter(
        str(new.endpoint)
        for old, new in zip(before, after, strict=True)
        if new is not None and (old is full or old is not new)
    )
    assert sum(moved.values()) == before.count(full)
    assert moved.keys() == {TWO, THREE, FOUR}
    # A connection that is under way is where it would have gone without the limit.
    assert [pool.consistent_choice(flow) for flow in flows] == before


def test_a_hash_scheduler_gets_its_options_and_is_made_anew_if_they_change() -> None:
    wanted = service(ONE, TWO, scheduler="maglev")
    pool = make_pool(wanted)
    update(pool, wanted)
    assert pool.adopts
    (plain,) = pool.schedulers
    by_client = replace(wanted, hash_on=(HashPart(HashField.SRC),))
    update(pool, by_client)
    assert pool.adopts
    assert pool.schedulers != [plain]
    ports = (NewFlow(6, 4, 0x0A000001, port, 0xC000020A, 80) for port in range(1024, 1074))
    assert len({pool.pick(flow, 0) for flow in ports}) == 1
    update(pool, replace(by_client, hash_balance=125))
    # Other balancers' picks depend on their own flows.
    assert not pool.adopts
    update(pool, replace(by_client, hash_balance=125, scheduler="round-robin"))
    assert not pool.adopts


def test_schedulers_see_labels() -> None:
    labelled = replace(backend(ONE), labels=(Label("zone", "a"), Label("rack", "r7")))
    pool = make_pool(service(labelled, TWO))
    update(pool, service(labelled, TWO))
    one, two = pool.members.values()
    assert (one.labels, two.labels) == ({"zone": "a", "rack": "r7"}, {})
    update(pool, service(replace(labelled, labels=(Label("zone", "b"),)), TWO))
    assert one.labels == {"zone": "b"}
