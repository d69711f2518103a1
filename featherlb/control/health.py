"""Which backends are healthy: by checks, each at its own interval, and by clients' connections.

Lives in the supervisor: workers only learn that a backend's weight is 0, or that its share is to
grow slowly.
"""

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial, reduce
from operator import or_

from featherlb.config import Config, ServiceConfig
from featherlb.control.events import Events
from featherlb.control.probes import NoVerdictError, probe
from featherlb.control.tasks import Tasks, cancel
from featherlb.core.pools.hysteresis import Hysteresis, panicking
from featherlb.core.pools.outlier import Outlier, Sample
from featherlb.model import Backend, CheckType, Endpoint, Health, HealthCheck, Ramp, Service
from featherlb.model.counted import counted

FASTER = 4
"""By how much the interval is shorter while results and state disagree."""
NO_VERDICT_INTERVAL = 60.0
"""Seconds between two reports of checks that couldn't be made."""
CONFIRMATION = HealthCheck(CheckType.TCP)
"""The connection that decides about a backend whose clients' connections fail."""
OUTCOMES = 6
"""Numbers of a backend in `Views.outcomes`."""
ACQUITTAL_INTERVAL = 60.0
"""Seconds between two reports of a backend that such a connection has acquitted."""

_Key = tuple[str, Endpoint]


@dataclass(slots=True)
class _Checked:
    """A backend of a service."""

    check: HealthCheck | None
    hysteresis: Hysteresis | None
    outlier: Outlier | None
    failure: str = ""
    acquitted: float = float("-inf")
    """When its last acquittal was reported."""
    confirmation: "asyncio.Task[None] | None" = field(default=None, repr=False)
    """Confirms its ejection."""
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)

    @property
    def state(self) -> Health:
        if self.outlier and self.outlier.ejected:
            return Health.EJECTED
        return self.hysteresis.state if self.hysteresis else Health.UP


@dataclass(frozen=True, slots=True)
class Judgement:
    """Services as they are to be served, the names of those whose health is ignored, and the
    backends that join now, with the time."""

    services: tuple[Service, ...]
    panic: frozenset[str]
    joining: dict[_Key, float]


