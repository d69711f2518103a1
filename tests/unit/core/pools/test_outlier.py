"""When a backend is ejected because of its clients' connections, and for how long."""

from collections.abc import Sequence

import pytest

from featherlb.core.pools.outlier import ANSWERS, Outlier, Sample
from featherlb.model import PassiveCheck


def outlier(**rules: float) -> Outlier:
    return Outlier(PassiveCheck(**rules))  # type: ignore[arg-type]


def watched(one: Outlier, *looks: tuple[float, int, int]) -> bool:
    """Whether there is reason to eject it after the last of these looks."""
    for now, opened, failed in looks:
        one.take(Sample(now, opened, failed))
    return one.failing() is not None


@pytest.mark.parametrize(
    ("looks", "failing"),
    [
        ([], False),
        # What was before the first look doesn't count.
        ([(0, 100, 100)], False),
        ([(0, 100, 100), (1, 104, 104)], False),
        ([(0, 100, 100), (1, 105, 105)], True),
        ([(0, 0, 0), (1, 2, 2), (2, 5, 5)], True),
        # Enough failures, but few among many connections.
        ([(0, 0, 0), (1, 10, 5)], True),
        ([(0, 0, 0), (1, 11, 5)], False),
        ([(0, 0, 0), (1, 100, 4), (2, 200, 9)], False),
        # How well it was before is no excuse.
        ([(0, 0, 0), (9, 9000, 0), (9.5, 9005, 5)], True),
        ([(0, 0, 0), (8, 9000, 0), (9, 9002, 2), (9.5, 9005, 5)], True),
        # Further back than the window.
        ([(0, 0, 0), (1, 4, 4), (10, 4, 4), (10.5, 5, 5)], True),
        ([(0, 0, 0), (1, 4, 4), (11.5, 5, 5)], False),
        # Failures of connections that were opened before the window.
        ([(0, 0, 0), (1, 9, 0), (12, 9, 5)], True),
        # Another worker counts from 0; what it counts first is not known to be recent.
        ([(0, 90, 2), (1, 3, 3), (2, 7, 7)], False),
        ([(0, 90, 2), (1, 3, 3), (2, 8, 8)], True),
    ],
)
def test_failures_in_the_window(looks: list[tuple[float, int, int]], failing: bool) -> None:
    assert watched(outlier(), *looks) is failing


@pytest.mark.parametrize(
    ("opened_from", "failed_from", "failing"),
    [
        # One hostile or broken network among others says nothing; several do.
        (0b1111, 0b0001, False),
        (0b1111, 0b0011, False),
        (0b1111, 0b0111, True),
        # There are no more.
        (0b0001, 0b0001, True),
        (0b0011, 0b0001, False),
        (0b0011, 0b0011, True),
        # Connections that were opened before the window.
        (0, 0b0001, True),
    ],
)
def test_failures_must_come_from_several_networks_if_connections_do(
    opened_from: int, failed_from: int, failing: bool
) -> None:
    one = outlier()
    one.take(Sample(0, 0, 0))
    one.take(Sample(1, 9, 9, opened_from=opened_from, failed_from=failed_from))
    assert (one.failing() is not None) is failing


def test_networks_are_those_of_the_whole_time() -> None:
    one = outlier()
    one.take(Sample(0, 0, 0, 0, 0, 0b111, 0b111))  # before the first sample
    one.take(Sample(1, 3, 3, 0, 0, 0b0011, 0b0001))
    assert one.failing() is None
    one.take(Sample(2, 6, 6, 0, 0, 0b1100, 0b0100))
    assert one.failing() is None
    one.take(Sample(3, 7, 7, 0, 0, 0b1000, 0b1000))
    assert one.failing() == (7, 7)


def test_after_an_acquittal_only_new_failures_count() -> None:
    one = outlier()
    assert watched(one, (0, 0, 0), (1, 5, 5))
    one.acquit()
    assert one.acquittals == 1
    assert not watched(one, (2, 5, 5), (3, 9, 9))
    assert watched(one, (4, 10, 10))


