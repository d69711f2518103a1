"""Runs custom schedulers so that their faults don't affect traffic. Whatever the code raises or
returns, each flow gets a backend: the wrapper checks every result, counts invalid ones and picks a
member at random by weight instead.
"""

from collections.abc import Callable, Sequence
from typing import Any

from featherlb.core.pools.schedulers.base import Member, NewFlow, Scheduler
from featherlb.core.pools.schedulers.draw import WeightedDraw

PickFunction = Callable[[NewFlow, Sequence[Member]], Any]
"""`def pick(flow, backends)`: returns one of `backends`, the members with a weight."""


class _FunctionScheduler(Scheduler):
    """A plain function as a scheduler."""

    def __init__(self, function: PickFunction) -> None:
        self._function = function
        self._members: tuple[Member, ...] = ()

    def update(self, members: Sequence[Member]) -> None:
        self._members = tuple(member for member in members if member.weight > 0)

    def pick(self, flow: NewFlow) -> Any:
        return self._function(flow, self._members)


class UserScheduler(Scheduler):
    """Runs a custom scheduler and compensates for its faults.

    `errors` counts them: exceptions, and results that aren't a member with a weight (None
    included). `first_error` describes the first, for the log; `reported` is set by the logger.
    """

    def __init__(
        self, name: str, code: type[Scheduler] | PickFunction, *, seed: int, key: bytes
    ) -> None:
        self.name = name
        self.errors = 0
        self.first_error: str | None = None
        self.reported = False
        self._usable: frozenset[Member] = frozenset()
        self._fallback = WeightedDraw(seed)
        self._scheduler: Scheduler | None = None
        try:
            if isinstance(code, type) and issubclass(code, Scheduler):
                self._scheduler = code(seed=seed, key=key)
                self.consistent = code.consistent
            else:
                self._scheduler = _FunctionScheduler(code)
        except Exception as error:
            self._count(f"starting it raised {error!r}")

    def update(self, members: Sequence[Member]) -> None:
        self._usable = frozenset(member for member in members if member.weight > 0)
        self._fallback.update(members)
        if self._scheduler is not None:
            try:
                self._scheduler.update(members)
            except Exception as error:
                self._count(f"update() raised {error!r}")

    def pick(self, flow: NewFlow) -> Member | None:
        if not self._usable:
            return None
        if self._scheduler is not None:
            try:
                member = self._scheduler.pick(flow)
                if member in self._usable:
                    return member
                self._count(f"pick() returned {member!r}, not one of the backends")
            except Exception as error:
                self._count(f"pick() raised {error!r}")
        return self._fallback.draw()

    def overflow(self, flow: NewFlow, members: Sequence[Member]) -> Member:
        if self._scheduler is not None:
            try:
                member = self._scheduler.overflow(flow, members)
                if member in members:
                    return member
                self._count(f"overflow() returned {member!r}, not one that has room")
            except Exception as error:
                self._count(f"overflow() raised {error!r}")
        return super().overflow(flow, members)

    def _count(self, error: str) -> None:
        self.errors += 1
        if self.first_error is None:
            self.first_error = error
