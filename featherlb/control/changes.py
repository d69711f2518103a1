"""Run-time changes: what operators do to backends and to the conditions for clients, until it
expires or they revert it."""

import logging
import time
from dataclasses import dataclass, replace
from functools import partial

from featherlb.config import Config, checks
from featherlb.config.faults import refuse
from featherlb.control.events import Events
from featherlb.control.overrides import (
    LIMITING,
    WEIGHING,
    Action,
    Override,
    add,
    applicable,
    with_overrides,
)
from featherlb.control.prepare import Found
from featherlb.control.serving import Overrides, Serving
from featherlb.control.workers import FlowFilter
from featherlb.model.counted import counted
from featherlb.model.errors import ConfigError


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


class RunTimeChanges:
    """Puts overrides in force, each with a number, and ends them."""

    def __init__(self, serving: Serving, events: Events) -> None:
        self._serving = serving
        self._events = events
        self._numbers = 0

    async def make(self, override: Override) -> Made:
        """Put an override in force; it is given its number here. FeatherlbError if refused."""
        self._numbers += 1
        override = replace(override, number=self._numbers)
        try:
            if override.action in WEIGHING:
                before = await self._serving.amend(override.service, partial(_add, override))
            else:
                before = await self._change(override)
        except BaseException:
            self._take_back(override.number)
            raise
        in_force = {one.number: one for one in self._serving.state.overrides}
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
            self._events.emit("changed", f"changed: {made}", logging.INFO, **numbers)
        return made

    async def revert(self, number: int) -> Override:
        """End an override. ConfigError if there is none of this number."""
        override = self._find(number)
        await self._end(override, "reverted")
        return override

    async def promote(self, canary: Override, why: str) -> None:
        """End the trial of a canary: it gets its full part. FeatherlbError if that fails."""
        await self._end_trial(canary, None)
        text = f"takes its full part: {why}"
        self._tell_of_canary(canary, "canary-promoted", text, logging.INFO)

    async def abort(self, canary: Override, why: str) -> None:
        """End the trial of a canary: it is drained. FeatherlbError if that fails."""
        self._numbers += 1
        drain = Override(self._numbers, Action.DRAIN, canary.service, canary.key, reason=why)
        await self._end_trial(canary, drain)
        self._tell_of_canary(canary, "canary-aborted", f"is drained: {why}", logging.WARNING)

    async def _end_trial(self, canary: Override, after: Override | None) -> None:
        await self._serving.amend(canary.service, partial(_tried, canary.number, after))

    def _tell_of_canary(self, canary: Override, kind: str, text: str, level: int) -> None:
        self._events.emit(
            kind,
            f"{canary.service}: the canary {canary.backend} {text}",
            level,
            service=canary.service,
            backend=canary.backend,
            change=canary.number,
        )

    def _find(self, number: int) -> Override:
        """ConfigError if there is none of this number."""
        for override in self._serving.state.overrides:
            if override.number == number:
                return override
        raise ConfigError([f"no change {number} is in force"])

    def next_expiry(self, *, weighing: bool) -> float | None:
        """When the next override expires or reaches its deadline, on the monotonic clock: of those
        that change weights alone, or of the others."""
        moments = (
            at
            for one in self._serving.state.overrides
            if (one.action in WEIGHING) is weighing
            for at in (one.until, one.deadline)
        )
        return min((at for at in moments if at is not None), default=None)

    async def expire(self, now: float, *, weighing: bool) -> None:
        """End overrides that have expired, and the flows of drained backends at their deadline: of
        those that change weights alone, or of the others. FeatherlbError if that fails."""
        overrides = self._serving.state.overrides
        due = [one for one in overrides if (one.action in WEIGHING) is weighing]
        for override in due:
            if override.deadline is not None and override.deadline <= now:
                await self._end_drained_flows(override)
        for override in due:
            if override.until is not None and override.until <= now:
                await self._end(override, "expired")

    def _take_back(self, number: int) -> None:
        """A number that isn't used after all, if no other was given since."""
        if self._numbers == number:
            self._numbers -= 1

    async def _change(self, override: Override) -> Overrides:
        """Add or remove a backend, or change the conditions for clients; the overrides before."""
        serving = self._serving
        adds = override.action is Action.ADD
        address = override.key[0]
        if adds and isinstance(address, str):
            await serving.resolver.refresh([address])
        async with serving.one_at_a_time():
            config, before = serving.state.config, serving.state.overrides
            if override.action in LIMITING:
                refuse(checks.check(with_overrides(config, add(config, before, override))))
            if not adds:
                await serving.serve(config, partial(_add, override))
                return before
            refuse(checks.check(with_overrides(config, add(config, before, override))))
            usable = partial(_refuse_without_address, override)
            await serving.serve(config, partial(_add, override), accept=usable)
            return before

    async def _end(self, override: Override, how: str) -> None:
        serving = self._serving
        end = partial(_without, override.number)
        if override.action in WEIGHING:
            await serving.amend(override.service, end)
        else:
            async with serving.one_at_a_time():
                await serving.serve(serving.state.config, end)
        self._events.emit("reverted", f"{how}: {override}", change=override.number)

    async def _end_drained_flows(self, override: Override) -> None:
        """At its deadline, which is over then."""
        await self._serving.amend(override.service, partial(_past_deadline, override.number))
        count = 0
        for endpoint in self._serving.state.endpoints_of(override.service, override.key):
            wanted = FlowFilter(service=override.service, backend=endpoint)
            count += await self._serving.data.workers.end_flows(wanted, reset=True)
        self._events.emit(
            "drain-deadline",
            f"{override.service}: drain deadline of {override.backend},"
            f" {counted(count, 'flow')} reset",
            service=override.service,
            backend=override.backend,
            count=count,
        )


def _add(override: Override, config: Config, overrides: Overrides) -> Overrides:
    return add(config, overrides, override)


def _without(number: int, config: Config, overrides: Overrides) -> Overrides:
    return applicable(config, [one for one in overrides if one.number != number])


def _tried(number: int, after: Override | None, config: Config, overrides: Overrides) -> Overrides:
    if all(one.number != number for one in overrides):
        return overrides  # somebody has reverted it
    ended = tuple(replace(one, canary=None) if one.number == number else one for one in overrides)
    return ended if after is None else add(config, ended, after)


def _past_deadline(number: int, config: Config, overrides: Overrides) -> Overrides:
    return tuple(replace(one, deadline=None) if one.number == number else one for one in overrides)


def _refuse_without_address(override: Override, found: Found) -> None:
    """ConfigError if the backend that an override adds has no address that can be used."""
    ours = [
        place
        for place in found.places.get(override.service, ())
        if place.backend.key == override.key
    ]
    if ours and all(place.problem for place in ours):
        raise ConfigError([f"{override.backend} can't be a backend: {ours[0].problem}"])
