"""The controller: one instance, from start to stop, and what it is made of."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from featherlb import host
from featherlb.config import Config, VipConfig
from featherlb.config.resolve import absent, names
from featherlb.control import log_level
from featherlb.control.canary import Canaries
from featherlb.control.capture import Captures
from featherlb.control.changes import RunTimeChanges
from featherlb.control.cluster import Cluster, check_keys
from featherlb.control.events import Events
from featherlb.control.faults import Faults
from featherlb.control.flight import FlightRecordings
from featherlb.control.log_switch import LogSwitch
from featherlb.control.overrides import with_overrides
from featherlb.control.prepare import Found, load_code, prepare
from featherlb.control.reload import Reloader, Settings
from featherlb.control.serving import Serving
from featherlb.control.tasks import Tasks
from featherlb.control.view import View, WorkerView, view_services
from featherlb.control.workers import FlowFilter
from featherlb.datapaths.rules.gate import NO_SERVICE
from featherlb.model.counted import counted
from featherlb.model.user_code import UserCode
from featherlb.system.journal import Journal

log = logging.getLogger("featherlb")

PATIENCE = 2.0
"""Seconds that a view waits for a worker's answer. Who looks at an instance wants to know at once
which worker hangs; the worker has longer before it is replaced."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What an instance is to serve from its start on, and what it changes on the host for it."""

    config: Config
    user_code: Mapping[str, UserCode]
    found: Found
    plan: host.HostPlan


class Controller:
    """Operators ask its parts for changes; `view` shows all of them."""

    def __init__(self, settings: Settings, events: Events, tasks: Tasks) -> None:
        self.events = events
        self.tasks = tasks
        self.serving = Serving(events, tasks)
        self.data = self.serving.data
        self.reloader = Reloader(settings, self.serving, events)
        self.changes = RunTimeChanges(self.serving, events)
        self.faults = Faults(self.serving, events)
        self.captures = Captures(self.data.workers, events)
        self.recordings = FlightRecordings(self.data.workers, events)
        self.canaries = Canaries(self.serving, self.changes, self.recordings)
        self.log_switch = LogSwitch(events, self.data.log_flows)
        self.cluster: Cluster | None = None
        self._settings = settings
        self._started = datetime.now(UTC)
        self._booted = time.clock_gettime(time.CLOCK_BOOTTIME)

    async def prepare(self) -> Prepared:
        """What to serve. HostError and ConfigError if that's impossible. It changes nothing, but
        removes what dead instances left, so it may be cancelled."""
        config = await asyncio.to_thread(self._settings.load)
        if config.cluster is not None:
            await asyncio.to_thread(check_keys, config.cluster)
        # What keeps connections alive stays until this instance takes over.
        for line in await asyncio.to_thread(host.remove_stale, keep=host.may_resume):
            log.warning("removed %s", line)
        user_code = await asyncio.to_thread(load_code, config, {})
        resolver = self.serving.resolver
        await resolver.refresh(names(config))
        resolver.changed.clear()
        answers = resolver.answers(names(config))
        found, plan = await asyncio.to_thread(prepare, config, answers)
        return Prepared(config, user_code, found, plan)

    async def start(self, prepared: Prepared) -> None:
        """Balance. HostError if that's impossible; `stop` cleans up."""
        self.recordings.directory = Journal().directory
        self.recordings.instance = prepared.plan.options.queue
        self.data.workers.on_death = self._save_recording
        await self.serving.start(prepared.config, prepared.found, prepared.user_code, prepared.plan)
        for line in await asyncio.to_thread(host.remove_stale, keep=host.is_peer):
            log.warning("removed %s", line)
        await self.serving.announce()
        if prepared.config.cluster is not None:
            self.cluster = Cluster(prepared.config.cluster, self.serving, self.events)

    async def stop(self, *, leaving: bool = False) -> None:
        """Stop balancing, and revert the host, except for what open flows need that the kernel
        forwards. `leaving`: revert nothing, as after a crash."""
        async with self.serving.ending():
            await self.tasks.stop()
            await self.data.stop(leaving=leaving)

    async def _save_recording(self, worker: int) -> None:
        """A worker has died."""
        if self.serving.state.config.recorder.size:
            await self.recordings.save_if_possible(f"worker {worker} died", worker)

    async def end_flows(self, wanted: FlowFilter, *, reset: bool = True) -> int:
        """End flows, with a RST to both ends of connections if `reset`; how many there were."""
        count = await self.data.workers.end_flows(wanted, reset=reset)
        if count:
            self.events.emit("flows-ended", f"{counted(count, 'flow')} ended", count=count)
        return count

    async def view(self, *, backends: bool = True) -> View:
        """How the instance is now, with its `backends` if they are wanted."""
        workers = self.data.workers
        statistics = await workers.statistics(backends=backends, patience=PATIENCE)
        refused = dict(await self.data.refused())
        martians = refused.pop(NO_SERVICE, 0)
        state = self.serving.state
        return View(
            instance=self.data.options.queue,
            started=self._started,
            uptime=time.clock_gettime(time.CLOCK_BOOTTIME) - self._booted,
            assign=self.data.options.assign,
            overrides=state.overrides,
            canaries=self.canaries.view,
            faults=self.faults.views(statistics),
            absent=len(absent(state.places)),
            hash_key=self.data.hash_key.place,
            log_level=log_level.current(),
            log_until=self.log_switch.until,
            reloads=self.reloader.outcome,
            services=view_services(state, self.serving.health, backends=backends),
            workers=tuple(
                WorkerView(number, pid, statistics.get(number), alive=alive)
                for number, (pid, alive) in enumerate(workers.processes)
            ),
            worker_restarts=workers.restarts,
            refused=refused,
            martians=martians,
            tasks=self.tasks.states(),
            host=self.data.watch.view(restoring=state.config.restore),
            cookies=self.data.cookies.view,
            obstacles=tuple(self.obstacles()),
            cluster=self.cluster.view() if self.cluster else None,
            watchdog_fed=self.tasks.healthy,
        )

    def obstacles(self) -> list[str]:
        """Why this instance should get no traffic for now, as sentences."""
        found = []
        if self.serving.stopping:
            found.append("it is stopping")
        if not all(alive for _, alive in self.data.workers.processes):
            found.append("a worker has died, and its successor is starting")
        services = self.serving.state.services
        if not any(one.weight for service in services for one in service.backends):
            found.append("no service has a usable backend")
        return [*found, *(self.cluster.obstacles() if self.cluster else ())]

    async def deviations(self) -> list[str]:
        """What others have changed on the host that a reload restores, as sentences."""
        async with self.serving.one_at_a_time():
            return [one.text for one in await self.data.deviations() if one.repair]

    def lasting_config(self) -> Config:
        """The running configuration without the overrides that expire and the backends that are on
        trial, and with the addresses of VIPs."""
        state = self.serving.state
        lasting = [one for one in state.overrides if one.until is None and one.canary is None]
        config = with_overrides(state.config, lasting)
        return replace(
            config,
            services=tuple(
                replace(service, vips=tuple(map(self._with_address, service.vips)))
                for service in config.services
            ),
        )

    def _with_address(self, vip: VipConfig) -> VipConfig:
        found = self.serving.state.names.get(vip.host, ()) if isinstance(vip.host, str) else ()
        return replace(vip, host=found[0]) if found else vip
