"""Runs users' hooks: what a service wants to be told of its flows and backends.

They run between batches of packets, never in the packet path, each call with a time budget
(`core/pools/guard.py`). What happens faster than they can be told is counted, not kept.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from featherlb.core.path.balancer import Balancer
from featherlb.core.pools.guard import Guard
from featherlb.model import Backend, Endpoint, Service

AT_ONCE = 32
"""Calls between two batches of packets, at most."""


@dataclass(frozen=True, slots=True)
class BackendChange:
    """What has become of a backend: `joined`, `left`, `up`, `down`, or another `weight`, which is 0
    while it takes no new flows."""

    service: str
    backend: Endpoint
    what: str
    weight: int


class Hooks:
    """The hooks of a worker's services. `missed` counts the flows whose hooks were not called, as
    there were too many."""

    def __init__(self, core: Balancer, find: Callable[[str], Guard], *, first: bool) -> None:
        """`find` returns a hook by its reference. Of changes of backends, the `first` worker tells,
        and no other."""
        self._core = core
        self._find = find
        self._first = first
        self._waiting: list[tuple[Guard, object]] = []

    def apply(self, before: Sequence[Service], services: Sequence[Service]) -> None:
        """Call the hooks of these services from now on, which have come in place of others."""
        hooked = any(one.on_open or one.on_close for one in services)
        self._core.views.note_flows(hooked)
        if not self._first:
            return
        known = {one.name: one for one in before}
        for service in services:
            if service.on_backend_change and service.name in known:
                hook = self._find(service.on_backend_change)
                for change in changes(known[service.name], service):
                    self._waiting.append((hook, change))

    @property
    def busy(self) -> bool:
        """Whether some are to be called."""
        return bool(self._waiting) or self._core.views.has_noted

    def run(self, now: float) -> None:
        """Call those that are due, some at a time."""
        for opened, service, flow in self._core.views.take_noted(now):
            reference = service.on_open if opened else service.on_close
            if reference:
                self._waiting.append((self._find(reference), flow))
        due, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
        for hook, about in due:
            hook(about)


def changes(before: Service, after: Service) -> Iterator[BackendChange]:
    """How the backends of a service differ."""
    old = {one.endpoint: one for one in before.backends}
    new = {one.endpoint: one for one in after.backends}
    for endpoint in old.keys() | new.keys():
        if what := _change(old.get(endpoint), new.get(endpoint)):
            backend = new.get(endpoint)
            yield BackendChange(after.name, endpoint, what, backend.weight if backend else 0)


def _change(old: Backend | None, new: Backend | None) -> str:
    if old is None or new is None:
        return "joined" if old is None else "left"
    if old.down != new.down:
        return "down" if new.down else "up"
    return "weight" if old.weight != new.weight else ""
