"""A capture: packets that workers record, collected for whoever asks, as long as he does."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from featherlb.control.events import Events
from featherlb.control.workers import Workers
from featherlb.core.path.recording import Recorded, Wanted
from featherlb.model.errors import HostError

INTERVAL = 0.1
"""Seconds between two questions to the workers, which record a bounded number of packets between
them."""


class Captures:
    """One capture at a time: what workers do for it is bounded."""

    def __init__(self, workers: Workers, events: Events) -> None:
        self._workers = workers
        self._events = events
        self.running = False

    async def run(self, wanted: Wanted) -> AsyncGenerator[tuple[list[Recorded], int], None]:
        """What is recorded of these packets, and how many more there were, again and again until it
        is closed. HostError if another capture runs, or a worker can't record."""
        if self.running:
            raise HostError("a capture runs already: wait for its end, or end it")
        self.running = True
        self._events.emit("capture-started", "a capture has started")
        try:
            await self._workers.record(wanted)
            while True:
                await asyncio.sleep(INTERVAL)
                yield await self._workers.record(wanted)
        finally:
            self.running = False
            self._events.emit("capture-ended", "the capture has ended")
            # Workers that have ended record nothing.
            with suppress(HostError):
                await asyncio.shield(self._workers.record(None))
