"""Trials of canaries: what is counted, and when one has failed."""

from dataclasses import replace
from math import isnan

import pytest

from featherlb.config.canary import DEFAULT_CONDITION, condition
from featherlb.config.file import parse
from featherlb.config.writer import write
from featherlb.control.canary import ENOUGH, Trial, unseen
from featherlb.control.overrides import Action, Canary, Override, add, applicable, with_overrides
from featherlb.core.path.export import BackendStats
from featherlb.model import Datapath, Endpoint
from featherlb.model.errors import ConfigError
from tests.world import ONE, TWO, World, backend, service

CANARY = {Endpoint.parse(TWO)}


def trial(text: str = "failures > 2 * others") -> Trial:
    return Trial(Canary(50, 1e9, condition(text)))


def served() -> tuple[BackendStats, ...]:
    """Of a backend, and a canary."""
    return World(service(backend(ONE), backend(TWO, canary=50))).statistics().backends


def with_counts(
    flows: int, own: dict[str, int] | None = None, others: dict[str, int] | None = None
) -> tuple[BackendStats, ...]:
    """So many flows of each backend, and other counters."""
    first, canary = served()
    return (
        replace(first, flows=flows, **(others or {})),  # type: ignore[arg-type]
        replace(canary, flows=flows, **(own or {})),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("own", "others", "fails"),
    [
        ({}, {}, False),
        ({"refused": 1}, {}, True),
        ({"refused": 2}, {"refused": 1}, False),
        ({"refused": 2, "syn_timeouts": 1}, {"refused": 1}, True),
        ({"moved_silent": 3, "syn_timeouts": 2}, {"syn_timeouts": 1}, True),
        ({"moved_silent": 2, "syn_timeouts": 2}, {"syn_timeouts": 1}, False),
        ({"resets": 9}, {}, False),
    ],
)
def test_failures_are_compared_per_flow(
    own: dict[str, int], others: dict[str, int], fails: bool
) -> None:
    watched = trial()
    watched.take({0: with_counts(0)}, "web", CANARY)
    watched.take({0: with_counts(100, own, others)}, "web", CANARY)
    assert bool(watched.failure(1.0)) is fails


def test_it_says_what_it_has_measured() -> None:
    watched = trial("failures > 2 * others or latency > 0.5")
    watched.take({0: with_counts(0)}, "web", CANARY)
    watched.take({0: with_counts(100, {"refused": 31}, {"refused": 1})}, "web", CANARY)
    assert watched.failure(1.0) == (
        "failures > 2 * others or latency > 0.5: failures 31 % (others 1 %),"
        " latency unknown (others unknown), 100 flows"
    )


def test_few_flows_say_nothing() -> None:
    watched = trial()
    few = ENOUGH - 1
    watched.take({0: with_counts(few, {"refused": few})}, "web", CANARY)
    assert watched.failure(1.0) == ""
    # The others had theirs before the trial: there is nothing to compare with yet.
    first, _ = with_counts(few)
    _, canary = with_counts(ENOUGH, {"refused": few})
    watched.take({0: (first, canary)}, "web", CANARY)
    assert isnan(watched.others.metrics()["failures"])
    assert watched.failure(1.0) == ""
    watched.take({0: (replace(first, flows=ENOUGH), canary)}, "web", CANARY)
    assert watched.failure(2.0)


def test_workers_are_added_up_and_may_be_replaced() -> None:
    watched = trial()
    watched.take({0: with_counts(10), 1: with_counts(5)}, "web", CANARY)
    assert (watched.own.flows, watched.others.flows) == (15, 0)
    watched.take({0: with_counts(12)}, "web", CANARY)  # worker 1 has died
    watched.take({0: with_counts(12), 1: with_counts(3)}, "web", CANARY)  # its successor
    assert (watched.own.flows, watched.others.flows) == (20, 5)
    other = replace(with_counts(50)[1], service="mail")
    watched.take({0: (*with_counts(12), other), 1: with_counts(3)}, "web", CANARY)
    assert watched.own.flows == 20


def test_a_datapath_counts_what_it_sees() -> None:
    wanted = condition(f"{DEFAULT_CONDITION} or retransmissions > others")
    offloaded = service(ONE, datapath=Datapath.OFFLOAD)
    assert unseen(service(ONE), wanted) == ""
    assert unseen(offloaded, wanted) == "retransmissions"
    assert unseen(offloaded, condition(DEFAULT_CONDITION)) == ""
    slow = condition("latency > 2 * others")
    assert unseen(offloaded, slow) == "latency"
    assert unseen(replace(offloaded, measured=True), slow) == ""


CONFIG = parse(
    "services:\n- {name: web, vip: 10.0.0.10:80, backends: ['a:1', 'b:1']}"
    "\n- {name: idle, vip: 10.0.0.10:81}",
    "lb.yaml",
)


def adding(host: str, share: float, name: str = "web") -> Override:
    canary = Canary(share, 5.0, condition(DEFAULT_CONDITION))
    return Override(0, Action.ADD, name, (host, 1, 0), 3, canary=canary)


def test_a_canary_is_a_backend_with_a_share_until_it_is_promoted() -> None:
    overrides = add(CONFIG, (), adding("c", 5))
    assert applicable(CONFIG, overrides) == overrides
    *_, last = with_overrides(CONFIG, overrides).services[0].backends
    assert (last.host, last.weight, last.canary) == ("c", 3, 5)
    promoted = replace(overrides[0], canary=None)
    assert "canary" not in write(with_overrides(CONFIG, [promoted]))
    *_, last = with_overrides(CONFIG, [promoted]).services[0].backends
    assert (last.host, last.weight, last.canary) == ("c", 3, 0)


def test_canaries_leave_half_of_the_flows_to_the_others() -> None:
    overrides = add(CONFIG, (), adding("c", 30))
    with pytest.raises(ConfigError, match=r"a canary can get 50 % .*, of which .* have 30 %"):
        add(CONFIG, overrides, adding("d", 21))
    assert len(add(CONFIG, overrides, adding("d", 20))) == 2
    with pytest.raises(ConfigError, match="'idle' has no other backend to compare a canary with"):
        add(CONFIG, (), adding("c", 5, "idle"))