def test_the_rules_are_the_operators() -> None:
    assert watched(outlier(failures=1, share=100), (0, 0, 0), (1, 1, 1))
    assert not watched(outlier(failures=1, share=100), (0, 0, 0), (1, 2, 1))
    assert watched(outlier(failures=2, share=0), (0, 0, 0), (1, 1000, 2))
    assert not watched(outlier(window=2.0), (0, 0, 0), (1, 4, 4), (3, 5, 5))


def test_the_reason_is_the_last_moment_that_suffices() -> None:
    one = outlier()
    watched(one, (0, 0, 0), (1, 20, 20), (2, 27, 26))
    assert one.failing() == (7, 6)


def slow(*samples: tuple[float, int, float], others: Sequence[float], **rules: float) -> object:
    """Whether a backend is too slow that had given so many answers at these times, which took so
    many milliseconds on average since the time before."""
    one = outlier(**{"slower": 5} | rules)
    answers, total = 0, 0.0
    for at, answered, mean in samples:
        total += (answered - answers) * mean * 1000
        answers = answered
        one.take(Sample(at, answers, 0, answers, int(total)))
    return one.too_slow(others)


def test_a_backend_is_too_slow_compared_with_the_others() -> None:
    samples = (0, 0, 0), (1, ANSWERS, 40), (2, 2 * ANSWERS, 30)
    assert slow(*samples, others=[0.001, 0.002, 0.009]) == (0.03, 0.002)
    # Of two others the faster one counts.
    assert slow(*samples, others=[0.001, 0.03]) == (0.03, 0.001)
    assert slow(*samples, others=[0.002], slower_by=0.029) is None
    assert slow(*samples, others=[0.007, 0.007]) is None
    assert slow(*samples, others=[]) is None
    assert outlier().rules.slower is None


def test_few_answers_prove_nothing() -> None:
    usual = [0.001]
    assert slow((0, 0, 0), (1, 2 * ANSWERS - 1, 30), others=usual) is None
    # One stretch of late answers is not enough, nor one before it and one after.
    assert slow((0, 0, 0), (1, 100, 1), (2, 100 + ANSWERS, 90), others=usual) is None
    assert slow((0, 0, 0), (1, ANSWERS, 90), (2, 2 * ANSWERS, 1), others=usual) is None
    # What was before the window doesn't count.
    assert slow((0, 0, 0), (1, ANSWERS, 90), (12, 2 * ANSWERS, 90), others=usual) is None
    # Nor what another worker had counted.
    assert slow((0, 50, 90), (1, ANSWERS, 90), (2, 2 * ANSWERS, 90), others=usual) is None


def test_ejections_get_longer_and_end_at_a_limit() -> None:
    one = outlier(ejection=10.0, longest_ejection=35.0)
    now = 0.0
    for expected in (10, 20, 35, 35):
        assert one.eject(now) == expected
        assert one.until == now + expected
        now = one.until
        one.readmit(now)
        now += 1
    assert one.ejections == 4


def test_earlier_falls_are_forgotten_after_enough_good_results() -> None:
    one = outlier(ejection=10.0, window=3.0)
    assert one.eject(0.0) == 10
    one.readmit(10.0)
    assert one.eject(23.0) == 20
    one.readmit(43.0)
    assert one.eject(66.1) == 10


def test_a_longest_ejection_below_the_first_one_doesnt_shorten_it() -> None:
    one = outlier(ejection=10.0, longest_ejection=1.0)
    assert [one.eject(0.0), one.eject(1.0)] == [10, 10]


def test_earlier_failures_do_not_eject_a_readmitted_backend() -> None:
    one = outlier()
    assert watched(one, (0, 0, 0), (1, 9, 9))
    one.eject(1.0)
    assert one.ejected
    one.readmit(2.0)
    assert not one.ejected
    assert not watched(one, (2, 9, 9), (3, 13, 13))
    assert watched(one, (4, 14, 14))
