"""Checks the backends that run, each in its own time, and says who is down.

Imports `core.health`, the probes and the configuration. Lives in the supervisor: workers only
learn that a backend's weight is 0.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from featherlb.config import Config
from featherlb.core.health import Hysteresis
from featherlb.drivers.probes import probe
from featherlb.events import Events
from featherlb.model import Backend, Endpoint, Health, HealthCheck, Service

FASTER = 4
"""By how much the interval is shorter while results and state disagree."""

_Key = tuple[str, Endpoint]


@dataclass(slots=True)
class _Checked:
    """A backend of a service."""

    check: HealthCheck
    hysteresis: Hysteresis
    failure: str = ""
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)


class HealthChecks:
    """The checks of one instance."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._checked: dict[_Key, _Checked] = {}
        self._fallen: list[_Key] = []
        self._ending: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()
        """Set when a state has changed; whoever acts on it clears it."""

    def state(self, service: str, backend: Endpoint) -> Health | None:
        """None if it isn't checked."""
        checked = self._checked.get((service, backend))
        return checked.hysteresis.state if checked else None

    def failure(self, service: str, backend: Endpoint) -> str:
        """Why the last check failed; empty if it didn't."""
        checked = self._checked.get((service, backend))
        return checked.failure if checked else ""

    def weigh(self, config: Config, services: Sequence[Service]) -> tuple[Service, ...]:
        """The services with weight 0 for the backends that are down."""
        checks = {service.name: service.health for service in config.services}

        def weighed(service: Service, backend: Backend) -> Backend:
            check = checks[service.name]
            state = self.state(service.name, backend.endpoint) or (check and check.initial)
            return replace(backend, weight=0) if check and state is Health.DOWN else backend

        return tuple(
            replace(service, backends=tuple(weighed(service, each) for each in service.backends))
            for service in services
        )

    def follow(self, config: Config, services: Sequence[Service]) -> None:
        """Check the backends of these services from now on, and no others.

        What is known of a backend stays known where only its check has changed.
        """
        checks = {service.name: service.health for service in config.services}
        wanted = {
            (service.name, backend.endpoint): check
            for service in services
            for backend in service.backends
            if (check := checks[service.name])
        }
        before = self._checked
        self._checked = {}
        for key, check in wanted.items():
            known = before.get(key)
            if known and known.check == check:
                self._checked[key] = before.pop(key)
                continue
            state = known.hysteresis.state if known else check.initial
            checked = _Checked(check, Hysteresis(check.rise, check.fall, state))
            checked.task = asyncio.create_task(self._watch(key, checked))
            self._checked[key] = checked
        for gone in before.values():
            self._end(gone)

    def take_fallen(self) -> list[_Key]:
        """The backends that went down since this was asked last, by service."""
        fallen, self._fallen = self._fallen, []
        return fallen

    async def stop(self) -> None:
        """End all checks; no process of theirs is left."""
        for checked in self._checked.values():
            self._end(checked)
        self._checked = {}
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _end(self, checked: _Checked) -> None:
        if checked.task:
            checked.task.cancel()
            # The loop keeps only weak references to tasks.
            self._ending.add(checked.task)
            checked.task.add_done_callback(self._ending.discard)

    async def _watch(self, key: _Key, checked: _Checked) -> None:
        check = checked.check
        loop = asyncio.get_running_loop()
        # Spread over the interval, so that many checks never start at once.
        await asyncio.sleep(random.uniform(0, check.interval))
        while True:
            begun = loop.time()
            checked.failure = await probe(check, check.endpoint(key[1])) or ""
            if checked.hysteresis.take(not checked.failure):
                self._tell(key, checked)
            faster = 1 if checked.hysteresis.settled else FASTER
            await asyncio.sleep(max(0.0, begun + check.interval / faster - loop.time()))

    def _tell(self, key: _Key, checked: _Checked) -> None:
        service, backend = key
        if checked.hysteresis.state is Health.DOWN:
            self._fallen.append(key)
            self._events.tell(
                "backend-down",
                f"{service}: {backend} is down: {checked.failure}",
                logging.WARNING,
                service=service,
                backend=str(backend),
                reason=checked.failure,
            )
        else:
            self._events.tell(
                "backend-up", f"{service}: {backend} is up", service=service, backend=str(backend)
            )
        self.changed.set()
