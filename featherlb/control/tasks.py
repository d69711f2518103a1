"""Background tasks under supervision: one that fails is logged, counted and restarted.

A task that fails starts again after a pause that doubles with each failure in a row. One that a
restart doesn't cure is *failing*, and so is one that hangs: that takes too long for one round of
its work. If packets depend on it, the process is no longer worth keeping, and the daemon stops
feeding the systemd watchdog (docs/decisions/supervised-tasks.md).
"""

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from featherlb.control.events import Events
from featherlb.system.failure import explain, log_traceback, whereabouts

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds until a task is restarted: after its first failure, and at most."""
GOOD_SPELL = 60.0
"""Seconds after which earlier failures of a task are forgotten."""
MAX_FAILURES = 5
"""Failures in a row after which a task is failing: 15 s of pauses, and what it ran in between."""
LONGEST_ROUND = 180.0
"""Seconds after which a round hangs. Whatever it waits for has a limit of its own, of 20 s at most
(`dialogue.ANSWER_TIMEOUT`), but other changes may come first."""
PATIENCE = 1.0
"""Seconds after which a task that does not end is cancelled again."""


@dataclass(frozen=True, slots=True)
class TaskState:
    """How the tasks of one name are doing."""

    name: str
    restarts: int
    failing: bool
    """`MAX_FAILURES` in a row and no good spell since, or it hangs."""
    last_error: str
    """Type, message and place of the last failure, or where it hangs; empty if there was none."""
    last_failure: str
    """When that was, ISO 8601 in UTC; empty if there was none."""


@dataclass(slots=True)
class _Record:
    """What is known of the tasks of one name."""

    vital: bool
    restarts: int = 0
    last_error: str = ""
    last_failure: str = ""
    runs: "list[_Run]" = field(default_factory=list)

    def note(self, failure: str) -> None:
        """Remember it as the last one."""
        self.last_error = failure
        self.last_failure = datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(slots=True)
class _Run:
    """One task."""

    record: _Record
    title: str

    began: float | None = None
    """When it started to run; None while it pauses."""
    failures: int = 0
    """In a row."""
    pause: float = 0.0
    """Seconds, after the last of them."""
    hangs: bool = False

    def failing(self, now: float) -> bool:
        well = self.began is not None and now - self.began >= GOOD_SPELL
        return self.hangs or (self.failures >= MAX_FAILURES and not well)


async def cancel(tasks: "Iterable[asyncio.Task[None]]") -> None:
    """Cancel them, and wait until they have ended. One that goes on is cancelled again: what it
    awaits may lose a cancellation, as `asyncio.wait_for` before Python 3.12 does."""
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=PATIENCE)


class Tasks:
    """All background tasks of one process."""

    def __init__(
        self,
        events: Events,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        longest_round: float = LONGEST_ROUND,
    ) -> None:
        self._events = events
        self._clock = clock
        self._sleep = sleep
        self._longest_round = longest_round
        self._records: dict[str, _Record] = {}
        self._tasks: dict[asyncio.Task[None], _Run] = {}

    def start(
        self,
        name: str,
        run: Callable[[], Awaitable[None]],
        *,
        subject: str = "",
        vital: bool = True,
    ) -> "asyncio.Task[None]":
        """Run it until it returns or is cancelled, and again whenever it raises an exception.

        Tasks of one `name` are counted together; the log tells them apart by their `subject`.
        A task is `vital` if packets depend on it.
        """
        record = self._records.setdefault(name, _Record(vital))
        one = _Run(record, f"{name} ({subject})" if subject else name)
        record.runs.append(one)
        # With nothing of the context of the change that starts it, which it outlives.
        task = asyncio.create_task(
            self._supervise(one, run), name=one.title, context=contextvars.Context()
        )
        # The loop keeps only weak references to tasks.
        self._tasks[task] = one
        task.add_done_callback(self._tasks.pop)
        task.add_done_callback(lambda _: record.runs.remove(one))
        return task

    @contextmanager
    def round(self) -> Iterator[None]:
        """A round of the running task's work: all but the wait for the next one, which may be
        long. While it lasts longer than `longest_round`, the task hangs."""
        task = asyncio.current_task()
        assert task is not None
        one = self._tasks[task]
        began = self._clock()
        timer = asyncio.get_running_loop().call_later(
            self._longest_round, self._note_hanging, one, task
        )
        try:
            yield
        finally:
            timer.cancel()
            if one.hangs:
                one.hangs = False
                message = f"task {one.title} hung for {self._clock() - began:.0f} s, and continues"
                self._events.emit("task-continues", message, logging.WARNING, task=one.title)

    async def stop(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        await cancel(self._tasks)

    def states(self) -> tuple[TaskState, ...]:
        """How the tasks are doing, by name."""
        now = self._clock()
        return tuple(
            TaskState(
                name=name,
                restarts=record.restarts,
                failing=any(one.failing(now) for one in record.runs),
                last_error=record.last_error,
                last_failure=record.last_failure,
            )
            for name, record in sorted(self._records.items())
        )

    @property
    def healthy(self) -> bool:
        """Whether no vital task is failing."""
        now = self._clock()
        return not any(
            one.failing(now)
            for record in self._records.values()
            if record.vital
            for one in record.runs
        )

    async def _supervise(self, one: _Run, run: Callable[[], Awaitable[None]]) -> None:
        while True:
            one.began = began = self._clock()
            try:
                await run()
                return
            except Exception as error:
                if self._clock() - began >= GOOD_SPELL:
                    one.failures, one.pause = 0, 0.0
                self._note(one, error)
            one.began = None
            await self._sleep(one.pause)

    def _note(self, one: _Run, error: Exception) -> None:
        """Record a failure, and say so."""
        one.failures += 1
        one.pause = min(max(2 * one.pause, FIRST_PAUSE), LONGEST_PAUSE)
        one.record.restarts += 1
        one.record.note(explain(error))
        message = (
            f"task {one.title} failed: {one.record.last_error}; restarting it in {one.pause:g} s"
        )
        self._events.emit("task-failed", message, logging.ERROR, task=one.title)
        log_traceback(error)

    def _note_hanging(self, one: _Run, task: asyncio.Task[None]) -> None:
        """Record that a round takes too long, and say so."""
        one.hangs = True
        place = whereabouts(task)
        one.record.note(
            f"no progress for {self._longest_round:g} s{f' ({place})' if place else ''}"
        )
        message = f"task {one.title} hangs: {one.record.last_error}"
        self._events.emit("task-hangs", message, logging.ERROR, task=one.title)
