"""Canaries: backends on trial. What clients meet at one is compared with what they meet at the
others, and it gets its full part in the end, or is drained."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from enum import StrEnum
from math import isnan, nan

from featherlb.config.canary import METRICS, metrics_of, of_others
from featherlb.config.expression import Condition, Watch
from featherlb.control.changes import RunTimeChanges
from featherlb.control.flight import FlightRecordings
from featherlb.control.overrides import Canary, Override
from featherlb.control.serving import Serving
from featherlb.core.path.export import BackendStats
from featherlb.model import Endpoint, Health, Service
from featherlb.model.counted import counted
from featherlb.model.errors import ConfigError

ENOUGH = 20
"""New flows after which a canary is judged."""


class Result(StrEnum):
    """How a trial ends."""

    PROMOTED = "promoted"
    ABORTED = "aborted"


def unseen(service: Service, wanted: Condition) -> str:
    """A metric of the condition that this service's datapath doesn't count; empty if there is
    none."""
    if not service.datapath.kernel_forwards:
        return ""
    hidden = ["retransmissions", "resets", *([] if service.measured else ["latency"])]
    return next((metric for metric in hidden if metric in metrics_of(wanted)), "")


@dataclass(frozen=True, slots=True)
class Counts:
    """What backends have counted. Times are in seconds."""

    flows: int = 0
    refused: int = 0
    timeouts: int = 0
    retransmissions: int = 0
    resets: int = 0
    answers: int = 0
    answer_time: float = 0.0

    @classmethod
    def of(cls, one: BackendStats) -> "Counts":
        return cls(
            one.flows,
            one.refused,
            # A flow that has left a silent backend times out there, unless that answers late.
            max(one.syn_timeouts, one.moved_silent),
            one.syn_retries + one.retransmits_forward + one.retransmits_reply,
            one.resets,
            sum(one.answers),
            one.answer_time,
        )

    def plus(self, other: "Counts") -> "Counts":
        return Counts(*(sum(pair) for pair in zip(astuple(self), astuple(other), strict=True)))

    def since(self, before: "Counts") -> "Counts":
        """What was counted after that; a worker that has died has a successor that counts anew."""
        if self.flows < before.flows:
            return self
        pairs = zip(astuple(self), astuple(before), strict=True)
        return Counts(*(max(0, now - then) for now, then in pairs))

    def metrics(self) -> dict[str, float]:
        """By name: per new flow, and the mean latency in seconds. Not a number where nothing was
        counted, so that no comparison holds."""
        flows = self.flows or nan
        return {
            "failures": (self.refused + self.timeouts) / flows,
            "refused": self.refused / flows,
            "timeouts": self.timeouts / flows,
            "retransmissions": self.retransmissions / flows,
            "resets": self.resets / flows,
            "latency": self.answer_time / self.answers if self.answers else nan,
        }


_Place = tuple[int, Endpoint]
"""A worker and a backend."""


class Trial:
    """What is known of one canary."""

    def __init__(self, canary: Canary) -> None:
        self.own = Counts()
        self.others = Counts()
        self._canary = canary
        self._watch = Watch(canary.abort_if)
        self._last: dict[_Place, Counts] = {}
        self._begun = False

    def take(
        self,
        statistics: Mapping[int, Collection[BackendStats]],
        service: str,
        endpoints: Collection[Endpoint],
    ) -> None:
        """Take in what each worker has counted; the canary has these endpoints."""
        for place, now, is_canary in _counts(statistics, service):
            own = place[1] in endpoints
            if is_canary and not own:
                continue
            # The others have counted long before.
            before = self._last.get(place, Counts() if own or self._begun else now)
            self._last[place] = now
            if own:
                self.own = self.own.plus(now.since(before))
            else:
                self.others = self.others.plus(now.since(before))
        self._begun = True

    def failure(self, now: float) -> str:
        """Why the trial has failed at this time; empty if it hasn't."""
        if self.own.flows < ENOUGH:
            return ""
        own, others = self.own.metrics(), self.others.metrics()
        samples: dict[str, Sequence[tuple[Mapping[str, str], float]]] = {}
        for metric in METRICS:
            samples[metric] = [({}, own[metric])]
            samples[of_others(metric)] = [({}, others[metric])]
        if not self._watch.is_true(samples, now):
            return ""
        shown = ", ".join(
            f"{metric} {describe(metric, own[metric])} (others {describe(metric, others[metric])})"
            for metric in metrics_of(self._canary.abort_if)
        )
        return f"{self._canary.abort_if}: {shown}, {counted(self.own.flows, 'flow')}"


