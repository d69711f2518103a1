"""The controller: the one place that changes what an instance serves.

Each change is a transition from the state in force to another one, entirely or not at all. An
operator asks for it, or a background task that has noticed something (`background`).

Transitions come one at a time, and may be slow: the host's programs wait for each other. A change
of weights alone, by health or by an operator, needs the workers and nothing else, and waits for no
transition. One that is under way takes it over (docs/decisions/weights-wait-for-nobody.md).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from featherlb import host
from featherlb.config import Config, VipConfig, advise, checks
from featherlb.config.faults import refuse
from featherlb.config.resolve import absent, names, with_weights
from featherlb.control import log_level, transition
from featherlb.control.dataplane import DataPlane
from featherlb.control.diff import describe
from featherlb.control.events import Events
from featherlb.control.health import HealthChecks, Judgement
from featherlb.control.log_level import LogLevel
from featherlb.control.overrides import (
    WEIGHING,
    Action,
    Override,
    add,
    applicable,
    with_overrides,
)
from featherlb.control.prepare import (
    Answers,
    Found,
    check,
    find_services,
    load_schedulers,
    prepare,
    with_names,
)
from featherlb.control.prepare import advise as advise_here
from featherlb.control.resolver import Resolver
from featherlb.control.tasks import Tasks
from featherlb.control.transition import (
    ApplyServices,
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
from featherlb.system import rtnetlink
from featherlb.system.failure import log_traceback, sentence
from featherlb.worker.protocol import merge

log = logging.getLogger("featherlb")

Overrides = tuple[Override, ...]
Amendment = Callable[[Config, Overrides], Overrides]
"""From the overrides in force on a configuration to others; ConfigError if that makes no sense."""


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
        self.resolver = Resolver()
        self._started = datetime.now(UTC)
        self._reloads = Reloads()
        self._numbers = 0
        self._reloading = asyncio.Lock()
        """Held from reading the file on: the file read last is in force last."""
        self._changing = asyncio.Lock()
        """Held during a transition, for as long as the host takes."""
        self._serving = asyncio.Lock()
        """Held while the workers' services change, with the state in force; a transition takes it
        for that step alone."""
        self._amendments: list[Amendment] = []
        """Of the overrides, since the transition under way began."""
        self._tried: Answers = {}
        """The addresses of names that were to be served last."""
        self._absent: Mapping[tuple[str, str], str] = {}
        self._refused: Mapping[str, str] = {}
        """Why backends are absent and addresses of names are not used, as the log has it."""
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
        await self.resolver.refresh(names(config))
        self.resolver.changed.clear()
        found, host_plan = await asyncio.to_thread(
            prepare, config, self.resolver.answers(names(config))
        )
        judgement = self.health.judge(config, found.services)
        found = replace(found, services=judgement.services)
        self.state = _state(config, (), found, schedulers)
        await self.data.start(config, judgement.services, schedulers, host_plan)
        for line in await asyncio.to_thread(host.remove_stale, keep=host.is_peer):
            log.warning("removed %s", line)
        await self._announce()
        self._tell_of_absent()
        self.health.follow(config, judgement)

    async def stop(self) -> None:
        """Stop balancing, and revert the host, except for what open flows need that the kernel
        forwards."""
        self._stopping = True
        # A change in progress is completed first.
        async with self._changing, self._serving:
            await self.tasks.stop()
            await self.data.stop()

    # What operators do

    async def reload(self, *, discard: bool = False) -> list[str]:
        """Read the configuration again and serve it; what differs, as lines.

        Overrides stay in force where they still apply, or go with `discard`. On an error nothing
        changes, the reload counts as refused, and the exception says why.
        """
        async with self._reloading:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            try:
                difference = await self._reload(discard)
            except Exception as error:
                reason = sentence(error)
                self._reloads = Reloads(self._reloads.done, self._reloads.refused + 1, now, reason)
                self.events.emit(
                    "reload-refused", f"reload refused, nothing changed: {reason}", logging.ERROR
                )
                log_traceback(error)
                raise
            self._reloads = Reloads(self._reloads.done + 1, self._reloads.refused, now)
            self.events.emit("reloaded", f"reloaded: {'; '.join(difference) or 'no difference'}")
            await self._announce()
            return difference

    async def _reload(self, discard: bool) -> list[str]:
        # Nobody else waits for the disk, for users' code or for the resolver meanwhile.
        config = await asyncio.to_thread(self.settings.load)
        schedulers = await asyncio.to_thread(load_schedulers, config, self.state.schedulers)
        remaining = _none if discard else applicable
        overrides = remaining(config, self.state.overrides)
        await self.resolver.refresh(names(with_overrides(config, overrides)))
        async with self._one_at_a_time():
            before = self.state
            overrides = remaining(config, before.overrides)
            difference = describe(before.running, with_overrides(config, overrides))
            difference += host.repairs(await self.data.deviations())
            await self._serve(config, remaining, schedulers=schedulers, repair=True, moved=True)
            difference += _dropped(before.overrides, self.state.overrides)
            return difference + [
                f"{service}: backend {backend} is absent: {reason}"
                for (service, backend), reason in absent(self.state.places).items()
            ]

    async def preview(self) -> list[str]:
        """What a reload would change, as lines; nothing changes. FeatherlbError as `reload`."""
        config = await asyncio.to_thread(self.settings.load)
        await self.resolver.refresh(names(config))
        async with self._one_at_a_time():
            before = self.state
            after = with_overrides(config, applicable(config, before.overrides))
            await asyncio.to_thread(self._look_for, after, before, repair=True, moved=True)
            return describe(before.running, after) + host.repairs(await self.data.deviations())

    async def foresee(self, file: Config) -> Prospect:
        """What a reload would do if this were the content of the configuration file; nothing
        changes. ConfigError if it doesn't fit the command line."""
        config = self.settings.merge(file)
        await self.resolver.refresh(names(config))
        async with self._one_at_a_time():
            before = self.state
            overrides = applicable(config, before.overrides)
            running = with_overrides(config, overrides)
            differences = (
                *describe(before.running, running),
                *host.repairs(await self.data.deviations()),
                *_dropped(before.overrides, overrides),
            )
            look_for = partial(self._look_for, repair=True, moved=True)
            try:
                found = await asyncio.to_thread(look_for, running, before)
            except FeatherlbError as error:
                return Prospect(differences, before, refused=tuple(str(error).splitlines()))
            judgement = self.health.judge(running, found.services)
            found = replace(found, services=judgement.services)
            wanted = _state(config, overrides, found, before.schedulers)
            steps = tuple(plan(before, wanted, repair=True))
            return Prospect(differences, before, wanted, steps)

    async def override(self, override: Override) -> Made:
        """Put an override in force; it is given its number here. FeatherlbError if refused."""
        self._numbers += 1
        override = replace(override, number=self._numbers)
        try:
            if override.action in WEIGHING:
                before = await self._amend(override.service, partial(_add, override))
            else:
                before = await self._change_pool(override)
        except BaseException:
            self._take_back(override.number)
            raise
        in_force = {one.number: one for one in self.state.overrides}
        replaced = tuple(one.number for one in before if one.number not in in_force)
        numbers: dict[str, str | int] = {}
        if override.number in in_force:
            numbers["change"] = override.number
            override = in_force[override.number]
        else:
            self._take_back(override.number)
            override = replace(override, number=0)
        made = Made(override, replaced)
        if override.number or replaced:
            self.events.emit("changed", f"changed: {made}", logging.INFO, **numbers)
        return made

    def _take_back(self, number: int) -> None:
        """A number that isn't used after all, if no other was given since."""
        if self._numbers == number:
            self._numbers -= 1

    async def _change_pool(self, override: Override) -> Overrides:
        """Add or remove a backend; the overrides before."""
        adds = override.action is Action.ADD
        address = override.key[0]
        if adds and isinstance(address, str):
            await self.resolver.refresh([address])
        async with self._one_at_a_time():
            config, before = self.state.config, self.state.overrides
            if adds:
                refuse(checks.check(with_overrides(config, add(config, before, override))))
            required = override if adds else None
            await self._serve(config, partial(_add, override), required=required)
            return before

    async def revert(self, number: int) -> Override:
        """End an override. ConfigError if there is none of this number."""
        for override in self.state.overrides:
            if override.number == number:
                await self._end(override, "reverted")
                return override
        raise ConfigError([f"no change {number} is in force"])

    async def set_log_level(self, level: LogLevel, until: float | None = None) -> None:
        """Log from this level on, and at `until` (monotonic) the level before again."""
        async with self._serving:
            before, _ = self._log_before or (log_level.current(), 0)
            await self._use_log_level(level)
            if until is not None:
                self._log_before = before, until
                self.overrides_changed.set()

    async def end_flows(self, wanted: FlowFilter, *, reset: bool = True) -> int:
        """End flows, with a RST to both ends of connections if `reset`; how many there were."""
        count = await self.data.workers.end_flows(wanted, reset=reset)
        if count:
            self.events.emit(
                "flows-ended", f"{count} {'flow' if count == 1 else 'flows'} ended", count=count
            )
        return count

    # What is shown of it

    async def view(self, *, backends: bool = True) -> View:
        """How the instance is now, with its `backends` if they are wanted."""
        workers = self.data.workers
        statistics = await workers.statistics(backends=backends)
        state = self.state
        return View(
            instance=self.data.options.queue,
            started=self._started,
            assign=self.data.options.assign,
            overrides=state.overrides,
            absent=len(absent(state.places)),
            log_level=log_level.current(),
            log_until=None if self._log_before is None else self._log_before[1],
            reloads=self._reloads,
            services=view_services(state, self.health, backends=backends),
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
        """What others have changed on the host that a reload restores, as sentences."""
        async with self._one_at_a_time():
            return [one.text for one in await self.data.deviations() if one.repair]

    # What background tasks ask for

    async def apply_health(self) -> None:
        """Send no new flows to backends that are down, and treat their old ones as configured.
        FeatherlbError if that fails."""
        async with self._serving:
            self._refuse_if_stopping()
            changes, self.health.changes = self.health.changes, set()
            try:
                await self._reweigh(self.state, changes)
            except BaseException:
                self.health.changes |= changes
                raise
        fallen = self.health.fallen
        while fallen:
            await self._end_flows_of_fallen(*fallen[0])
            del fallen[0]

    async def observe_outcomes(self) -> None:
        """Judge backends by the outcome of clients' connections. Workers that hang are killed."""
        state, settled = self.state, not self._serving.locked()
        outcomes = await self.data.workers.outcomes(self.health.watched)
        # While services change it isn't certain which ones the counts belong to.
        if self.state is state and settled and not self._serving.locked():
            self.health.observe(state.services, outcomes)

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
            self.state = replace(self.state, departing=left)
            kept = _places(left)
            for name, endpoint in _places(state.departing):
                if (name, endpoint) not in kept:
                    self.events.emit(
                        "backend-left",
                        f"{name}: {endpoint} has left: its last flow ended",
                        service=name,
                        backend=str(endpoint),
                    )

    def unresolved(self) -> list[str]:
        """The host names without an address."""
        return [name for name, found in self.state.names.items() if not found]

    async def refresh_names(self, wanted: Collection[str] | None = None) -> None:
        """Look up these host names, or all, and serve their addresses if they have changed.
        FeatherlbError if that fails."""
        await self.resolver.refresh(names(self.state.running) if wanted is None else wanted)
        await self.apply_names(again=wanted is None)

    async def apply_names(self, *, again: bool = False) -> None:
        """Serve the addresses of names if they have changed, and `again` those that could not be
        used before. FeatherlbError if that fails."""
        answers = self._answers(self.state.running)
        if answers == self.state.names or (answers == self._tried and not again):
            return
        async with self._one_at_a_time():
            before = self.state
            self._tried = answers
            await self._serve(before.config, _same, moved=True)
            if host_part(self.state.services) != host_part(before.services):
                self.events.emit("names-changed", "backend names resolve to new addresses")
                await self._announce()

    def next_expiry(self, *, weighing: bool) -> float | None:
        """When the next override expires or reaches its deadline, on the monotonic clock: of those
        that change weights alone, and the log level, or of the others."""
        moments = [
            at
            for one in self.state.overrides
            if (one.action in WEIGHING) is weighing
            for at in (one.until, one.deadline)
        ]
        if weighing and self._log_before is not None:
            moments.append(self._log_before[1])
        return min((at for at in moments if at is not None), default=None)

    async def expire(self, now: float, *, weighing: bool) -> None:
        """End overrides that have expired, and the flows of drained backends at their deadline: of
        those that change weights alone, and a log level, or of the others. FeatherlbError if that
        fails."""
        if weighing and self._log_before is not None and self._log_before[1] <= now:
            await self._use_log_level(self._log_before[0])
        due = [one for one in self.state.overrides if (one.action in WEIGHING) is weighing]
        for override in due:
            if override.deadline is not None and override.deadline <= now:
                await self._end_drained_flows(override)
        for override in due:
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
                    await self.data.restore(found)
                    watch.restored(found)
                if moved:
                    await self.data.follow_vips()
        except HostError as error:
            if not self._stopping:
                watch.failed(error)

    # How it is done

    def _refuse_if_stopping(self) -> None:
        if self._stopping:
            raise HostError("featherlb is stopping")

    @asynccontextmanager
    async def _one_at_a_time(self) -> AsyncIterator[None]:
        async with self._changing:
            self._refuse_if_stopping()
            # All stages of a change ask for the same routes.
            with rtnetlink.asked_once():
                yield

    async def _serve(
        self,
        config: Config,
        amend: Amendment,
        *,
        schedulers: Mapping[str, bytes] | None = None,
        repair: bool = False,
        moved: bool = False,
        required: Override | None = None,
    ) -> None:
        """Serve another configuration with the overrides of now amended, or after an exception the
        one before.

        `repair` sets up what somebody has changed on the host, which is else touched only where it
        has to be. `moved` uses the latest addresses of names. The addresses of `required` must be
        among those that can be used.
        """
        before = self.state
        overrides = amend(config, before.overrides)
        self._amendments = []
        running = with_overrides(config, overrides)
        found = await asyncio.to_thread(self._look_for, running, before, repair=repair, moved=moved)
        if required is not None:
            _require(required, found)
        code = before.schedulers if schedulers is None else schedulers
        wanted = _state(config, overrides, found, code)
        await run(plan(before, wanted, repair=repair), self._execute)
        self.state = replace(self.state, departing=self.data.departing)

    def _look_for(
        self, running: Config, before: State, *, repair: bool = False, moved: bool = False
    ) -> Found:
        """What a configuration comes to on this host. HostError or ConfigError if this host can't
        serve it. Blocks."""
        current = () if repair else before.services

        def attempt(answers: Answers) -> Found:
            found = find_services(running, answers, current)
            if repair or host_part(found.services) != host_part(before.services):
                check(found.services, self.data.options)
            return found

        answers = self._answers(running)
        if moved:
            return with_names(answers, before.names, attempt)
        known = {name: before.names.get(name) or found for name, found in answers.items()}
        return with_names(known, before.names, attempt, before.refused)

    def _answers(self, running: Config) -> Answers:
        return self.resolver.answers(names(running))

    async def _execute(self, action: transition.Action) -> None:
        """Carry out an action of a transition. The weights are those of the moment at which the
        workers get them."""
        if not isinstance(action, ApplyServices):
            await self.data.execute(action)
            return
        async with self._serving:
            state = action.state
            for amend in self._amendments:
                # The transition may have taken away what it was about.
                with suppress(ConfigError):
                    state = replace(state, overrides=amend(state.config, state.overrides))
            judgement = self._weigh(state, {one.name for one in state.services})
            state = replace(state, services=judgement.services)
            await self.data.execute(replace(action, state=state))
            self.state = state
            self.health.follow(state.running, judgement)
            self.overrides_changed.set()
            self._tell_of_absent()

    async def _amend(self, service: str, amend: Amendment) -> Overrides:
        """Put other overrides in force, which change the weights of a service's backends; those
        before."""
        async with self._serving:
            self._refuse_if_stopping()
            state = self.state
            overrides = amend(state.config, state.overrides)
            await self._reweigh(replace(state, overrides=overrides), {service})
            if self._changing.locked():
                self._amendments.append(amend)
            self.overrides_changed.set()
            return state.overrides

    async def _reweigh(self, state: State, services: Collection[str]) -> None:
        """Serve a state that differs in weights alone, and only of these services; after an
        exception, serve the one before."""
        judgement = self._weigh(state, services)
        before = {one.name: one for one in self.state.services if one.name in services}
        changed = [one for one in judgement.services if one != before[one.name]]
        try:
            if changed:
                await self.data.reweigh(changed)
        except BaseException:
            with suppress(HostError):
                await self.data.reweigh([before[one.name] for one in changed])
            raise
        self.state = replace(state, services=merge(state.services, changed))
        self.health.follow_some(judgement)

    def _weigh(self, state: State, services: Collection[str]) -> Judgement:
        """Those of these services that the state has, with the weights that follow from its
        overrides and from health."""
        configured = {one.name: one for one in state.running.services if one.name in services}
        return self.health.judge(
            state.running,
            [
                with_weights(one, configured[one.name], state.places.get(one.name))
                for one in state.services
                if one.name in configured
            ],
        )

    async def _use_log_level(self, level: LogLevel) -> None:
        self._log_before = None
        log_level.use(level)
        self.events.emit("log-level", f"log level {level}", logging.WARNING)
        await self.data.log_flows(level is LogLevel.DEBUG)

    async def _end(self, override: Override, how: str) -> None:
        if override.action in WEIGHING:
            await self._amend(override.service, partial(_without, override.number))
        else:
            async with self._one_at_a_time():
                await self._serve(self.state.config, partial(_without, override.number))
        self.events.emit("reverted", f"{how}: {override}", change=override.number)

    async def _end_drained_flows(self, override: Override) -> None:
        """At its deadline, which is over then."""
        await self._amend(override.service, partial(_past_deadline, override.number))
        count = 0
        for endpoint in self._endpoints(override):
            wanted = FlowFilter(service=override.service, backend=endpoint)
            count += await self.data.workers.end_flows(wanted, reset=True)
        self.events.emit(
            "drain-deadline",
            f"{override.service}: drain deadline of {override.backend}, {count} flows reset",
            service=override.service,
            backend=override.backend,
            count=count,
        )

    def _endpoints(self, override: Override) -> list[Endpoint]:
        """Where the backend of an override is served."""
        address, port, last_port = override.key
        if not isinstance(address, str):
            return [Endpoint(address, port, last_port)]
        return [
            place.endpoint
            for place in self.state.places.get(override.service, ())
            if place.backend.key == override.key
            and place.endpoint is not None
            and not place.problem
        ]

    def _tell_of_absent(self) -> None:
        """Log once which backends are absent, which ones are no longer, and which addresses of
        names are not used."""
        now = absent(self.state.places)
        for (service, backend), reason in now.items():
            if self._absent.get((service, backend)) != reason:
                self.events.emit(
                    "backend-absent",
                    f"{service}: backend {backend} is absent: {reason}",
                    logging.WARNING,
                    service=service,
                    backend=backend,
                    reason=reason,
                )
        for service, backend in self._absent.keys() - now.keys():
            self.events.emit(
                "backend-present",
                f"{service}: backend {backend} is absent no longer",
                service=service,
                backend=backend,
            )
        self._absent = now
        for name, reason in self.state.refused.items():
            if self._refused.get(name) != reason:
                text = f"the latest addresses of '{name}' can't be used: {reason}"
                self.events.emit("name-refused", text, logging.WARNING, name=name, reason=reason)
        self._refused = self.state.refused

    async def _end_flows_of_fallen(self, name: str, endpoint: Endpoint) -> None:
        service = next((s for s in self.state.running.services if s.name == name), None)
        if service is None:
            return
        policy = service.on_backend_down
        # A UDP client would wait in vain, and loses nothing with another backend.
        if policy is not OnBackendDown.KEEP or service.protocol is Protocol.UDP:
            await self.data.execute(EndFlows(name, endpoint, policy is OnBackendDown.RESET))

    def _with_address(self, vip: VipConfig) -> VipConfig:
        found = self.state.names.get(vip.host, ()) if isinstance(vip.host, str) else ()
        return replace(vip, host=found[0]) if found else vip

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


def _state(
    config: Config, overrides: Overrides, found: Found, schedulers: Mapping[str, bytes]
) -> State:
    return State(
        config,
        overrides,
        services=found.services,
        schedulers=schedulers,
        names=found.answers,
        places=found.places,
        refused=found.refused,
    )


def _same(config: Config, overrides: Overrides) -> Overrides:
    return overrides


def _none(config: Config, overrides: Iterable[Override]) -> Overrides:
    return ()


def _add(override: Override, config: Config, overrides: Overrides) -> Overrides:
    return add(config, overrides, override)


def _without(number: int, config: Config, overrides: Overrides) -> Overrides:
    return applicable(config, [one for one in overrides if one.number != number])


def _past_deadline(number: int, config: Config, overrides: Overrides) -> Overrides:
    return tuple(replace(one, deadline=None) if one.number == number else one for one in overrides)


def _require(override: Override, found: Found) -> None:
    """ConfigError if the backend that an override adds has no address that can be used."""
    ours = [
        place
        for place in found.places.get(override.service, ())
        if place.backend.key == override.key
    ]
    if ours and all(place.problem for place in ours):
        raise ConfigError([f"{override.backend} can't be a backend: {ours[0].problem}"])
