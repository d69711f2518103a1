"""Runs custom schedulers so that their faults don't affect traffic. Whatever the code raises or
returns, each flow gets a backend: the wrapper checks every result, counts invalid ones and picks a
member at random by weight instead.
"""

from collections.abc import Callable, Sequence
from typing import Any

from featherlb.core.pools.guard import shown
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
    included). `first_error` describes the first, for the log; `reported` is set by the logger. What
    the code changes when it picks, nobody knows.
    """

    rewindable = False

    def __init__(
        self, name: str, code: type[Scheduler] | PickFunction, *, seed: int, key: bytes
    ) -> None:
        self.name = name
        self._code = code
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
            self._count_raised("starting it", error)

    def update(self, members: Sequence[Member]) -> None:
        self._usable = frozenset(member for member in members if member.weight > 0)
        self._fallback.update(members)
        if self._scheduler is not None:
            try:
                self._scheduler.update(members)
            except Exception as error:
                self._count_raised("update()", error)

    def pick(self, flow: NewFlow) -> Member | None:
        if not self._usable:
            return None
        if self._scheduler is not None:
            try:
                member = self._scheduler.pick(flow)
                if member in self._usable:
                    return member
                self._count_returned("pick", member, "not one of the backends")
            except Exception as error:
                self._count_raised("pick()", error)
        return self._fallback.draw()

    def overflow(self, flow: NewFlow, members: Sequence[Member]) -> Member:
        if self._scheduler is not None:
            try:
                member = self._scheduler.overflow(flow, members)
                if member in members:
                    return member
                self._count_returned("overflow", member, "not one that has room")
            except Exception as error:
                self._count_raised("overflow()", error)
        return super().overflow(flow, members)

    def _count_raised(self, call: str, error: Exception) -> None:
        """An exception, with the last line of the user's file on its way."""
        self.errors += 1
        if self.first_error is not None:
            return
        file, line = self._place("pick")
        frame = error.__traceback__
        while frame is not None:
            if frame.tb_frame.f_code.co_filename == file:
                line = frame.tb_lineno
            frame = frame.tb_next
        self.first_error = f"{call} raised {shown(error)}{_at(file, line)}"

    def _count_returned(self, method: str, value: object, wrong: str) -> None:
        """A value that is no usable member, with the method's first line."""
        self.errors += 1
        if self.first_error is None:
            place = _at(*self._place(method))
            self.first_error = f"{method}() returned {shown(value)}, {wrong}{place}"

    def _place(self, method: str) -> tuple[str, int]:
        """File and first line of the user's function, or of a method of the class; empty if it is
        neither."""
        code = getattr(getattr(self._code, method, self._code), "__code__", None)
        return ("", 0) if code is None else (code.co_filename, code.co_firstlineno)


def _at(file: str, line: int) -> str:
    return f" ({file}:{line})" if file else ""
