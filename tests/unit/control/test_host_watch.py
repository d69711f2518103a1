"""When what others change on the host is restored, and what is reported of it."""

import time

import pytest

from featherlb import host
from featherlb.control.events import Events
from featherlb.control.host_watch import BackOff, HostWatch
from featherlb.host import ALL_KINDS, Deviation, Kind
from featherlb.model.errors import HostError


def test_restorations_in_a_row_wait() -> None:
    back_off = BackOff()
    assert back_off.due < 0
    waits = []
    now = 1000.0
    for _ in range(7):
        back_off.restored(now)
        waits.append(back_off.due - now)
        now = back_off.due
    assert waits == [1, 2, 4, 8, 16, 16, 16]
    # After a calm minute it is at once, and the next one waits a second.
    back_off.restored(now + 61)
    assert back_off.due == now + 62


GONE = [
    Deviation(Kind.RULES, f"rule {number} is gone", "restored {} of table raw")
    for number in range(3)
]
AWAY = Deviation(Kind.ADDRESSES, "the VIP is gone", "restored VIP")
ELSEWHERE = Deviation(Kind.ADDRESSES, "the VIP is elsewhere", "assigned VIP", ours=False)


class Watch(HostWatch):
    """With a clock that a test sets, and what was reported."""

    def __init__(self) -> None:
        events = Events()
        super().__init__(events, dict)
        self.said: list[tuple[str, str]] = []
        events.emit = lambda kind, message, *_, **__: self.said.append((kind, message))  # type: ignore[method-assign]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_what_is_restored_is_reported_and_counted(clock: list[float]) -> None:
    watch = Watch()
    assert not watch.note(ALL_KINDS, [], restoring=True)
    assert watch.said == []
    found = [*GONE, AWAY]
    assert watch.note({Kind.RULES, Kind.ADDRESSES}, found, restoring=True)
    assert len(watch.view(restoring=True).deviations) == 4
    watch.restored(found)
    text = "this host was changed: restored 3 rules of table raw, restored VIP"
    assert watch.said == [("host-restored", text)]
    view = watch.view(restoring=True)
    assert view.deviations == ()
    assert view.restored == {
        "rules": 1,
        "sets": 0,
        "settings": 0,
        "addresses": 1,
        "programs": 0,
    }
    assert view.repairs == "restored 3 rules of table raw, restored VIP"


def test_who_keeps_at_it_waits(clock: list[float]) -> None:
    watch = Watch()
    assert watch.note({Kind.RULES}, GONE, restoring=True)
    watch.restored(GONE)
    watch.said.clear()
    assert not watch.note({Kind.RULES}, GONE, restoring=True)
    text = (
        "this host was changed: rule 0 is gone, and 2 more differences; something keeps changing"
        " it, so it is restored in 1 s"
    )
    assert watch.said == [("host-changed", text)]
    # The next times only the restorations are reported.
    for _ in range(3):
        clock[0] += 1
        if watch.note({Kind.RULES}, GONE, restoring=True):
            watch.restored(GONE)
    assert [kind for kind, _ in watch.said] == ["host-changed", *2 * ["host-restored"]]
    # Something else doesn't wait for that.
    assert watch.note({Kind.ADDRESSES}, [AWAY], restoring=True)
    watch.restored([AWAY])
    clock[0] += 4
    assert watch.note({Kind.RULES}, GONE, restoring=True)


def test_what_is_not_restored_is_reported_once(clock: list[float]) -> None:
    watch = Watch()
    for _ in range(3):
        assert not watch.note({Kind.RULES}, GONE[:1], restoring=False)
    text = "this host was changed: rule 0 is gone; `featherlb reload` restores it"
    assert watch.said == [("host-changed", text)]
    assert watch.view(restoring=False).deviations == ("rule 0 is gone",)
    assert not watch.note({Kind.RULES}, GONE[:2], restoring=False)
    assert len(watch.said) == 2
    assert not watch.note({Kind.RULES}, [], restoring=False)
    assert watch.said[2] == ("host-right", "this host is as it should be again")


def test_what_somebody_else_has_taken_away_stays(clock: list[float]) -> None:
    watch = Watch()
    assert not watch.note({Kind.ADDRESSES}, [ELSEWHERE], restoring=True)
    assert [kind for kind, _ in watch.said] == ["host-changed"]
    assert watch.note({Kind.RULES}, GONE, restoring=True)
    watch.restored(GONE)
    assert watch.view(restoring=True).deviations == ("the VIP is elsewhere",)


def test_a_host_that_refuses_is_reported_once_and_asked_again(clock: list[float]) -> None:
    watch = Watch()
    for _ in range(3):
        assert watch.note({Kind.RULES}, GONE, restoring=True)
        watch.failed(HostError("iptables is busy"))
        assert not watch.note({Kind.RULES}, GONE, restoring=True)
        clock[0] += 16
    text = "what others change on this host can't be restored now: iptables is busy"
    assert watch.said == [("host-not-restored", text)]
    assert len(watch.view(restoring=True).deviations) == 3


def test_kinds_are_what_metrics_show() -> None:
    assert list(host.Kind) == ["rules", "sets", "settings", "addresses", "programs"]
