"""How long backends take to answer, and what a scheduler is to expect of them."""

import math

import pytest

from featherlb.core.pools.latency import UPPER_BOUNDS, Latencies

# Compiled, the module's constants can't be seen.
FAILURE, LEAST_COST, SLOTS, TAU = 1.0, 5e-5, 8192, 2.0


def latencies(*samples: tuple[float, float], member: int = 0) -> Latencies:
    """Of a member that took so long at these times."""
    found = Latencies()
    found.begin(member)
    for now, seconds in samples:
        found.take(member, seconds, now)
    return found


def test_nothing_is_known_at_first() -> None:
    one = latencies()
    assert (one.cost(0), one.smoothed(0), one.histogram(0), one.total(0)) == (0, None, (), 0)


def test_an_answer_is_timed_once() -> None:
    one = latencies()
    one.sent(7, 100.0)
    one.answered(8, 0, 100.5)
    assert one.total(0) == 0
    one.answered(7, 0, 100.25)
    one.answered(7, 0, 101.0)
    assert one.total(0) == 250_000
    assert one.smoothed(0) == pytest.approx(0.25)


def test_a_flow_that_takes_the_place_of_another_is_timed_instead() -> None:
    one = latencies()
    one.sent(5, 1.0)
    one.sent(5 + SLOTS, 2.0)
    one.answered(5, 0, 3.0)
    assert one.histogram(0) == ()
    one.answered(5 + SLOTS, 0, 3.0)
    assert one.total(0) == 1_000_000


def test_each_bucket_has_what_is_up_to_its_bound() -> None:
    for bucket, bound in enumerate(UPPER_BOUNDS):
        one = latencies((1.0, bound), (1.0, bound * 1.01))
        wanted = [0] * (len(UPPER_BOUNDS) + 1)
        wanted[bucket] = wanted[bucket + 1] = 1
        assert one.histogram(0) == tuple(wanted)


def test_a_clock_that_stood_still_counts_as_the_shortest_time() -> None:
    one = latencies()
    one.sent(3, 50.0)
    one.answered(3, 0, 49.0)
    assert one.histogram(0)[0] == 1
    assert one.smoothed(0)


def test_the_cost_rises_at_once_and_falls_slowly() -> None:
    one = latencies((0.0, 0.001), (1.0, 0.03))
    assert one.cost(0) == pytest.approx(0.03)
    one.take(0, 0.001, 1.0 + TAU)
    assert one.cost(0) == pytest.approx(0.03 / math.e + 0.001 * (1 - 1 / math.e))
    assert one.smoothed(0) == pytest.approx((0.001 * 7 + 0.03) / 8 * 7 / 8 + 0.001 / 8)


def test_the_cost_fades_without_answers() -> None:
    one = latencies((0.0, 0.03))
    one.now = TAU
    assert one.cost(0) == pytest.approx(0.03 / math.e)
    one.now = 100 * TAU
    assert one.cost(0) == LEAST_COST
    # The next answer is believed.
    one.take(0, 0.002, one.now)
    assert one.cost(0) == pytest.approx(0.002)


def test_a_failure_costs_as_much_as_a_retransmission() -> None:
    one = latencies((0.0, 0.0002))
    one.failed(0)
    assert one.cost(0) == FAILURE
    assert one.smoothed(0) == pytest.approx(0.0002)
    assert sum(one.histogram(0)) == 1


def test_numbers_that_are_used_again_begin_anew_and_others_keep_what_is_known() -> None:
    one = latencies((0.0, 0.5), member=3)
    one.begin(300)
    one.take(300, 0.1, 1.0)
    one.begin(3)
    assert (one.cost(3), one.total(3), one.histogram(3)) == (0, 0, ())
    one.begin(4)
    assert one.smoothed(300) == pytest.approx(0.1)
    assert one.total(300) == 100_000