class HealthChecks:
    """What is known of the backends of one instance."""

    def __init__(self, events: Events, tasks: Tasks) -> None:
        self._events = events
        self._tasks = tasks
        self._checked: dict[_Key, _Checked] = {}
        self._known: dict[str, frozenset[Endpoint]] = {}
        """The backends that were there before, by service."""
        self._probed: dict[_Key, Endpoint] = {}
        self._risen: dict[_Key, float] = {}
        """When backends came up, or joined."""
        self.fallen: list[_Key] = []
        """The backends that went down, by service. `Upkeep` removes each once it has treated
        its flows."""
        self._ending: set[asyncio.Task[None]] = set()
        self._without_verdict = 0
        """Checks that couldn't be made since that was reported last."""
        self._reported = float("-inf")
        """When that was."""
        self.panic: frozenset[str] = frozenset()
        """The services whose health is ignored."""
        self.changed = asyncio.Event()
        """Set when a state has changed; cleared by the task that applies it."""
        self.changes: set[str] = set()
        """The services with backends whose state has changed since `Upkeep` last took it into
        account: then it removes them."""
        self.watched: tuple[str, ...] = ()
        """The services that are judged by clients' connections, too."""

    def state(self, service: str, backend: Endpoint) -> Health | None:
        """None if it isn't checked."""
        checked = self._checked.get((service, backend))
        return checked.state if checked else None

    def failure(self, service: str, backend: Endpoint) -> str:
        """Why the last check failed, or why it is ejected; empty if neither is so."""
        checked = self._checked.get((service, backend))
        return checked.failure if checked else ""

    def ejections(self, service: str, backend: Endpoint) -> int | None:
        """How often it was ejected; None if connections to it are not watched."""
        checked = self._checked.get((service, backend))
        return checked.outlier.ejections if checked and checked.outlier else None

    def acquittals(self, service: str, backend: Endpoint) -> int | None:
        """How often it was suspected and not ejected; None as for `ejections`."""
        checked = self._checked.get((service, backend))
        return checked.outlier.acquittals if checked and checked.outlier else None

    def judge(self, config: Config, services: Sequence[Service]) -> Judgement:
        """These services, all or some, with weight 0 for unhealthy backends, and with ramps for
        those that rose a short while ago. Changes nothing until `follow`."""
        now = time.monotonic()
        panic: set[str] = set()
        joining = {
            key: now
            for service in services
            if (known := self._known.get(service.name)) is not None
            for one in service.backends
            if one.endpoint not in known
            and (key := (service.name, one.endpoint)) not in self._risen
        }
        risen = {**joining, **self._risen}

        def judged(configured: ServiceConfig, service: Service) -> Service:
            healthy = {one: self._is_healthy(configured, one) for one in service.backends}
            ignored = panicking(
                [(one.role, healthy[one]) for one in service.backends if one.weight],
                configured.panic_threshold,
            )
            if ignored is not None:
                panic.add(service.name)

            def usable(one: Backend) -> bool:
                return healthy[one] or one.role is ignored

            return replace(
                service,
                backends=tuple(
                    replace(
                        one,
                        weight=one.weight if usable(one) else 0,
                        ramp=_ramp(configured, risen.get((service.name, one.endpoint)), now),
                        down=not healthy[one],
                        missing=bool(one.weight) and not usable(one),
                    )
                    for one in service.backends
                ),
            )

        names = {service.name for service in services}
        by_name = {one.name: one for one in config.services if one.name in names}
        after = tuple(judged(by_name[service.name], service) for service in services)
        return Judgement(after, frozenset(panic), joining)

    def _is_healthy(self, configured: ServiceConfig, backend: Backend) -> bool:
        if not (configured.health or configured.passive_health):
            return True
        state = self.state(configured.name, backend.endpoint)
        if state is None and configured.health:
            state = configured.health.initial
        return state in (Health.UP, None)

    def follow(self, config: Config, judgement: Judgement) -> None:
        """Look after the backends of these services from now on, and no others.

        What is known of a backend stays known where only its check has changed.
        """
        by_name = {service.name: service for service in config.services}
        self._probed = {
            (one.name, each.endpoint): one.probed(each)
            for one in judgement.services
            for each in one.backends
        }
        keys = self._probed.keys()
        before = self._checked
        self._checked = {}
        for key in keys:
            checked = _follow(by_name[key[0]], before.get(key))
            if checked is None:
                continue
            self._checked[key] = checked
            if checked is before.get(key):
                del before[key]
            elif checked.check:
                # No packet depends on a single check, and a backend may be what makes it fail.
                checked.task = self._tasks.start(
                    "health-checks",
                    partial(self._watch, key, checked, checked.check),
                    subject=f"{key[1]} of {key[0]}",
                    vital=False,
                )
        for gone in before.values():
            self._end(gone)
        self._known = {
            service.name: frozenset(one.endpoint for one in service.backends)
            for service in judgement.services
        }
        risen = {**judgement.joining, **self._risen}
        self._risen = {key: since for key, since in risen.items() if key in keys}
        self.watched = tuple(one.name for one in config.services if one.passive_health)
        self._report_panic(judgement.panic)

    def follow_some(self, judgement: Judgement) -> None:
        """Like `follow`, for some of the services, whose weights have changed and nothing else."""
        judged = {service.name for service in judgement.services}
        self._report_panic(self.panic - judged | judgement.panic)

    def observe(
        self, services: Sequence[Service], outcomes: Sequence[Mapping[str, Sequence[int]]]
    ) -> None:
        """Take in what each worker has counted for these services (see `Views.outcomes`), and
        readmit backends because of it, or have their ejection confirmed."""
        now = time.monotonic()
        samples: dict[_Key, Sample] = {}
        watched = set(self.watched)
        for service in services:
            if service.name not in watched:
                continue
            counted = [one[service.name] for one in outcomes if service.name in one]
            for number, backend in enumerate(service.backends):
                first = number * OUTCOMES
                rows = [row for one in counted if (row := one[first : first + OUTCOMES])]
                sums = [sum(each) for each in zip(*(row[:4] for row in rows), strict=True)]
                unions = [
                    reduce(or_, each) for each in zip(*(row[4:] for row in rows), strict=True)
                ]
                if rows:
                    samples[service.name, backend.endpoint] = Sample(now, *sums, *unions)
        used: dict[str, list[tuple[_Key, _Checked, Outlier]]] = {}
        for key, checked in self._checked.items():
            outlier = checked.outlier
            if outlier is None:
                continue
            if outlier.ejected:
                if now >= outlier.until:
                    self._end_ejection(key, checked, outlier)
                continue
            outlier.take(samples.get(key, Sample(now, 0, 0)))
            used.setdefault(key[0], []).append((key, checked, outlier))
        for backends in used.values():
            self._judge(backends, now)

    def _judge(self, backends: Sequence[tuple[_Key, _Checked, Outlier]], now: float) -> None:
        """Eject those of a service's backends that give reason to, or have that confirmed."""
        times = [one.latency() if one.rules.slower else None for _, _, one in backends]
        for number, (key, checked, outlier) in enumerate(backends):
            if checked.state is not Health.UP or not self._may_eject(key[0], outlier):
                continue
            others = [*times[:number], *times[number + 1 :]]
            if outlier.failing():
                if checked.confirmation is None:
                    checked.confirmation = self._tasks.start(
                        "health-checks",
                        partial(self._confirm, key, checked, outlier),
                        subject=f"ejection of {key[1]} of {key[0]}",
                        vital=False,
                    )
            elif slow := outlier.too_slow([one for one in others if one is not None]):
                latency, usual = (f"{1000 * one:.3g} ms" for one in slow)
                self._eject(
                    key,
                    checked,
                    f"it takes {latency} to answer a SYN, the others take {usual}",
                    outlier.eject(now, slow=True),
                )

    def _end_ejection(self, key: _Key, checked: _Checked, outlier: Outlier) -> None:
        """The time of an ejection is over: use the backend again, unless its health checks are to
        decide that."""
        if checked.hysteresis is None or (outlier.slow and checked.hysteresis.state is Health.UP):
            self._rise(key, checked)
        elif outlier.slow:
            outlier.readmit(time.monotonic())

    async def stop(self) -> None:
        """End all checks and the processes that they have started."""
        for checked in self._checked.values():
            self._end(checked)
        self._checked = {}
        await cancel(self._ending)

    def _end(self, checked: _Checked) -> None:
        for task in (checked.task, checked.confirmation):
            if task:
                task.cancel()
                # The loop keeps only weak references to tasks.
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    async def _watch(self, key: _Key, checked: _Checked, check: HealthCheck) -> None:
        hysteresis = checked.hysteresis
        assert hysteresis is not None
        loop = asyncio.get_running_loop()
        # Spread over the interval, so that many checks never start at once.
        await asyncio.sleep(random.uniform(0, check.interval))
        while True:
            begun = loop.time()
            try:
                failure = await probe(check, check.endpoint(self._probed[key])) or ""
            except NoVerdictError as error:
                self._report_no_verdict(error)
                await asyncio.sleep(check.interval)
                continue
            if failure or checked.state is not Health.EJECTED:
                checked.failure = failure
            if hysteresis.take(not failure):
                if failure:
                    self.fallen.append(key)
                    self._fall(key, "backend-down", f"is down: {failure}", failure)
                else:
                    self._rise(key, checked)
            faster = 1 if hysteresis.agrees else FASTER
            await asyncio.sleep(max(0.0, begun + check.interval / faster - loop.time()))

    async def _confirm(self, key: _Key, checked: _Checked, outlier: Outlier) -> None:
        """Eject the backend, unless it accepts a connection of our own: who sends SYNs in the name
        of others, or answers in the backend's, can make connections fail."""
        service, backend = key
        try:
            accepts = await self._accepts(self._probed[key])
        finally:
            checked.confirmation = None
        failing = outlier.failing()
        if (
            failing is None
            or checked.state is not Health.UP
            or checked.outlier is not outlier
            or self._checked.get(key) is not checked
            or not self._may_eject(service, outlier)
        ):
            return
        now = time.monotonic()
        if not accepts:
            self._eject(key, checked, _failures(*failing), outlier.eject(now))
            return
        outlier.acquit()
        if now - checked.acquitted >= ACQUITTAL_INTERVAL:
            checked.acquitted = now
            self._events.emit(
                "backend-acquitted",
                f"{service}: {backend} is not ejected: {_failures(*failing)}, but one of"
                " featherlb's own did not",
                service=service,
                backend=str(backend),
            )

    async def _accepts(self, backend: Endpoint) -> bool:
        """Whether a connection to it succeeds. One that this host can't make contradicts nobody,
        and at a backend of all ports there is none to try."""
        if not backend.port:
            return False
        try:
            return await probe(CONFIRMATION, backend) is None
        except NoVerdictError as error:
            self._report_no_verdict(error)
            return False

    def _may_eject(self, service: str, outlier: Outlier) -> bool:
        """Whether not too many of a service's backends are ejected already."""
        others = [one.outlier for (name, _), one in self._checked.items() if name == service]
        ejected = sum(other is not None and other.ejected for other in others)
        return 100 * (ejected + 1) <= outlier.rules.max_ejected * len(others)

    def _eject(
        self,
        key: _Key,
        checked: _Checked,
        reason: str,
        duration: float,
    ) -> None:
        assert checked.outlier is not None
        ending = f"for {duration:g} s"
        if checked.hysteresis and not checked.outlier.slow:
            checked.hysteresis.fall_at_once()
            ending = "until its health checks succeed"
        checked.failure = reason
        if not checked.outlier.slow:  # else its flows are well where they are
            self.fallen.append(key)
        self._fall(key, "backend-ejected", f"is ejected {ending}: {reason}", reason)

    def _fall(self, key: _Key, kind: str, message: str, reason: str) -> None:
        service, backend = key
        self._risen.pop(key, None)
        self._events.emit(
            kind,
            f"{service}: {backend} {message}",
            logging.WARNING,
            service=service,
            backend=str(backend),
            reason=reason,
        )
        self._note_change(service)

    def _rise(self, key: _Key, checked: _Checked) -> None:
        service, backend = key
        now = time.monotonic()
        outlier = checked.outlier
        if outlier and outlier.ejected:
            if outlier.slow and now < outlier.until:  # its health checks don't know
                return
            outlier.readmit(now)
        checked.failure = ""
        self._risen[key] = now
        self._events.emit(
            "backend-up", f"{service}: {backend} is up", service=service, backend=str(backend)
        )
        self._note_change(service)

    def _note_change(self, service: str) -> None:
        self.changes.add(service)
        self.changed.set()

    def _report_no_verdict(self, error: NoVerdictError) -> None:
        self._without_verdict += 1
        now = time.monotonic()
        if now - self._reported < NO_VERDICT_INTERVAL:
            return
        count = self._without_verdict
        self._events.emit(
            "health-no-verdict",
            f"{counted(count, 'health check')} could not run, backends keep their states: {error}",
            logging.WARNING,
            count=count,
            reason=str(error),
        )
        self._without_verdict, self._reported = 0, now

    def _report_panic(self, panic: frozenset[str]) -> None:
        for service in sorted(panic - self.panic):
            self._events.emit(
                "panic",
                f"{service}: too few backends are healthy, all are used",
                logging.WARNING,
                service=service,
            )
        for service in sorted(self.panic - panic):
            message = f"{service}: enough backends are healthy, only these are used"
            self._events.emit("panic-over", message, service=service)
        self.panic = panic


