"""The flight recorders of the workers, as the supervisor holds them: read, and saved when there is
reason to."""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from featherlb.control.events import Events
from featherlb.control.workers import Workers
from featherlb.core.flows import flight_recorder
from featherlb.core.flows.flight_recorder import Noted
from featherlb.model.errors import HostError
from featherlb.system import recording_file
from featherlb.system.recording_file import Recording

log = logging.getLogger("featherlb")


class FlightRecordings:
    """`directory` and `instance` say where they are saved, once an instance runs."""

    def __init__(self, workers: Workers, events: Events) -> None:
        self._workers = workers
        self._events = events
        self.directory = Path()
        self.instance = 0

    @property
    def saved(self) -> list[Path]:
        """The files, the oldest first."""
        return recording_file.find(self.directory, self.instance)

    async def read(self, most: int | None = None) -> list[tuple[int, Noted]]:
        """What is recorded now (`records_of`)."""
        return await asyncio.to_thread(lambda: records_of(self._take("", None), most))

    async def save(self, reason: str, worker: int | None = None) -> Path:
        """Save what all workers have recorded, or one of them; HostError if that can't be done."""
        recording = self._take(reason, worker)
        if not recording.memories:
            raise HostError("nothing is recorded (`recorder: {size: 0}` in the configuration)")
        try:
            path = await asyncio.to_thread(
                recording_file.save, self.directory, self.instance, recording
            )
        except OSError as error:
            raise HostError(f"cannot save the flight recording: {error.strerror}") from None
        message = f"flight recording saved to {path} ({reason})"
        self._events.emit("recording-saved", message, path=str(path), reason=reason)
        return path

    async def save_if_possible(self, reason: str, worker: int | None = None) -> None:
        """The same; a failure is logged."""
        try:
            await self.save(reason, worker)
        except HostError as error:
            log.error("%s", error)

    def _take(self, reason: str, worker: int | None) -> Recording:
        return Recording(reason, recording_file.epoch(), self._workers.recordings(worker))


def records_of(recording: Recording, most: int | None = None) -> list[tuple[int, Noted]]:
    """The records of all workers, the last `most` of each, with the worker's number, in the order
    of their times, which are in seconds since the epoch; HostError if they can't be read."""

    def read(worker: int, memory: bytes) -> Iterator[tuple[int, Noted]]:
        try:
            for one in flight_recorder.read(memory, most):
                yield worker, replace(one, time=one.time + recording.epoch)
        except ValueError as error:
            raise HostError(f"the recording of worker {worker} can't be read: {error}") from None

    every: Iterable[tuple[int, Noted]] = (
        each for worker, memory in recording.memories.items() for each in read(worker, memory)
    )
    return sorted(every, key=lambda each: each[1].time)
