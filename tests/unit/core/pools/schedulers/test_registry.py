from collections.abc import Sequence

import pytest

from featherlb.core.pools import schedulers as package
from featherlb.core.pools.schedulers import (
    Member,
    NewFlow,
    Scheduler,
    UserScheduler,
    canonical_name,
    create,
    names,
    register,
    scheduler,
)
from tests.unit.core.pools.schedulers.pools import FLOW, KEY, make_pool

BUILT_INS = [
    "destination-hash",
    "failover",
    "first",
    "five-tuple-hash",
    "least-connections",
    "maglev",
    "never-queue",
    "overflow",
    "random",
    "round-robin",
    "source-hash",
    "two-choices",
    "weighted-least-connections",
    "weighted-round-robin",
]


def pick_last(flow: NewFlow, backends: Sequence[Member]) -> Member:
    return backends[-1]


def test_all_built_ins_are_registered() -> None:
    assert [name for name in names() if name in BUILT_INS] == BUILT_INS


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("rr", "round-robin"),
        ("roundrobin", "round-robin"),
        ("Round_Robin", "round-robin"),
        ("wrr", "weighted-round-robin"),
        ("lc", "least-connections"),
        ("leastconn", "least-connections"),
        ("wlc", "weighted-least-connections"),
        ("sed", "weighted-least-connections"),
        ("nq", "never-queue"),
        ("fo", "failover"),
        ("ovf", "overflow"),
        ("dh", "destination-hash"),
        ("random", "random"),
        ("p2c", "two-choices"),
        ("twos", "two-choices"),
        ("sh", "source-hash"),
        ("iphash", "source-hash"),
        ("ip-hash", "source-hash"),
        ("5-tuple", "five-tuple-hash"),
        ("hash", "five-tuple-hash"),
        ("MH", "maglev"),
    ],
)
def test_other_names_are_understood(spelling: str, name: str) -> None:
    assert canonical_name(spelling) == name
    assert create(spelling, seed=1, key=KEY).name == name


def test_only_hashes_are_consistent() -> None:
    consistent = {name for name in BUILT_INS if create(name, seed=1, key=KEY).consistent}
    assert consistent == {"destination-hash", "five-tuple-hash", "maglev", "source-hash"}


def test_an_unknown_name_is_answered_with_the_known_and_the_closest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown scheduler 'maglv', did you mean 'maglev'\?"
    ) as e:
        canonical_name("maglv")
    assert all(name in str(e.value) for name in BUILT_INS)
    with pytest.raises(ValueError, match=r"unknown scheduler 'zzz' \(known: "):
        create("zzz", seed=1, key=KEY)


def test_two_built_ins_cannot_share_a_name() -> None:
    class Impostor(Scheduler):
        name = "impostor"
        aliases = ("rr",)

    with pytest.raises(ValueError, match="'rr' names both impostor and round-robin"):
        register(Impostor)


def test_a_custom_function_is_registered_under_its_name() -> None:
    scheduler("last")(pick_last)
    assert names()[-1] == "last"
    made = create("last", seed=1, key=KEY)
    pool = make_pool(1, 1, 0)
    made.update(pool)
    assert made.pick(FLOW) is pool[1]
    assert made.name == "last"
    assert not made.consistent


def test_a_custom_class_is_registered_and_keeps_its_consistency() -> None:
    @scheduler("mine")
    class Mine(package.round_robin.RoundRobin):
        consistent = True

    made = create("mine", seed=1, key=KEY)
    assert isinstance(made, UserScheduler)
    assert made.consistent


def test_a_reload_replaces_a_user_scheduler() -> None:
    pool = make_pool(1, 1)
    for position in (0, 1):
        scheduler("mine")(lambda flow, backends, position=position: backends[position])
        made = create("mine", seed=1, key=KEY)
        made.update(pool)
        assert made.pick(FLOW) is pool[position]


def test_built_ins_cannot_be_replaced() -> None:
    for name in ("round-robin", "rr"):
        with pytest.raises(ValueError, match="name of a built-in"):
            scheduler(name)


def test_a_file_reference_is_a_name_that_must_be_loaded_first() -> None:
    assert canonical_name("./my_sched.py:pick") == "./my_sched.py:pick"
    with pytest.raises(ValueError, match=r"'\./my_sched\.py:pick' has not been loaded"):
        create("./my_sched.py:pick", seed=1, key=KEY)
    with pytest.raises(ValueError, match="names no class or function of the file"):
        canonical_name("./my_sched.py")
    for wrong in ("my_sched:pick", "./my_sched.py:", "./my_sched.py:a b"):
        with pytest.raises(ValueError, match="unknown scheduler"):
            canonical_name(wrong)


def test_every_scheduler_is_a_scheduler() -> None:
    assert all(isinstance(create(name, seed=1, key=KEY), Scheduler) for name in names())
