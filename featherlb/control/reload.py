"""Reloads: the configuration is read again and served, or what that would do is told."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import ParamSpec, TypeVar

from featherlb import host
from featherlb.config import Config
from featherlb.config.resolve import absent, names
from featherlb.control.diff import describe
from featherlb.control.events import Events
from featherlb.control.overrides import Override, applicable, with_overrides
from featherlb.control.prepare import load_code
from featherlb.control.serving import Overrides, Serving, state_of
from featherlb.control.transition import State, Step, plan
from featherlb.control.view import Reloads
from featherlb.model.errors import FeatherlbError, HostError
from featherlb.system.failure import log_traceback, sentence

READ_TIMEOUT = 60.0
"""Seconds for reading the configuration, and as many for users' code."""

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


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


class Reloader:
    """Reloads one instance."""

    def __init__(self, settings: Settings, serving: Serving, events: Events) -> None:
        self.outcome = Reloads()
        self._settings = settings
        self._serving = serving
        self._events = events
        self._reloading = asyncio.Lock()
        """Held from reading the file on: the file read last is in force last."""

    async def reload(self, *, discard: bool = False) -> list[str]:
        """Read the configuration again and serve it; what differs, and which flows have ended, as
        lines.

        Overrides stay in force where they still apply, or go with `discard`. On an error nothing
        changes, the reload counts as refused, and the exception says why.
        """
        async with self._reloading:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            before = self.outcome
            try:
                difference, ended = await self._reload(discard)
            except Exception as error:
                reason = sentence(error)
                self.outcome = Reloads(before.done, before.refused + 1, now, reason)
                self._events.emit(
                    "reload-refused", f"reload refused, nothing changed: {reason}", logging.ERROR
                )
                log_traceback(error)
                raise
            self.outcome = Reloads(before.done + 1, before.refused, now)
            self._events.emit("reloaded", f"reloaded: {'; '.join(difference) or 'no difference'}")
            await self._serving.announce()
            return difference + ended

    async def _reload(self, discard: bool) -> tuple[list[str], list[str]]:
        """What differs, and the flows that have ended, which are in the log already."""
        serving = self._serving
        # Nobody else waits for the disk, for users' code or for the resolver meanwhile.
        config = await _read(self._settings.load)
        user_code = await _read(load_code, config, serving.state.user_code)
        remaining = _none if discard else applicable
        overrides = remaining(config, serving.state.overrides)
        await serving.resolver.refresh(names(with_overrides(config, overrides)))
        async with serving.one_at_a_time():
            before = serving.state
            overrides = remaining(config, before.overrides)
            difference = describe(before.running, with_overrides(config, overrides))
            difference += host.repairs(await serving.data.deviations())
            ended = await serving.serve(
                config, remaining, user_code=user_code, repair=True, moved=True
            )
            difference += _dropped(before.overrides, serving.state.overrides)
            difference += [
                f"{service}: backend {backend} is absent: {reason}"
                for (service, backend), reason in absent(serving.state.places).items()
            ]
            return difference, ended

    async def preview(self) -> list[str]:
        """What a reload would change, as lines; nothing changes. FeatherlbError as `reload`."""
        serving = self._serving
        config = await _read(self._settings.load)
        await serving.resolver.refresh(names(config))
        async with serving.one_at_a_time():
            before = serving.state
            after = with_overrides(config, applicable(config, before.overrides))
            await asyncio.to_thread(serving.look_for, after, before, repair=True, moved=True)
            repairs = host.repairs(await serving.data.deviations())
            return describe(before.running, after) + repairs

    async def foresee(self, file: Config) -> Prospect:
        """What a reload would do if this were the content of the configuration file; nothing
        changes. ConfigError if it doesn't fit the command line."""
        serving = self._serving
        config = self._settings.merge(file)
        await serving.resolver.refresh(names(config))
        async with serving.one_at_a_time():
            before = serving.state
            overrides = applicable(config, before.overrides)
            running = with_overrides(config, overrides)
            differences = (
                *describe(before.running, running),
                *host.repairs(await serving.data.deviations()),
                *_dropped(before.overrides, overrides),
            )
            look_for = partial(serving.look_for, repair=True, moved=True)
            try:
                found = await asyncio.to_thread(look_for, running, before)
            except FeatherlbError as error:
                return Prospect(differences, before, refused=tuple(str(error).splitlines()))
            judgement = serving.health.judge(running, found.services)
            found = replace(found, services=judgement.services)
            wanted = state_of(config, overrides, found, before.user_code)
            steps = tuple(plan(before, wanted, repair=True))
            return Prospect(differences, before, wanted, steps)


async def _read(
    call: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
) -> _Result:
    """What a call returns that reads files or runs users' code. HostError if it hangs: reloads come
    one at a time, and the next one must not wait for it."""
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            return await asyncio.to_thread(call, *args, **kwargs)
    except TimeoutError:
        raise HostError(
            f"the configuration could not be read within {READ_TIMEOUT:g} s: its file, or the code"
            " of a scheduler, hangs"
        ) from None


def _dropped(before: Iterable[Override], after: Iterable[Override]) -> list[str]:
    """The overrides that are no longer there, as lines."""
    kept = {one.number for one in after}
    return [f"run-time change dropped: {one}" for one in before if one.number not in kept]


def _none(config: Config, overrides: Iterable[Override]) -> Overrides:
    return ()
