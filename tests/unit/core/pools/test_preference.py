"""prefer: some backends of a role before the others, with spill-over."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherlb.core.pools.explain import explain
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import Member, NewFlow
from featherlb.model import HashField, HashPart, Label, Persistence, Preference, Role, Service
from tests.unit.core.pools.schedulers.test_registry import BUILT_INS
from tests.world import backend, service

ZONE_A, ZONE_B = Label("zone", "a"), Label("zone", "b")
SPREADING = "round-robin", "maglev"


def flow_of(number: int, port: int = 40000) -> NewFlow:
    return NewFlow(6, 4, 0x0A000001 + number, port, 0xC000020A, 80)


def zones(a: Sequence[str], b: str, scheduler: str = "round-robin", below: int = 70) -> Service:
    """Backends of two zones, of which a is preferred: `u` is up, `d` down, `0` drained."""
    backends = [
        backend(
            f"10.{zone}.0.{number}:80",
            int(state == "u"),
            labels=(label, Label("rack", str(number))),
            down=state == "d",
            missing=state == "d",
        )
        for zone, label, states in ((1, ZONE_A, a), (2, ZONE_B, b))
        for number, state in enumerate(states, 1)
    ]
    made = service(*backends, scheduler=scheduler)
    return replace(made, prefer=Preference((ZONE_A,), below))


def pool_of(wanted: Service) -> Pool:
    pool = Pool(wanted, seed=1, key=b"")
    serve(pool, wanted)
    return pool


def serve(pool: Pool, wanted: Service) -> None:
    pool.update(wanted, lambda one: Member(one, 0))


def zone_of(member: Member | None) -> str:
    return member.labels["zone"] if member else "-"


@pytest.mark.parametrize(
    ("a", "below", "share"),
    [
        ("uu", 70, 1.0),
        ("ud", 70, 50 / 70),
        ("uud", 70, 2 / 3 / 0.7),
        ("uuud", 70, 1.0),
        ("ud0", 70, 50 / 70),
        ("u0", 70, 1.0),
        ("ud", 100, 0.5),
        ("uddd", 0, 1.0),
        ("dd", 0, 0.0),
        ("0", 70, 0.0),
    ],
)
@pytest.mark.parametrize("scheduler", SPREADING)
def test_the_share_that_stays(a: str, below: int, share: float, scheduler: str) -> None:
    pool = pool_of(zones(a, "uu", scheduler, below))
    counted = Counter(zone_of(pool.pick(flow_of(number), 0)) for number in range(4000))
    assert counted["a"] / 4000 == pytest.approx(share, abs=0.04)
    assert counted["b"] == 4000 - counted["a"]


@pytest.mark.parametrize("scheduler", BUILT_INS)
def test_preferred_backends_take_all_while_they_have_room(scheduler: str) -> None:
    wanted = zones("u", "u", scheduler)
    (near, far) = wanted.backends
    spare = backend("10.3.0.1:80", role=Role.BACKUP, labels=(ZONE_A,))
    pool = pool_of(replace(wanted, backends=(far, replace(near, max_connections=2), spare)))
    picked = []
    for _ in range(3):
        picked.append(pool.pick(flow_of(1), 0))
        assert picked[-1] is not None
        picked[-1].active += 1
    assert list(map(zone_of, picked)) == ["a", "a", "b"]
    # The backup is preferred among backups alone.
    assert picked[-1] is pool.members[far.endpoint]


@pytest.mark.parametrize("scheduler", SPREADING)
def test_nothing_is_refused_while_anybody_has_room(scheduler: str) -> None:
    wanted = zones("ud", "u", scheduler)
    limited = tuple(replace(one, max_connections=10) for one in wanted.backends)
    pool = pool_of(replace(wanted, backends=limited))
    for number in range(20):
        member = pool.pick(flow_of(number), 0)
        assert member is not None
        member.active += 1
    assert pool.pick(flow_of(20), 0) is None


@given(st.lists(st.sampled_from("ud0"), min_size=1, max_size=5), st.integers(0, 4))
def test_a_spilled_flow_returns_and_the_others_do_not_move(states: list[str], rising: int) -> None:
    """A change of one preferred backend moves flows in one direction only."""
    after = [*states]
    after[rising % len(states)] = "u"
    before, better = (pool_of(zones(one, "uu", "five-tuple-hash")) for one in (states, after))
    for number in range(50):
        was, now = (zone_of(pool.pick(flow_of(number), 0)) for pool in (before, better))
        assert (was, now) in {("a", "a"), ("b", "b"), ("b", "a")}


def test_consistent_pools_agree_on_what_spills_and_adopt_it() -> None:
    one, other = (pool_of(zones("ud", "uu", "maglev")) for _ in range(2))
    assert one.adopts
    spilled = 0
    for number in range(300):
        member, same = one.pick(flow_of(number), 0), other.consistent_choice(flow_of(number))
        assert member is not None
        assert same is not None
        assert member.endpoint == same.endpoint
        spilled += zone_of(member) == "b"
    assert 50 < spilled < 130


def test_a_client_spills_as_a_whole_where_clients_are_hashed() -> None:
    by_client = (HashPart(HashField.SRC),)
    for wanted in (
        zones("ud", "uu", "source-hash"),
        replace(zones("ud", "uu", "maglev"), hash_on=by_client),
    ):
        pool = pool_of(wanted)
        for client in range(50):
            picked = {pool.pick(flow_of(client, port), 0) for port in range(1024, 1040)}
            assert len(picked) == 1


def test_a_bound_client_stays_where_it_is() -> None:
    bound = Persistence(100.0, 32)
    pool = pool_of(replace(zones("d", "u"), persistence=bound))
    assert zone_of(pool.pick(flow_of(1), 0)) == "b"
    serve(pool, replace(zones("u", "u"), persistence=bound))
    assert zone_of(pool.pick(flow_of(1), 10)) == "b"
    assert zone_of(pool.pick(flow_of(2), 10)) == "a"


def test_a_preference_comes_and_goes_without_losing_members() -> None:
    wanted = zones("u", "u")
    pool = pool_of(replace(wanted, prefer=None))
    members = {**pool.members}
    assert {zone_of(pool.pick(flow_of(1), 0)) for _ in range(2)} == {"a", "b"}
    steps = [(wanted.prefer, {"a"}), (Preference((ZONE_B,)), {"b"}), (None, {"a", "b"})]
    for prefer, expected in steps:
        serve(pool, replace(wanted, prefer=prefer))
        assert {zone_of(pool.pick(flow_of(1), 0)) for _ in range(4)} == expected
        assert pool.members == members


def test_an_empty_pool_with_a_preference() -> None:
    pool = pool_of(zones("", ""))
    assert pool.pick(flow_of(1), 0) is None
    assert not pool.usable
    assert explain(pool, flow_of(1), 0).backend is None


def test_the_reasons() -> None:
    pool = pool_of(zones("uu", "u"))
    (reason,) = explain(pool, flow_of(1), 0).reasons
    assert reason.startswith("primary, preferred: round-robin picks 10.1.0.1:80, as ")
    pool = pool_of(zones("ud", "u"))
    seen = set()
    for number in range(40):
        told = explain(pool, flow_of(number), 0)
        picked = pool.pick(flow_of(number), 0)
        assert picked is not None
        assert told.backend == picked.endpoint
        split, reason = told.reasons
        seen.add((split, reason.partition(":")[0]))
    text = "prefer: backends that are preferred are down, so the rest take 71 % of the flows; this one goes to"  # noqa: E501
    assert seen == {
        (f"{text} preferred ones first", "primary, preferred"),
        (f"{text} others first", "primary, not preferred"),
    }
