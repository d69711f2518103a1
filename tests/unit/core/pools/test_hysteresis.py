"""Streams of results in, streams of states out: `+` is a good result or up, `-` bad or down."""

import pytest

from featherlb.core.pools.hysteresis import MAX_FACTOR, SETTLED, Hysteresis, panicking
from featherlb.model import Health, Role


def states(results: str, rise: int = 2, fall: int = 3, initial: Health = Health.UP) -> str:
    health = Hysteresis(rise, fall, initial)
    found = ""
    for result in results:
        before = health.state
        assert health.take(result == "+") is (health.state is not before)
        found += "+" if health.state is Health.UP else "-"
    return found


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        # The first result counts at once, whatever was assumed.
        ("+", "+"),
        ("-", "-"),
        ("-+", "--"),
        # Three in a row are needed to fall, two to rise.
        ("+---", "+++-"),
        ("+--+--+--+", "++++++++++"),
        ("+---++", "+++--+"),
        ("+---+-+-+-+", "+++--------"),
        ("-++", "--+"),
    ],
)
def test_streams(results: str, expected: str) -> None:
    assert states(results) == expected


def test_the_first_good_result_raises_a_backend_that_starts_down() -> None:
    assert states("+", initial=Health.DOWN) == "+"
    assert states("-++", initial=Health.DOWN) == "--+"


def test_limits_of_one_follow_each_result() -> None:
    # Until it flaps: the second fall needs two results to rise.
    assert states("+-+-++", rise=1, fall=1) == "+-+--+"


def rises(health: Hysteresis) -> int:
    """Good results that it takes to come up."""
    count = 0
    while health.state is Health.DOWN:
        health.take(True)
        count += 1
    return count


def falls(health: Hysteresis) -> int:
    """Bad results that it takes to go down."""
    count = 0
    while health.state is Health.UP:
        health.take(False)
        count += 1
    return count


def test_flapping_is_damped_up_to_a_limit() -> None:
    health = Hysteresis(2, 3, Health.UP)
    health.take(True)
    seen = [(falls(health), rises(health)) for _ in range(7)]
    assert seen == [(3, 2), (3, 4), (3, 8), (3, 16), (3, 32), (3, 32), (3, 32)]
    assert seen[-1][1] == 2 * MAX_FACTOR


def test_a_good_while_ends_the_damping() -> None:
    health = Hysteresis(2, 3, Health.UP)
    health.take(True)
    for _ in range(4):
        falls(health), rises(health)
    for _ in range(SETTLED):
        health.take(True)
    assert (falls(health), rises(health)) == (3, 2)


def test_settled_is_what_agrees_with_the_last_result() -> None:
    health = Hysteresis(2, 3, Health.UP)
    assert not health.agrees
    seen = []
    for result in "+-+---++":
        health.take(result == "+")
        seen.append(health.agrees)
    assert seen == [True, False, True, False, False, True, False, True]


def test_a_backend_taken_down_at_once_needs_good_results_to_rise() -> None:
    health = Hysteresis(2, 3, Health.UP)
    health.fall_at_once()
    assert health.state is Health.DOWN
    assert [health.take(True) for _ in range(2)] == [False, True]
    # It counts as a fall: the next return takes twice as long.
    health.fall_at_once()
    assert [health.take(True) for _ in range(4)] == [False, False, False, True]


def test_taking_down_a_backend_that_is_down_changes_nothing() -> None:
    health = Hysteresis(1, 1, Health.DOWN)
    health.fall_at_once()
    assert health.take(True)


PRIMARY, BACKUP, SORRY = Role


@pytest.mark.parametrize(
    ("primaries", "backups", "threshold", "role"),
    [
        ("++++", "", 50, None),
        ("++--", "", 50, None),
        ("+---", "", 50, PRIMARY),
        ("+---", "", 25, None),
        ("+---", "", 0, None),
        ("----", "", 0, None),
        ("----", "", 1, PRIMARY),
        ("+++-", "", 100, PRIMARY),
        ("++++", "", 100, None),
        ("", "", 100, None),
        # Backups serve where no primary backend can, and are then looked at themselves.
        ("----", "+", 50, None),
        ("----", "+---", 50, BACKUP),
        ("----", "----", 50, PRIMARY),
        ("+---", "++++", 50, PRIMARY),
    ],
)
def test_panic(primaries: str, backups: str, threshold: int, role: Role | None) -> None:
    backends = [(BACKUP, one == "+") for one in backups]
    backends += [(PRIMARY, one == "+") for one in primaries]
    assert panicking(backends, threshold) is role
