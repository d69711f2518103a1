"""Supervised tasks, with a clock and a sleep of the test's own."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence

import pytest

from featherlb.control.events import Events
from featherlb.control.tasks import (
    FIRST_PAUSE,
    GOOD_SPELL,
    LONGEST_PAUSE,
    MAX_FAILURES,
    Tasks,
    TaskState,
)

Run = Callable[[], Awaitable[None]]


class Time:
    """Passes when somebody sleeps, and only then."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


class Supervised:
    """A task that runs for a while and fails, again and again, as each of `runs` (seconds) says;
    after these it stays."""

    def __init__(self, runs: Sequence[float], *, vital: bool = True) -> None:
        self.time = Time()
        self.events = Events()
        self.tasks = Tasks(self.events, self.time.clock, self.time.sleep)
        self._runs = list(runs)
        self._vital = vital
        self._staying = asyncio.Event()

    async def run(self) -> None:
        if not self._runs:
            self._staying.set()
            await asyncio.Event().wait()
        self.time.now += self._runs.pop(0)
        raise OSError(24, "Too many open files")

    async def until_it_stays(self) -> TaskState:
        self.tasks.start("names", self.run, vital=self._vital)
        async with asyncio.timeout(20):
            await self._staying.wait()
        return self.state()

    def state(self) -> TaskState:
        (state,) = self.tasks.states()
        return state


def supervise(check: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(check(), 60))


def test_a_task_that_dies_is_restarted_after_pauses_that_double() -> None:
    async def check() -> None:
        task = Supervised([0.0] * 9)
        state = await task.until_it_stays()
        assert task.time.pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
        assert (FIRST_PAUSE, LONGEST_PAUSE) == (1, 60)
        assert state.restarts == 9
        assert re.fullmatch(
            r"OSError: \[Errno 24\] Too many open files \(.+\.py:\d+\)", state.last_error
        )
        assert state.last_failure
        await task.tasks.stop()

    supervise(check)


def test_a_good_spell_makes_earlier_failures_forgotten() -> None:
    async def check() -> None:
        task = Supervised([0.0, 0.0, GOOD_SPELL, 0.0])
        state = await task.until_it_stays()
        assert task.time.pauses == [1, 2, 1, 2]
        assert state.restarts == 4
        assert not state.failing

    supervise(check)


@pytest.mark.parametrize("vital", [True, False])
def test_a_task_that_keeps_failing_is_not_healthy_unless_nothing_depends_on_it(vital: bool) -> None:
    async def check() -> None:
        once_less = Supervised([0.0] * (MAX_FAILURES - 1), vital=vital)
        assert not (await once_less.until_it_stays()).failing
        assert once_less.tasks.healthy
        task = Supervised([0.0] * MAX_FAILURES, vital=vital)
        assert (await task.until_it_stays()).failing
        assert task.tasks.healthy is not vital
        # It runs well now, but hasn't for long.
        task.time.now += GOOD_SPELL - 1
        assert task.state().failing
        task.time.now += 1
        assert not task.state().failing
        assert task.tasks.healthy

    supervise(check)


def test_a_task_is_still_failing_while_it_pauses() -> None:
    async def check() -> None:
        times = Time()
        paused = asyncio.Event()

        async def sleep(seconds: float) -> None:
            await times.sleep(seconds)
            if len(times.pauses) > 2 * MAX_FAILURES:
                paused.set()
                await asyncio.Event().wait()

        async def fail() -> None:
            raise RuntimeError

        tasks = Tasks(Events(), times.clock, sleep)
        tasks.start("names", fail)
        await paused.wait()
        assert times.pauses[-1] == LONGEST_PAUSE == GOOD_SPELL
        assert not tasks.healthy
        await tasks.stop()

    supervise(check)


