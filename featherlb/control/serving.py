"""What an instance serves, and how that changes: entirely, or not at all.

Transitions come one at a time, and may be slow: the host's programs wait for each other. A change
of weights alone, by health or by an operator, needs the workers and nothing else, and waits for no
transition. One that is under way takes it over (docs/decisions/weights-wait-for-nobody.md).
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

from featherlb import host
from featherlb.config import Config
from featherlb.config.resolve import names, with_weights
from featherlb.config.types import ClusterConfig
from featherlb.control.dataplane import DataPlane
from featherlb.control.events import Events
from featherlb.control.health import HealthChecks, Judgement
from featherlb.control.notices import Notices
from featherlb.control.overrides import Override, with_overrides
from featherlb.control.prepare import Answers, Found, check, find_services, with_names
from featherlb.control.resolver import Resolver
from featherlb.control.tasks import Tasks
from featherlb.control.transition import (
    Action,
    ApplyServices,
    EndFlows,
    State,
    UpdateHost,
    host_part,
    plan,
    run,
)
from featherlb.model import Endpoint, Service
from featherlb.model.errors import ConfigError, HostError
from featherlb.model.user_code import UserCode
from featherlb.system import rtnetlink
from featherlb.worker.protocol import merge

Overrides = tuple[Override, ...]
Amendment = Callable[[Config, Overrides], Overrides]
"""From the overrides in force on a configuration to others; ConfigError if that makes no sense."""


class Serving:
    """The state in force, and the locks that changes take."""

    def __init__(self, events: Events, tasks: Tasks) -> None:
        self.health = HealthChecks(events, tasks)
        self.data = DataPlane(events, tasks)
        self.resolver = Resolver()
        self._notices = Notices(events)
        self.state = State()
        """In force."""
        self.overrides_changed = asyncio.Event()
        self.stopping = False
        self._cluster: ClusterConfig | None = None
        """As at the start: the workers' flows depend on it."""
        self._changing = asyncio.Lock()
        """Held during a transition, for as long as the host takes."""
        self._applying = asyncio.Lock()
        """Held while the workers' services change, with the state in force; a transition takes it
        for that step alone."""
        self._amendments: list[Amendment] = []
        """Of the overrides, since the transition under way began."""

    async def start(
        self, config: Config, found: Found, user_code: Mapping[str, UserCode], plan: host.HostPlan
    ) -> None:
        """Serve what was found for a configuration, on a host that the plan prepares. HostError if
        that can't be done."""
        self._cluster = config.cluster
        judgement = self.health.judge(config, found.services)
        found = replace(found, services=judgement.services)
        self.state = state_of(config, (), found, user_code)
        await self.data.start(config, judgement.services, user_code, plan)
        self._notices.tell_of_absent(self.state)
        self.health.follow(config, judgement)

    async def announce(self) -> None:
        """Log what is served, and what may not be as intended with it."""
        await self._notices.announce(self.state, self.data.options)

    @asynccontextmanager
    async def ending(self) -> AsyncIterator[None]:
        """Complete the change in progress, and refuse all others."""
        self.stopping = True
        async with self._changing, self._applying:
            yield

    # Transitions

    @asynccontextmanager
    async def one_at_a_time(self) -> AsyncIterator[None]:
        """Wait for the transition under way, and keep others waiting. HostError if this instance
        is stopping."""
        async with self._changing:
            self._refuse_if_stopping()
            # All stages of a change ask for the same routes.
            with rtnetlink.asked_once():
                yield

    async def serve(
        self,
        config: Config,
        amend: Amendment,
        *,
        user_code: Mapping[str, UserCode] | None = None,
        repair: bool = False,
        moved: bool = False,
        accept: Callable[[Found], None] = lambda found: None,
    ) -> list[str]:
        """Serve another configuration with the overrides of now amended, or after an exception the
        one before. For a caller that is `one_at_a_time`. Returns which flows have ended, as lines.

        `repair` sets up what somebody has changed on the host, which is else touched only where it
        has to be. `moved` uses the latest addresses of names. `accept` may refuse what a
        configuration comes to, with a ConfigError.
        """
        before = self.state
        overrides = amend(config, before.overrides)
        self._amendments = []
        running = with_overrides(config, overrides)
        found = await asyncio.to_thread(self.look_for, running, before, repair=repair, moved=moved)
        accept(found)
        code = before.user_code if user_code is None else user_code
        wanted = state_of(config, overrides, found, code)
        ended: list[str] = []
        await run(plan(before, wanted, repair=repair), partial(self._execute, ended))
        self.state = replace(self.state, departing=self.data.departing)
        return ended

    def look_for(
        self, running: Config, before: State, *, repair: bool = False, moved: bool = False
    ) -> Found:
        """What a configuration comes to on this host. HostError or ConfigError if this host can't
        serve it. Blocks."""
        current = () if repair else before.services
        running = replace(running, cluster=self._cluster)

        def attempt(answers: Answers) -> Found:
            found = find_services(running, answers, current)
            if repair or host_part(found.services) != host_part(before.services):
                check(found.services, self.data.options)
            return found

        answers = self.resolver.answers(names(running))
        if moved:
            return with_names(answers, before.names, attempt)
        known = {name: before.names.get(name) or found for name, found in answers.items()}
        return with_names(known, before.names, attempt, before.refused)

    async def release_departed(self) -> list[tuple[str, Endpoint]]:
        """Remove from the host what departed backends needed whose last flow has ended; these, by
        service. HostError if the host refuses."""
        if not self.state.departing:
            return []
        async with self.one_at_a_time():
            state = self.state
            left = await self.data.still_departing(state.departing, state.services)
            if left == state.departing:
                return []
            await self.data.execute(UpdateHost(state.services, left))
            self.state = replace(self.state, departing=left)
            kept = _places(left)
            return [place for place in _places(state.departing) if place not in kept]

    async def _execute(self, ended: list[str], action: Action) -> None:
        """Carry out an action of a transition, and add to the flows that have `ended`. The weights
        are those of the moment at which the workers get them."""
        if isinstance(action, EndFlows):
            if text := await self.data.end_flows(action):
                ended.append(text)
            return
        if not isinstance(action, ApplyServices):
            await self.data.execute(action)
            return
        async with self._applying:
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
            self._notices.tell_of_absent(state)

    # Weights alone

    @property
    def applying(self) -> bool:
        """Whether the workers' services are changing now."""
        return self._applying.locked()

    async def amend(self, service: str, amend: Amendment) -> Overrides:
        """Put other overrides in force, which change the weights of a service's backends; those
        before. FeatherlbError if refused."""
        async with self._applying:
            self._refuse_if_stopping()
            state = self.state
            overrides = amend(state.config, state.overrides)
            await self._reweigh(replace(state, overrides=overrides), {service})
            if self._changing.locked():
                self._amendments.append(amend)
            self.overrides_changed.set()
            return state.overrides

    async def reweigh(self, services: Collection[str]) -> None:
        """Serve these services with the weights that follow from health now. HostError if a worker
        can't."""
        async with self._applying:
            self._refuse_if_stopping()
            await self._reweigh(self.state, services)

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

    def _refuse_if_stopping(self) -> None:
        if self.stopping:
            raise HostError("featherlb is stopping")


def state_of(
    config: Config, overrides: Overrides, found: Found, user_code: Mapping[str, UserCode]
) -> State:
    """The state in which an instance serves what was found."""
    return State(
        config,
        overrides,
        services=found.services,
        user_code=user_code,
        names=found.answers,
        places=found.places,
        refused=found.refused,
    )


def _places(services: tuple[Service, ...]) -> dict[tuple[str, Endpoint], None]:
    """The backends of services, in order, by the service's name."""
    return {(one.name, backend.endpoint): None for one in services for backend in one.backends}
