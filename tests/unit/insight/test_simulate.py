"""insight/simulate.py: the real pools on generated flows."""

from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from featherlb.config.file import parse
from featherlb.core.pools.schedulers import scheduler
from featherlb.insight.simulate import Load, Simulation, jain, read_change, simulate
from featherlb.model import Address
from featherlb.model.errors import ConfigError
from tests.unit.core.pools.schedulers.test_all import SPREADING

ONE, TWO, THREE, FOUR = (f"10.0.1.{number}:8080" for number in range(2, 6))
EQUAL = f"    backends: [{ONE}, {TWO}, {THREE}, {FOUR}]\n"

CONSISTENT = ["five-tuple-hash", "maglev", "source-hash"]


def unknown(name: str) -> Sequence[Address]:
    return []


def run(
    pool: str,
    *schedulers: str,
    changes: Sequence[str] = (),
    flows: int = 4000,
    clients: str = "10.0.0.0/16",
    rate: float = 1000,
    duration: float = 1,
    seed: int = 1,
    more: str = "",
) -> Simulation:
    config = parse(f"{more}services:\n  - name: web\n    vip: 192.0.2.10:80\n{pool}", "test")
    load = Load(ip_network(clients), flows, rate, duration, seed)
    return simulate(config, "web", load, schedulers, changes, unknown)


def shares(result: Simulation, trial: int = 0) -> list[float]:
    return [one.share for one in result.trials[trial].shares]


@pytest.mark.parametrize("name", SPREADING)
def test_every_scheduler_gives_equal_backends_equal_shares(name: str) -> None:
    result = run(EQUAL, name, changes=[f"remove {ONE}"])
    assert shares(result) == pytest.approx([0.25] * 4, abs=0.03)
    (trial,) = result.trials
    assert sum(one.flows for one in trial.shares) == 4000
    assert [one.wanted for one in trial.shares] == [0.25] * 4
    assert trial.fairness == pytest.approx(1, abs=0.01)
    assert (trial.refused, trial.errors, trial.first_error) == (0, 0, None)
    # Whoever loses its backend has to move.
    nothing, removal = trial.moves
    assert (nothing.change, removal.change) == ("no change", f"remove {ONE}")
    assert removal.flows >= trial.shares[0].share
    assert removal.least == 0.25


@pytest.mark.parametrize("name", CONSISTENT)
def test_what_a_consistent_scheduler_moves_is_close_to_the_minimum(name: str) -> None:
    changes = [f"remove {TWO}", "add 10.0.1.9:8080", f"weight {TWO} 4", f"drain {TWO}"]
    (trial,) = run(EQUAL, name, changes=changes).trials
    nothing, *moves = trial.moves
    assert (nothing.flows, nothing.clients, nothing.least) == (0, 0, 0)
    assert [round(move.least, 3) for move in moves] == [0.25, 0.2, 0.321, 0.25]
    for move in moves:
        assert move.flows == pytest.approx(move.least, abs=0.03)
        assert move.clients >= move.flows or name == "source-hash"


def test_round_robin_moves_most_flows_even_if_nothing_changes() -> None:
    (trial,) = run(EQUAL, "round-robin").trials
    assert trial.moves[0].flows == pytest.approx(0.75, abs=0.05)


def test_weights_are_wanted_and_schedulers_that_ignore_them_are_unfair() -> None:
    pool = f"    backends: [{ONE}, {{address: '{TWO}', weight: 3}}]\n"
    result = run(pool, "wrr", "rr")
    assert shares(result, 0) == [0.25, 0.75]
    assert shares(result, 1) == [0.5, 0.5]
    heavy = result.trials[1].shares[1]
    assert (heavy.weight, heavy.wanted) == (3, 0.75)
    assert heavy.deviation == pytest.approx(-1 / 3)
    # Flows per weight are 2 and 2/3 of a quarter each: (2 + 2/3)² / (2 · (4 + 4/9)).
    assert [round(trial.fairness, 4) for trial in result.trials] == [1.0, 0.8]


def test_clients_of_source_hash_and_of_persistence_stay_on_one_backend() -> None:
    result = run(EQUAL, "source-hash", "round-robin", clients="10.0.0.0/24")
    assert [trial.one_backend for trial in result.trials] == [1.0, 0.0]
    (trial,) = run(f"    persistence: {{}}\n{EQUAL}", "rr", clients="10.0.0.0/24").trials
    assert trial.one_backend == 1.0
    nothing, removal = trial.moves[:2]
    assert nothing.flows == 0
    # Only the clients of the backend that left have another one.
    assert removal.clients == pytest.approx(0.25, abs=0.05)
    assert run(EQUAL, "rr", flows=1).trials[0].one_backend is None


def test_limits_spill_over_to_the_others_then_to_the_backup_and_then_refuse() -> None:
    pool = (
        f"    backends:\n      - {{address: '{ONE}', max_connections: 5}}\n"
        f"      - {{address: '{TWO}', max_connections: 3, role: backup}}\n"
    )
    (trial,) = run(pool, "rr", flows=100, duration=10_000).trials
    assert [one.flows for one in trial.shares] == [5, 3]
    assert [one.wanted for one in trial.shares] == [1.0, 0.0]
    assert trial.shares[1].deviation is None
    assert trial.refused == 92


