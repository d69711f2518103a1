"""Users' functions that fail, or are slow."""

from featherlb.core.pools import guard
from featherlb.core.pools.guard import Guard


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_one_that_is_slow_is_switched_off_for_a_while() -> None:
    clock = Clock()
    takes = [guard.BUDGET * 2] * guard.STRIKES + [0.0] * 9

    def function(argument: int) -> int:
        clock.now += takes.pop(0)
        return argument

    watched = Guard("the key f", function, clock)
    assert [watched(number) for number in range(guard.STRIKES)] == [0, 1, 2]
    assert watched.off
    assert (watched.slow, watched.errors) == (guard.STRIKES, 0)
    (report,) = watched.reports
    assert report.startswith("the key f is switched off for 60 s: it took 10.0 ms, more than 5 ms")
    assert report.endswith(f"({__file__}:{function.__code__.co_firstlineno})")
    assert watched(9) is None
    clock.now += guard.PAUSE
    assert watched(9) == 9
    assert not watched.off


def test_one_that_fails_is_named_with_its_line() -> None:
    clock = Clock()

    def function() -> None:
        raise KeyError("no\nsuch")

    watched = Guard("the hook f", function, clock)
    for _ in range(guard.STRIKES - 1):
        assert watched() is None
        clock.now += guard.WINDOW / 2 + 0.1
    assert watched() is None
    assert not watched.off  # the first one was too long ago
    watched()
    assert watched.off
    assert watched.errors == guard.STRIKES + 1
    line = function.__code__.co_firstlineno + 1
    assert (
        f"it raised {KeyError('no' + chr(10) + 'such')!r} ({__file__}:{line})" in watched.reports[0]
    )


def test_results_that_make_no_sense_count() -> None:
    watched = Guard("the key f", list, Clock())
    for _ in range(guard.STRIKES):
        watched.reject(watched(), "not bytes")
    assert watched.off
    assert "it returned [], not bytes" in watched.reports[0]
