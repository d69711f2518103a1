"""The background tasks of an instance: when each of them acts, and what happens if that fails.

Each loop is a supervised task. What most of them do in a round is in `upkeep`.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from featherlb.control.controller import Controller
from featherlb.control.host_watch import LONGEST_REST, REST
from featherlb.control.upkeep import Upkeep
from featherlb.model.errors import FeatherlbError, HostError

log = logging.getLogger("featherlb")

WATCH_INTERVAL = 0.5
"""Seconds between two questions to the workers: whether they answer, whose connections fail, and
which departed backends have flows left. Also the pause before a failed change is tried again."""
UNRESOLVED_INTERVAL = 5.0
"""Seconds between two look-ups of a name that has no address."""
CANARY_INTERVAL = 1.0
"""Seconds between two looks at canaries."""
HEALTH_INTERVAL = 0.1
"""Seconds between two changes of the workers' weights because of health."""


class Background:
    """The background tasks of a controller."""

    def __init__(self, controller: Controller) -> None:
        self._tasks = controller.tasks
        self._round = controller.tasks.round
        self._serving = controller.serving
        self._data = controller.data
        self._changes = controller.changes
        self._log_switch = controller.log_switch
        self._faults = controller.faults
        self._canaries = controller.canaries
        self._upkeep = Upkeep(controller.serving, controller.events)
        self._cluster = controller.cluster

    def start(self) -> None:
        """Start them under the controller's `tasks`."""
        start = self._tasks.start
        start("watch-workers", self._watch_workers)
        start("departed", self._release_departed)
        # Those that change weights alone wait for no other change.
        start("overrides", partial(self._expire_overrides, weighing=True))
        start("overrides", partial(self._expire_overrides, weighing=False))
        start("faults", self._end_faults, vital=False)
        start("canaries", self._judge_canaries, vital=False)
        start("log-level", self._restore_log_level, vital=False)
        start("names", self._refresh_names)
        start("health", self._apply_health)
        start("topology", self._apply_topology)
        start("host", self._watch_host, vital=False)
        if self._cluster is not None:
            start("cluster", self._cluster.run, vital=False)

    async def _watch_workers(self) -> None:
        alarmed = self._data.workers.alarmed
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(WATCH_INTERVAL):
                    await alarmed.wait()
            alarmed.clear()
            with self._round():
                await self._upkeep.observe_outcomes()

    async def _release_departed(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            try:
                with self._round():
                    await self._upkeep.release_departed()
            except HostError as error:
                log.error("the host keeps rules of departed backends: %s", error)

    async def _expire_overrides(self, *, weighing: bool) -> None:
        due = partial(self._changes.next_expiry, weighing=weighing)
        expire = partial(self._changes.expire, weighing=weighing)
        await self._expire(self._serving.overrides_changed, due, expire)

    async def _restore_log_level(self) -> None:
        switch = self._log_switch
        await self._expire(switch.changed, lambda: switch.until, switch.expire)

    async def _end_faults(self) -> None:
        faults = self._faults
        await self._expire(faults.changed, faults.next_expiry, faults.expire)

    async def _judge_canaries(self) -> None:
        # Not `overrides_changed`, which other tasks clear.
        while True:
            await asyncio.sleep(CANARY_INTERVAL)
            if not self._canaries.in_force:
                continue
            try:
                with self._round():
                    await self._canaries.judge()
            except FeatherlbError as error:
                log.error("cannot end the trial of a canary now: %s", error)

    async def _expire(
        self,
        changed: asyncio.Event,
        next_expiry: Callable[[], float | None],
        expire: Callable[[float], Awaitable[None]],
    ) -> None:
        """Whenever it is due; `changed` is set when that may be another time."""
        while True:
            changed.clear()
            now = time.monotonic()
            due = next_expiry()
            if due is not None and due <= now:
                try:
                    with self._round():
                        await expire(now)
                except FeatherlbError as error:
                    log.error("cannot revert a run-time change now: %s", error)
                    await asyncio.sleep(WATCH_INTERVAL)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(None if due is None else due - now):
                    await changed.wait()

    async def _refresh_names(self) -> None:
        """At intervals, those without an address more often, and whenever an answer comes late."""
        serving, upkeep = self._serving, self._upkeep
        changed = serving.resolver.changed
        all_due = time.monotonic() + serving.state.config.resolve_interval
        due = 0.0
        while True:
            changed.clear()
            now = time.monotonic()
            try:
                with self._round():
                    if now >= all_due:
                        all_due = now + serving.state.config.resolve_interval
                        await upkeep.refresh_names()
                    elif now >= due:
                        await upkeep.refresh_names(upkeep.unresolved())
                    else:
                        await upkeep.apply_names()
            except FeatherlbError as error:
                log.error("cannot use the new addresses of names: %s", error)
            due = min(all_due, time.monotonic() + UNRESOLVED_INTERVAL)
            with suppress(TimeoutError):
                async with asyncio.timeout(due - time.monotonic()):
                    await changed.wait()

    async def _apply_health(self) -> None:
        changed = self._serving.health.changed
        while True:
            await changed.wait()
            changed.clear()
            # Many that change together are one change, and a failure is not repeated in haste.
            pause = HEALTH_INTERVAL
            try:
                with self._round():
                    await self._upkeep.apply_health()
            except Exception as error:
                changed.set()
                if not isinstance(error, FeatherlbError):
                    raise
                log.error("cannot apply the new state of backends: %s", error)
                pause = WATCH_INTERVAL
            await asyncio.sleep(pause)

    async def _apply_topology(self) -> None:
        topology = self._data.topology
        while True:
            await topology.changed.wait()
            topology.changed.clear()
            # A worker that has died gets the topology when its successor starts.
            with self._round(), suppress(HostError):
                await self._data.send_topology()

    async def _watch_host(self) -> None:
        watch = self._data.watch
        with watch.listening():
            while True:
                suspects = await watch.suspects()
                began = sum(os.times()[:4])
                with self._round():
                    await self._upkeep.keep_host(suspects)
                spent = sum(os.times()[:4]) - began
                await asyncio.sleep(min(REST * spent, LONGEST_REST))