def test_a_failure_is_one_line_in_the_log_and_an_event(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        task = Supervised([0.0])
        with task.events.listen() as heard:
            await task.until_it_stays()
            event = await heard.get()
        assert event.kind == "task-failed"
        assert event.details == {"task": "names"}
        assert event.message.startswith("task names failed: OSError: [Errno 24] Too many open file")
        assert event.message.endswith("; restarting it in 1 s")

    with caplog.at_level(logging.INFO, "featherlb"):
        supervise(check)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "\n" not in record.getMessage()
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "featherlb"):
        supervise(check)
    assert "Traceback" in caplog.records[1].getMessage()
    assert caplog.records[1].levelno == logging.DEBUG


def test_tasks_of_one_name_are_counted_together() -> None:
    async def check() -> None:
        times = Time()
        tasks = Tasks(Events(), times.clock, times.sleep)
        failed: set[str] = set()
        staying = asyncio.Semaphore(0)

        def once(who: str) -> Run:
            async def run() -> None:
                if who not in failed:
                    failed.add(who)
                    raise ValueError(who)
                staying.release()
                await asyncio.Event().wait()

            return run

        started = [tasks.start("checks", once(who), subject=who) for who in ("a", "b")]
        tasks.start("quiet", asyncio.Event().wait)  # type: ignore[arg-type]
        for _ in started:
            await staying.acquire()
        states = {state.name: state for state in tasks.states()}
        assert states["checks"].restarts == 2
        assert states["checks"].last_error.startswith("ValueError: b")
        assert (states["quiet"].restarts, states["quiet"].last_error) == (0, "")
        # What ends is no failure, and what it has counted stays.
        started[0].cancel()
        await asyncio.gather(*started[:1], return_exceptions=True)
        assert {state.name: state.restarts for state in tasks.states()} == {"checks": 2, "quiet": 0}
        await tasks.stop()
        assert all(one.cancelled() for one in started)

    supervise(check)


def test_a_task_that_hangs_is_failing_until_it_continues() -> None:
    async def check() -> None:
        events = Events()
        tasks = Tasks(events, longest_round=0.01)
        silent, resting = Events(), asyncio.Event()

        async def rounds() -> None:
            with tasks.round(), silent.listen() as nothing:
                await nothing.get()
            resting.set()
            await asyncio.Event().wait()

        with events.listen() as heard:
            tasks.start("names", rounds, subject="here")
            event = await heard.get()
            (state,) = tasks.states()
            assert (event.kind, event.details) == ("task-hangs", {"task": "names (here)"})
            assert re.fullmatch(
                r"no progress for 0\.01 s \(control/events\.py:\d+\)", state.last_error
            )
            assert event.message == f"task names (here) hangs: {state.last_error}"
            assert state.failing
            assert state.last_failure
            assert not tasks.healthy
            silent.emit("at last", "at last")
            assert (await heard.get()).kind == "task-continues"
        await resting.wait()
        (state,) = tasks.states()
        assert not state.failing
        assert state.restarts == 0
        assert tasks.healthy
        await tasks.stop()

    supervise(check)


def test_rest_between_rounds_is_no_hanging() -> None:
    async def check() -> None:
        tasks = Tasks(Events(), longest_round=1e-6)
        rested = asyncio.Event()

        async def rounds() -> None:
            with tasks.round():
                pass
            # Longer than a round may last: the timer would have fired.
            await asyncio.sleep(0.01)
            rested.set()
            await asyncio.Event().wait()

        tasks.start("names", rounds)
        await rested.wait()
        assert tasks.healthy
        await tasks.stop()

    supervise(check)


def test_a_task_that_loses_its_cancellation_is_cancelled_again() -> None:
    lost = 0

    async def run() -> None:
        nonlocal lost
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            lost += 1
        await asyncio.Event().wait()

    async def scenario() -> None:
        tasks = Tasks(Events())
        task = tasks.start("names", run)
        await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await tasks.stop()
        assert task.cancelled()
        assert lost == 1

    asyncio.run(scenario())
