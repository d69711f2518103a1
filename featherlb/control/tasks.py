"""Background tasks under supervision: one that fails is logged, counted and restarted.

A task that fails starts again after a pause that doubles with each failure in a row. One that a
restart doesn't cure is *failing*: if packets depend on it, the process is no longer worth keeping,
and the daemon stops feeding the systemd watchdog (docs/decisions/supervised-tasks.md).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from featherlb.control.events import Events
from featherlb.control.failure import explain, log_traceback

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds until a task is restarted: after its first failure, and at most."""
GOOD_SPELL = 60.0
"""Seconds after which earlier failures of a task are forgotten."""
MAX_FAILURES = 5
"""Failures in a row after which a task is failing: 15 s of pauses, and what it ran in between."""


@dataclass(frozen=True, slots=True)
class TaskState:
    """How the tasks of one name are doing."""

    name: str
    restarts: int
    failing: bool
    """`MAX_FAILURES` in a row, and no good spell since."""
    last_error: str
    """Type, message and place of the last failure; empty if there was none."""
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


@dataclass(slots=True)
class _Run:
    """One task."""

    began: float | None = None
    """When it started to run; None while it pauses."""
    failures: int = 0
    """In a row."""
    pause: float = 0.0
    """Seconds, after the last of them."""

    def failing(self, now: float) -> bool:
        well = self.began is not None and now - self.began >= GOOD_SPELL
        return self.failures >= MAX_FAILURES and not well


class Tasks:
    """All background tasks of one process."""

    def __init__(
        self,
        events: Events,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._events = events
        self._clock = clock
        self._sleep = sleep
        self._records: dict[str, _Record] = {}
        self._tasks: set[asyncio.Task[None]] = set()

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
        one = _Run()
        record.runs.append(one)
        title = f"{name} ({subject})" if subject else name
        task = asyncio.create_task(self._supervise(record, one, title, run), name=title)
        # The loop keeps only weak references to tasks.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: record.runs.remove(one))
        return task

    async def stop(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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

    async def _supervise(
        self, record: _Record, one: _Run, title: str, run: Callable[[], Awaitable[None]]
    ) -> None:
        while True:
            one.began = began = self._clock()
            try:
                await run()
                return
            except Exception as error:
                if self._clock() - began >= GOOD_SPELL:
                    one.failures, one.pause = 0, 0.0
                self._note(record, one, title, error)
            one.began = None
            await self._sleep(one.pause)

    def _note(self, record: _Record, one: _Run, title: str, error: Exception) -> None:
        """Record a failure, and say so."""
        one.failures += 1
        one.pause = min(max(2 * one.pause, FIRST_PAUSE), LONGEST_PAUSE)
        record.restarts += 1
        record.last_error = explain(error)
        record.last_failure = datetime.now(UTC).isoformat(timespec="seconds")
        message = f"task {title} failed: {record.last_error}; restarting it in {one.pause:g} s"
        self._events.emit("task-failed", message, logging.ERROR, task=title)
        log_traceback(error)