def test_conditions_for_clients_refuse_as_in_an_instance() -> None:
    """Half of the clients are denied; of the others, each opens one flow a second at most."""
    limits = "    deny: 10.0.0.0/25\n    max_new: {rate: 1/s, burst: 1}\n"
    (trial,) = run(limits + EQUAL, "rr", clients="10.0.0.0/24", rate=1000, duration=1).trials
    # 4,000 flows in 4 s.
    assert 4000 - trial.refused == pytest.approx(127 * 4, rel=0.2)
    # As many have one open as there are clients; the others wait for its end.
    (trial,) = run("    max_flows: 1\n" + EQUAL, "rr", clients="10.0.0.0/24", duration=1000).trials
    assert 4000 - trial.refused == pytest.approx(254, rel=0.05)


def test_workers_divide_flows_and_limits_as_they_do_in_an_instance() -> None:
    pool = f"    backends: [{{address: '{ONE}', max_connections: 5}}]\n"
    (trial,) = run(pool, "rr", flows=200, duration=10_000, more="workers: 2\n").trials
    assert trial.shares[0].flows == 5
    result = run(
        f"    persistence: {{}}\n{EQUAL}", "rr", clients="10.0.0.0/28", more="workers: 2\n"
    )
    # A client's address leads to one worker, which remembers its backend.
    assert result.trials[0].one_backend == 1.0
    assert result.workers == 2


def test_the_same_seed_gives_the_same_flows_and_another_one_others() -> None:
    first, same, other = (run(EQUAL, "random", seed=seed) for seed in (1, 1, 2))
    assert first.trials[0].shares == same.trials[0].shares
    assert first.trials[0].moves == same.trials[0].moves
    assert first.trials[0].shares != other.trials[0].shares


def test_custom_schedulers_run_beside_the_built_in_ones(tmp_path: Path) -> None:
    @scheduler("test-heavy")
    def pick(flow: object, backends: Sequence[object]) -> object:
        return backends[0]

    @scheduler("test-broken")
    def fail(flow: object, backends: Sequence[object]) -> object:
        raise RuntimeError("no idea")

    result = run(EQUAL, "test-heavy", "test-broken", "rr")
    assert shares(result) == [1, 0, 0, 0]
    assert result.trials[0].fairness == 0.25
    assert result.trials[1].errors >= 4000
    assert "no idea" in str(result.trials[1].first_error)
    assert result.trials[2].errors == 0


def test_names_without_an_address_have_a_stand_in() -> None:
    result = run("    backends: ['one.example:80', 'two.example:80']\n", "maglev")
    assert result.stand_ins == {"one.example": "198.18.0.1", "two.example": "198.18.0.2"}
    assert shares(result) == pytest.approx([0.5, 0.5], abs=0.03)


def test_names_with_an_address_keep_it() -> None:
    config = parse("services:\n- vip: 192.0.2.1:80\n  backends: ['one.example:80']\n", "test")
    load = Load(ip_network("10.0.0.0/24"), 10, 10, 1, 1)
    found = [ip_address("2001:db8::1"), ip_address("10.9.9.9")]
    result = simulate(config, "192.0.2.1:80/tcp", load, ["rr"], [], lambda _: found)
    assert [one.backend for one in result.trials[0].shares] == ["10.9.9.9:80"]


def test_ipv6() -> None:
    config = parse("services:\n- vip: '[fd00::1]:53'\n  protocol: udp\n"
                   "  backends: ['[fd00:1::1]:53', '[fd00:1::2]:53']\n", "test")  # fmt: skip
    load = Load(ip_network("fd00:2::/64"), 500, 10, 1, 1)
    result = simulate(config, config.services[0].name, load, ["sh"], [], unknown)
    assert shares(result) == pytest.approx([0.5, 0.5], abs=0.1)
    assert [move.change for move in result.trials[0].moves] == [
        "no change",
        "remove [fd00:1::1]:53",
        "add [fd00:1::3]:53 1",
        "weight [fd00:1::1]:53 2",
    ]


def test_what_does_not_fit_is_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"can't reach the VIP 192\.0\.2\.10:80: choose an IPv4"):
        run(EQUAL, "rr", clients="fd00::/64")
    with pytest.raises(ConfigError, match="'web' has no backend with a weight"):
        run("    backends: []\n", "rr")
    with pytest.raises(ConfigError, match=r"'web' has no backend 10\.9\.9\.9:1 "):
        run(EQUAL, "rr", changes=["remove 10.9.9.9:1"])


@pytest.mark.parametrize(
    "text",
    ["", "remove", "move 10.0.0.1:80", "remove 10.0.0.1:80 3", "weight 10.0.0.1:80", "drain x:y",
     "weight 10.0.0.1:80 -1", "weight 10.0.0.1:80 99999", "enable 10.0.0.1:80"],
)  # fmt: skip
def test_a_change_that_makes_no_sense(text: str) -> None:
    with pytest.raises(ConfigError, match="is no change"):
        read_change(text, "web")


def test_jains_index() -> None:
    assert jain([3, 3, 3]) == 1
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([]) == jain([0, 0]) == 1
    # Equal parts for k of n: k/n.
    assert jain([1, 1, 1, 0, 0]) == pytest.approx(0.6)
