"""The controller: the one place that changes what an instance serves, one change at a time.

Each change is a transition from the state in force to another one, entirely or not at all. An
operator asks for it, or a background task that has noticed something (`background`).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from featherlb import host
from featherlb.config import Config, VipConfig, advise
from featherlb.control import log_level
from featherlb.control.background import Background
from featherlb.control.dataplane import DataPlane
from featherlb.control.diff import describe
from featherlb.control.events import Events
from featherlb.control.health import HealthChecks
from featherlb.control.log_level import LogLevel
from featherlb.control.overrides import Override, add, applicable, with_overrides
from featherlb.control.prepare import advise as advise_here
from featherlb.control.prepare import check, find_services, load_schedulers, prepare
from featherlb.control.resolver import Resolver
from featherlb.control.tasks import Tasks
from featherlb.control.transition import (
    EndFlows,
    State,
    Step,
    UpdateHost,
    host_part,
    plan,
    run,
)
from featherlb.control.view import Reloads, View, WorkerView, view_services
from featherlb.control.workers import Cursor, FlowFilter
from featherlb.core.path.export import FlowRecords
from featherlb.model import Endpoint, OnBackendDown, Protocol, Service
from featherlb.model.errors import ConfigError, FeatherlbError, HostError
from featherlb.system.failure import log_traceback, sentence

log = logging.getLogger("featherlb")


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run; `load` reads the configuration, at the start and at each reload. `merge` merges
    the content of a file with the command line's options, as `load` does."""

    load: Callable[[], Config]
    merge: Callable[[Config], Config] = lambda config: config


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a reload would do: these steps, from a state to the wanted one. If it would be refused,
    there are none, and the reasons."""

    differences: tuple[str, ...]
    before: State
    wanted: State | None = None
    steps: tuple[Step, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """An override as it was put in force, and the numbers of the earlier ones that it `replaced`.

    Its number is 0 if it isn't in force: it has ended others, or nothing had to change.
    """

    override: Override
    replaced: tuple[int, ...]

    def __str__(self) -> str:
        until = self.override.until
        ending = "" if until is None else f", for {until - time.monotonic():.0f} s"
        numbers = ", ".join(map(str, self.replaced))
        place = "in place of" if self.override.number else "ends"
        return f"{self.override}{ending}{f', {place} change {numbers}' if numbers else ''}"


class Controller:
    """One instance, from `start` to `stop`."""

    def __init__(self, settings: Settings, events: Events, tasks: Tasks) -> None:
        self.settings = settings
        self.events = events
        self.tasks = tasks
        self.health = HealthChecks(events, tasks)
        self.data = DataPlane(events, tasks)
        self.state = State()
        """In force."""
        self.overrides_changed = asyncio.Event()
        self._resolver = Resolver()
        self._started = datetime.now(UTC)
        self._reloads = Reloads()
        self._numbers = 0
        self._lock = asyncio.Lock()
        self._stopping = False
        self._log_before: tuple[LogLevel, float] | None = None
        """The log level that returns, and when, on the monotonic clock."""

    # Life

    async def start(self) -> None:
        """Balance. HostError and ConfigError if that's impossible; `stop` cleans up."""
        config = self.settings.load()
        # What flows need that the kernel forwards stays until this instance provides it.
        for line in await asyncio.to_thread(host.remove_stale, keep=host.may_resume):
            log.warning("removed %s", line)
        schedulers = load_schedulers(config, {})
        services, host_plan = await asyncio.to_thread(prepare, config, self._resolver.look_up)
        judgement = self.health.judge(config, services)
        self.state = State(config, services=judgement.services, schedulers=schedulers)
        await self.data.start(config, judgement.services, schedulers, host_plan)
        for line in await asyncio.to_thread(host.remove_stale, keep=host.is_peer):
            log.warning("removed %s", line)
        await self._announce()
        self.health.follow(config, judgement)
        Background(self).start()

    async def stop(self) -> None:
        """Stop balancing, and revert the host, except for what open flows need that the kernel
        forwards."""
        self._stopping = True
        # A change in progress is completed first.
        async with self._lock:
            await self.tasks.stop()
            await self.data.stop()

    # What operators do

    async def reload(self, *, discard: bool = False) -> list[str]:
        """Read the configuration again and serve it; what differs, as lines.

        Overrides stay in force where they still apply, or go with `discard`. On an error nothing
        changes, the reload counts as refused, and the exception says why.
        """
        async with self._one_at_a_time():
            now = datetime.now(UTC).isoformat(timespec="seconds")
            before = self.state
            try:
                config = await asyncio.to_thread(self.settings.load)
                overrides = () if discard else applicable(config, before.overrides)
                difference = describe(before.running, with_overrides(config, overrides))
                difference += host.repairs(await self.data.deviations())
                await self._serve(config, overrides, fresh=True)
            except Exception as error:
                reason = sentence(error)
                self._reloads = Reloads(self._reloads.done, self._reloads.refused + 1, now, reason)
                self.events.emit(
                    "reload-refused", f"reload refused, nothing changed: {reason}", logging.ERROR
                )
                log_traceback(error)
                raise
            difference += _dropped(before.overrides, overrides)
            self._reloads = Reloads(self._reloads.done + 1, self._reloads.refused, now)
            self.events.emit("reloaded", f"reloaded: {'; '.join(difference) or 'no difference'}")
            await self._announce()
            return difference

    async def preview(self) -> list[str]:
        """What a reload would change, as lines; nothing changes. FeatherlbError as `reload`."""
        async with self._one_at_a_time():
            config = await asyncio.to_thread(self.settings.load)
            before = self.state
            after = with_overrides(config, applicable(config, before.overrides))
            services = await asyncio.to_thread(find_services, after, self._resolver.recall)
            await asyncio.to_thread(check, services, self.data.options)
            return describe(before.running, after) + host.repairs(await self.data.deviations())

    async def foresee(self, file: Config) -> Prospect:
        """What a reload would do if this were the content of the configuration file; nothing
        changes. ConfigError if it doesn't fit the command line."""
        config = self.settings.merge(file)
        async with self._one_at_a_time():
            before = self.state
            overrides = applicable(config, before.overrides)
            running = with_overrides(config, overrides)
            differences = (
                *describe(before.running, running),
                *host.repairs(await self.data.deviations()),
                *_dropped(before.overrides, overrides),
            )
            try:
                services = await asyncio.to_thread(find_services, running, self._resolver.foresee)
                await asyncio.to_thread(check, services, self.data.options)
            except FeatherlbError as error:
                return Prospect(differences, before, refused=tuple(str(error).splitlines()))
            judgement = self.health.judge(running, services)
            wanted = State(config, overrides, judgement.services, (), before.schedulers)
            steps = tuple(plan(before, wanted, repair=True))
            return Prospect(differences, before, wanted, steps)

    async def override(self, override: Override) -> Made:
        """Put an override in force; it is given its number here. FeatherlbError if refused."""
        async with self._one_at_a_time():
            state = self.state
            override = replace(override, number=self._numbers + 1)
            overrides = add(state.config, state.overrides, override)
            await self._serve(state.config, overrides)
            in_force = {one.number: one for one in overrides}
            replaced = tuple(one.number for one in state.overrides if one.number not in in_force)
            numbers: dict[str, str | int] = {}
            if override.number in in_force:
                self._numbers = override.number
                override = in_force[override.number]
                numbers["change"] = override.number
            else:
                override = replace(override, number=0)
            made = Made(override, replaced)
            if override.number or replaced:
                self.events.emit("changed", f"changed: {made}", logging.INFO, **numbers)
            return made

    async def revert(self, number: int) -> Override:
        """End an override. ConfigError if there is none of this number."""
        async with self._one_at_a_time():
            for override in self.state.overrides:
                if override.number == number:
                    await self._end(override, "reverted")
                    return override
        raise ConfigError([f"no change {number} is in force"])

    async def set_log_level(self, level: LogLevel, until: float | None = None) -> None:
        """Log from this level on, and at `until` (monotonic) the level before again."""
        async with self._one_at_a_time():
            before, _ = self._log_before or (log_level.current(), 0)
            await self._use_log_level(level)
            if until is not None:
                self._log_before = before, until
                self.overrides_changed.set()

    async def end_flows(self, wanted: FlowFilter, *, reset: bool = True) -> int:
        """End flows, with a RST to both ends of connections if `reset`; how many there were."""
        count = await self.data.workers.end_flows(wanted, reset=reset)
        if count:
            self.events.emit("flows-ended", f"{count} flows ended", count=count)
        return count

    # What is shown of it

    async def view(self) -> View:
        """How the instance is now."""
        workers = self.data.workers
        statistics = await workers.statistics()
        state = self.state
        return View(
            instance=self.data.options.queue,
            started=self._started,
            assign=self.data.options.assign,
            overrides=state.overrides,
            log_level=log_level.current(),
            log_until=None if self._log_before is None else self._log_before[1],
            reloads=self._reloads,
            services=view_services(state, self.health, self._resolver),
            workers=tuple(
                WorkerView(number, pid, statistics.get(number))
                for number, pid in enumerate(workers.pids)
            ),
            worker_restarts=workers.restarts,
            tasks=self.tasks.states(),
            host=self.data.watch.view(restoring=state.config.restore),
            watchdog_fed=self.tasks.healthy,
        )

    def flow_pages(self, start: Cursor) -> AsyncIterator[tuple[FlowRecords, Cursor | None]]:
        """The flow tables from a place on, in pieces, each with the place after it."""
        return self.data.workers.copies(start)

    def lasting_config(self) -> Config:
        """The running configuration without the overrides that expire, and with the addresses of
        VIPs."""
        state = self.state
        lasting = [one for one in state.overrides if one.until is None]
        config = with_overrides(state.config, lasting)
        return replace(
            config,
            services=tuple(
                replace(service, vips=tuple(map(self._with_address, service.vips)))
                for service in config.services
            ),
        )

    async def deviations(self) -> list[str]:
        """What others have changed on the host that this instance needs, as sentences."""
        async with self._one_at_a_time():
            return [one.text for one in await self.data.deviations()]

    # What background tasks ask for

    async def apply_health(self) -> None:
        """Send no new flows to backends that are down, and treat their old ones as configured.
        FeatherlbError if that fails."""
        async with self._one_at_a_time():
            await self._serve(self.state.config, self.state.overrides)
            fallen = self.health.fallen
            while fallen:
                await self._end_flows_of_fallen(*fallen[0])
                del fallen[0]

    async def observe_outcomes(self) -> None:
        """Judge backends by the outcome of clients' connections. Workers that hang are killed."""
        services = self.state.services
        outcomes = await self.data.workers.outcomes()
        # During a transition it isn't certain which services the counts belong to.
        if self.state.services is services and not self._lock.locked():
            self.health.observe(services, outcomes)

    async def release_departed(self) -> None:
        """Remove from the host what departed backends needed whose last flow has ended."""
        if not self.state.departing:
            return
        async with self._one_at_a_time():
            state = self.state
            left = await self.data.still_departing(state.departing, state.services)
            if left == state.departing:
                return
            await self.data.execute(UpdateHost(state.services, left))
            self.state = replace(state, departing=left)
            kept = _places(left)
            for name, endpoint in _places(state.departing):
                if (name, endpoint) not in kept:
                    self.events.emit(
                        "backend-left",
                        f"{name}: {endpoint} has left: its last flow ended",
                        service=name,
                        backend=str(endpoint),
                    )

    async def refresh_names(self) -> None:
        """Resolve the names of backends, and serve their addresses if they have changed.
        FeatherlbError if those can't be served."""
        running = self.state.running
        if not any(isinstance(one.host, str) for each in running.services for one in each.backends):
            return
        async with self._one_at_a_time():
            state = self.state
            services = await asyncio.to_thread(
                find_services, state.running, self._resolver.look_up, state.services
            )
            if host_part(services) == host_part(state.services):
                return
            await self._serve(state.config, state.overrides)
            self.events.emit("names-changed", "backend names resolve to new addresses")
            await self._announce()

    def next_expiry(self) -> float | None:
        """When the next override expires or reaches its deadline, or the log level does, on the
        monotonic clock."""
        moments = [at for one in self.state.overrides for at in (one.until, one.deadline)]
        if self._log_before is not None:
            moments.append(self._log_before[1])
        return min((at for at in moments if at is not None), default=None)

    async def expire(self, now: float) -> None:
        """End overrides and a log level that have expired, and the flows of drained backends at
        their deadline. FeatherlbError if that fails."""
        async with self._one_at_a_time():
            if self._log_before is not None and self._log_before[1] <= now:
                await self._use_log_level(self._log_before[0])
            for override in self.state.overrides:
                if override.deadline is not None and override.deadline <= now:
                    await self._end_drained_flows(override)
            for override in self.state.overrides:
                if override.until is not None and override.until <= now:
                    await self._end(override, "expired")

    async def keep_host(self, suspects: frozenset[host.Kind]) -> None:
        """Restore what others have changed on the host, if that is configured, and follow VIPs that
        others give to it; only what is one of the `suspects`."""
        watch = self.data.watch
        try:
            found = await self.data.deviations(suspects)
            moved = host.Kind.ADDRESSES in suspects and await self.data.vips_moved()
            if not found and not moved:
                watch.note(suspects, found, restoring=self.state.config.restore)
                return
            async with self._one_at_a_time():
                # The first look may have met a change of our own.
                found = await self.data.deviations(suspects)
                if watch.note(suspects, found, restoring=self.state.config.restore):
                    await self.data.restore()
                    watch.restored(found)
                if moved:
                    await self.data.follow_vips()
        except HostError as error:
            if not self._stopping:
                watch.failed(error)

    # How it is done

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        async with self._lock:
            if self._stopping:
                raise HostError("featherlb is stopping")
            yield

    async def _serve(
        self, config: Config, overrides: tuple[Override, ...], *, fresh: bool = False
    ) -> None:
        """Serve another configuration, or after an exception the one before.

        `fresh` resolves names, reads schedulers' files, and repairs the host; otherwise the host
        is left alone where its part stays the same.
        """
        before = self.state
        running = with_overrides(config, overrides)
        schedulers = load_schedulers(running, before.schedulers) if fresh else before.schedulers
        services = await asyncio.to_thread(
            find_services,
            running,
            self._resolver.look_up if fresh else self._resolver.recall,
            () if fresh else before.services,
        )
        judgement = self.health.judge(running, services)
        wanted = State(config, overrides, judgement.services, (), schedulers)
        steps = plan(before, wanted, repair=fresh)
        if any(isinstance(step.action, UpdateHost) for step in steps):
            await asyncio.to_thread(check, wanted.services, self.data.options)
        await run(steps, self.data.execute)
        self.state = replace(wanted, departing=self.data.departing)
        self.health.follow(running, judgement)
        self.overrides_changed.set()

    async def _use_log_level(self, level: LogLevel) -> None:
        self._log_before = None
        log_level.use(level)
        self.events.emit("log-level", f"log level {level}", logging.WARNING)
        await self.data.log_flows(level is LogLevel.DEBUG)

    async def _end(self, override: Override, how: str) -> None:
        config = self.state.config
        others = [other for other in self.state.overrides if other is not override]
        await self._serve(config, applicable(config, others))
        self.events.emit("reverted", f"{how}: {override}", change=override.number)

    async def _end_drained_flows(self, override: Override) -> None:
        """At its deadline, which is over then."""
        self.state = replace(
            self.state,
            overrides=tuple(
                replace(one, deadline=None) if one is override else one
                for one in self.state.overrides
            ),
        )
        service = next(s for s in self.state.running.services if s.name == override.service)
        backend = next(b for b in service.backends if str(b) == override.backend)
        count = 0
        for endpoint in self._resolver.endpoints(backend):
            wanted = FlowFilter(service=service.name, backend=endpoint)
            count += await self.data.workers.end_flows(wanted, reset=True)
        self.events.emit(
            "drain-deadline",
            f"{service.name}: drain deadline of {override.backend}, {count} flows reset",
            service=service.name,
            backend=override.backend,
            count=count,
        )

    async def _end_flows_of_fallen(self, name: str, endpoint: Endpoint) -> None:
        service = next((s for s in self.state.running.services if s.name == name), None)
        if service is None:
            return
        policy = service.on_backend_down
        # A UDP client would wait in vain, and loses nothing with another backend.
        if policy is not OnBackendDown.KEEP or service.protocol is Protocol.UDP:
            await self.data.execute(EndFlows(name, endpoint, policy is OnBackendDown.RESET))

    def _with_address(self, vip: VipConfig) -> VipConfig:
        return replace(vip, host=self._resolver.addresses(vip.host)[0])

    async def _announce(self) -> None:
        for fault in advise(self.state.config):
            log.warning("%s: %s", fault.origin, fault.text)
        options = self.data.options
        for line in await asyncio.to_thread(advise_here, self.state.services, options):
            log.warning("%s", line)
        for service in self.state.services:
            log.info(
                "%s: %s on %s, %s, %s, %s to %s",
                service.name,
                service.protocol,
                ", ".join(map(str, service.vips)),
                service.scheduler,
                service.nat,
                service.datapath,
                ", ".join(map(str, service.backends)) or "no backend",
            )
            if not service.backends:
                log.warning(
                    "%s has no backend and refuses connections: add one with --backend IP:PORT,"
                    " in the configuration file, or with `featherlb backend add`",
                    service.name,
                )


def _dropped(before: Iterable[Override], after: Iterable[Override]) -> list[str]:
    """The overrides that are no longer there, as lines."""
    kept = {one.number for one in after}
    return [f"run-time change dropped: {one}" for one in before if one.number not in kept]


def _places(services: tuple[Service, ...]) -> dict[tuple[str, Endpoint], None]:
    """The backends of services, in order, by the service's name."""
    return {(one.name, backend.endpoint): None for one in services for backend in one.backends}
