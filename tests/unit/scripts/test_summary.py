"""Medians, spreads, and ratios by pairs."""

from scripts.bench.figures import Figure
from scripts.bench.summary import Spread, by_round, ratios, spread
from tests.unit.scripts.samples import sample

RATE = Figure("rate", "keepalive-64", lambda sample: sample.rate)
MEMORY = Figure("memory", None, lambda sample: sample.pss)


def test_a_spread_has_median_and_both_ends() -> None:
    assert spread([3.0, 10.0, 1.0]) == Spread(3.0, 1.0, 10.0)
    assert spread([3.0, 1.0]) == Spread(2.0, 1.0, 3.0)
    assert spread([]) is None


def test_a_figure_reads_its_own_peer_and_workload_only() -> None:
    samples = [
        sample(rate=100.0),
        sample(round=2, rate=200.0),
        sample(peer="nginx", rate=300.0),
        sample(workload="connect-64", rate=400.0),
    ]
    assert by_round(samples, "haproxy", RATE) == {1: 100.0, 2: 200.0}


def test_a_figure_of_all_workloads_takes_the_largest_of_a_round() -> None:
    samples = [sample(pss=5), sample(workload="connect-64", pss=9), sample(round=2, pss=7)]
    assert by_round(samples, "haproxy", MEMORY) == {1: 9, 2: 7}


def test_what_a_sample_does_not_have_is_left_out() -> None:
    latency = Figure("p99", "bulk-reply-1", lambda sample: sample.p99)
    assert by_round([sample(workload="bulk-reply-1", p99=None)], "haproxy", latency) == {}


def test_ratios_are_taken_within_a_round() -> None:
    # The machine was twice as fast in the second round: the ratio of the pairs doesn't see it.
    assert ratios({1: 50.0, 2: 100.0}, {1: 100.0, 2: 200.0}) == [0.5, 0.5]


def test_a_round_without_a_partner_has_no_ratio() -> None:
    assert ratios({1: 50.0, 2: 100.0, 3: 1.0}, {2: 50.0, 3: 0.0}) == [2.0]