def _failures(opened: int, failed: int) -> str:
    return f"{failed} of {counted(max(opened, failed), 'connection')} failed"


def _ramp(configured: ServiceConfig, risen: float | None, now: float) -> Ramp | None:
    """The slow start of a backend that rose, or joined, at this time."""
    if configured.slow_start is None or risen is None:
        return None
    ramp = Ramp(risen, configured.slow_start)
    return ramp if ramp.progress(now) < 1 else None


def _follow(configured: ServiceConfig, known: _Checked | None) -> _Checked | None:
    """What is known of a backend under another configuration; None if it isn't to be checked."""
    check, rules = configured.health, configured.passive_health
    outlier = known.outlier if known else None
    if outlier is None or outlier.rules != rules:
        outlier = Outlier(rules) if rules else None
    if known and known.check == check:
        known.outlier = outlier
        return known if check or outlier else None
    hysteresis = None
    if check:
        before = known.hysteresis if known else None
        hysteresis = Hysteresis(check.rise, check.fall, before.state if before else check.initial)
    return _Checked(check, hysteresis, outlier) if check or outlier else None


def progress(backend: Backend) -> float:
    """Which part of its share a backend of an instance takes now, from 0 to 1."""
    return backend.ramp.progress(time.monotonic()) if backend.ramp else 1.0
