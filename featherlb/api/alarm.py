"""Saves the flight recording when the operator's condition on the metrics becomes true."""

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from featherlb.api.listener import Refusal
from featherlb.config.expression import Condition, UnknownMetricError, Watch
from featherlb.control.controller import Controller
from featherlb.control.view import View

log = logging.getLogger("featherlb")

INTERVAL = 1.0
"""Seconds between two looks at the metrics."""
REST = 60.0
"""Seconds after a recording in which none is saved for the same condition: one that keeps changing
would push out what was saved first."""


class Alarm:
    """Looks at an instance's metrics as long as its configuration has a condition."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._condition: Condition | None = None
        self._watch: Watch | None = None
        self._was_true = False
        self._saved = float("-inf")

    async def run(self) -> None:
        """A background task."""
        while True:
            await asyncio.sleep(INTERVAL)
            with self._controller.tasks.round():
                await self.look(time.monotonic())

    async def look(self, now: float) -> Path | None:
        """Look once; the file if the condition has become true."""
        recorder = self._controller.serving.state.config.recorder
        if recorder.dump_when != self._condition:
            self._condition = recorder.dump_when
            self._watch = Watch(self._condition) if self._condition else None
            self._was_true, self._saved = False, float("-inf")
        if self._watch is None or not recorder.size:
            return None
        try:
            is_true = self._watch.is_true(samples_of(await self._controller.view(), {}), now)
        except UnknownMetricError as error:
            log.error("recorder: '%s' names no metric '%s': it is ignored", self._condition, error)
            self._watch = None
            return None
        became_true = is_true and not self._was_true
        self._was_true = is_true
        if not became_true or now < self._saved + REST:
            return None
        self._saved = now
        return await self._controller.recordings.save(str(self._condition))


def samples_of(
    view: View, refusals: Mapping[Refusal, int]
) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The metrics by the names that conditions have: without `featherlb_` and `_total`."""
    from featherlb.api.metrics import Snapshot

    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in Snapshot(view, refusals).collect():
        found.setdefault(family.name.removeprefix("featherlb_"), [])
        for one in family.samples:
            name = one.name.removeprefix("featherlb_").removesuffix("_total")
            found.setdefault(name, []).append((dict(one.labels), one.value))
    return found