def _counts(
    statistics: Mapping[int, Collection[BackendStats]], service: str
) -> Iterator[tuple[_Place, Counts, bool]]:
    """Of each backend; with whether it is on trial."""
    for worker, backends in statistics.items():
        for backend in backends:
            if backend.service == service:
                one = backend.backend
                yield (worker, one.endpoint), Counts.of(backend), bool(one.canary)


def describe(metric: str, value: float) -> str:
    """A metric as text."""
    if isnan(value):
        return "unknown"
    return f"{1000 * value:.3g} ms" if metric == "latency" else f"{100 * value:.3g} %"


@dataclass(frozen=True, slots=True)
class CanaryView:
    """What is known of the canaries on trial, by the number of the change, and how many trials have
    ended how, by `Result`."""

    trials: Mapping[int, Trial]
    results: Mapping[str, int]


class Canaries:
    """Judges the canaries that are in force."""

    def __init__(
        self, serving: Serving, changes: RunTimeChanges, recordings: FlightRecordings
    ) -> None:
        self._results = dict.fromkeys(map(str, Result), 0)
        self._serving = serving
        self._changes = changes
        self._recordings = recordings
        self._trials: dict[int, Trial] = {}
        self._begun: dict[Canary, Trial] = {}
        """Those that have not been looked at since."""

    @property
    def view(self) -> CanaryView:
        return CanaryView(dict(self._trials), dict(self._results))

    @property
    def in_force(self) -> bool:
        return any(one.canary is not None for one in self._serving.state.overrides)

    async def begin(self, service: str, canary: Canary) -> None:
        """Note what was counted before a trial. ConfigError if this service can't be judged by its
        condition."""
        served = next((one for one in self._serving.state.services if one.name == service), None)
        if served is not None and (metric := unseen(served, canary.abort_if)):
            raise ConfigError(
                [f"'{service}' is served by the datapath {served.datapath}, which has no {metric}"]
            )
        trial = Trial(canary)
        trial.take(await self._counts(), service, ())
        now = time.monotonic()
        self._begun = {one: known for one, known in self._begun.items() if one.until > now}
        self._begun[canary] = trial

    async def judge(self) -> None:
        """Promote or abort those for which it is time. FeatherlbError if that fails."""
        serving = self._serving
        statistics = await self._counts()
        now = time.monotonic()
        trials: dict[int, Trial] = {}
        for override in serving.state.overrides:
            if override.canary is None:
                continue
            trial = self._trials.get(override.number) or self._begun.pop(override.canary, None)
            trial = trial or Trial(override.canary)
            trials[override.number] = trial
            endpoints = serving.state.endpoints_of(override.service, override.key)
            trial.take(statistics, override.service, endpoints)
        self._trials = trials
        for override in serving.state.overrides:
            if (known := trials.get(override.number)) and override.canary is not None:
                await self._decide(override, override.canary, known, now)

    async def _counts(self) -> dict[int, Collection[BackendStats]]:
        """What each worker has counted."""
        found = await self._serving.data.workers.statistics()
        return {worker: one.core.backends for worker, one in found.items()}

    async def _decide(self, override: Override, canary: Canary, trial: Trial, now: float) -> None:
        flows = counted(trial.own.flows, "flow")
        if why := trial.failure(now):
            await self._abort(override, why)
        elif now < canary.until:
            return
        elif trial.own.flows < ENOUGH:
            await self._abort(override, f"{flows} are too few to judge it by ({ENOUGH} are enough)")
        elif (health := self._health(override)) not in (Health.UP, None):
            await self._abort(override, f"it is {health}")
        else:
            await self._changes.promote(override, f"it has done well with {flows}")
            self._results[Result.PROMOTED] += 1

    async def _abort(self, override: Override, why: str) -> None:
        await self._changes.abort(override, why)
        self._results[Result.ABORTED] += 1
        if self._serving.state.config.recorder.size:
            text = f"the canary {override.backend} of {override.service} was aborted: {why}"
            await self._recordings.save_if_possible(text)

    def _health(self, override: Override) -> Health | None:
        """The worst state of its addresses; None if none is checked."""
        states = [
            self._serving.health.state(override.service, endpoint)
            for endpoint in self._serving.state.endpoints_of(override.service, override.key)
        ]
        return next((one for one in states if one not in (Health.UP, None)), None)
