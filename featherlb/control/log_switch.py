"""Changes the level of the log at run time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from featherlb.control import log_level
from featherlb.control.events import Events
from featherlb.control.log_level import LogLevel


class LogSwitch:
    """Changes the level, for good or for a while."""

    def __init__(self, events: Events, log_flows: Callable[[bool], Awaitable[None]]) -> None:
        """`log_flows` has the workers log each new flow, or not."""
        self._events = events
        self._log_flows = log_flows
        self._before: tuple[LogLevel, float] | None = None
        """The level that returns, and when, on the monotonic clock."""
        self._switching = asyncio.Lock()
        self.changed = asyncio.Event()

    @property
    def until(self) -> float | None:
        """When the level before returns, on the monotonic clock; None if it doesn't."""
        return None if self._before is None else self._before[1]

    async def set(self, level: LogLevel, until: float | None = None) -> None:
        """Log from this level on, and at `until` (monotonic) the level before again."""
        async with self._switching:
            before, _ = self._before or (log_level.current(), 0)
            await self._use(level)
            if until is not None:
                self._before = before, until
            self.changed.set()

    async def expire(self, now: float) -> None:
        """Return to the level before if it is time."""
        async with self._switching:
            if self._before is not None and self._before[1] <= now:
                await self._use(self._before[0])

    async def _use(self, level: LogLevel) -> None:
        self._before = None
        log_level.use(level)
        self._events.emit("log-level", f"log level {level}", logging.WARNING)
        await self._log_flows(level is LogLevel.DEBUG)
