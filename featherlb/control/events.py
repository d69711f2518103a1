"""Events: each is logged once and handed to all listeners. A listener that reads too slowly loses
its oldest events and learns how many; it never delays the others.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

log = logging.getLogger("featherlb")

MAX_WAITING = 1000
"""Events that wait for one listener."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: a machine-readable kind, and a sentence. `time` is ISO 8601, UTC."""

    kind: str
    message: str
    time: str
    missed: int = 0
    """Events before this one that the listener was too slow for."""
    details: dict[str, str | int] = field(default_factory=dict)


class Listener:
    """Receives events from now on."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Event] = asyncio.Queue(MAX_WAITING)
        self._missed = 0

    def put(self, event: Event) -> None:
        if self._queue.full():
            self._queue.get_nowait()
            self._missed += 1
        self._queue.put_nowait(event)

    async def get(self) -> Event:
        """The next event, with what was missed before it."""
        event = await self._queue.get()
        missed, self._missed = self._missed, 0
        return Event(event.kind, event.message, event.time, missed, event.details)


class Events:
    """Where events come from, and who hears them."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()

    def emit(
        self, kind: str, message: str, level: int = logging.INFO, **details: str | int
    ) -> None:
        """Log the message, and hand the event to all listeners."""
        log.log(level, "%s", message)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        event = Event(kind, message, now, 0, details)
        for listener in self._listeners:
            listener.put(event)

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        listener = Listener()
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
