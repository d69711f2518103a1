"""Runs a user's function so that its faults don't affect traffic: one that fails, or takes too
long, is switched off for a while."""

from collections.abc import Callable
from typing import Any

BUDGET = 0.005
"""Seconds that a call may take: packets wait for it meanwhile."""
STRIKES = 3
"""Faults within `WINDOW` after which the function is switched off for `PAUSE`."""
WINDOW = 10.0
PAUSE = 60.0
_LONGEST_SHOWN = 200


class Guard:
    """`errors` counts exceptions and results that make no sense, `slow` the calls over the budget.
    `reports` are sentences for the log, which takes them out."""

    def __init__(self, name: str, function: Callable[..., Any], clock: Callable[[], float]) -> None:
        """`clock` tells seconds."""
        self.name = name
        self.errors = 0
        self.slow = 0
        self.reports: list[str] = []
        self._function = function
        self._clock = clock
        self._faults: list[float] = []
        self._off_until: float | None = None

    @property
    def off(self) -> bool:
        """Whether it is switched off now."""
        return self._off_until is not None and self._clock() < self._off_until

    def __call__(self, *arguments: Any) -> Any:
        """The function's result; None if it is switched off, or raises an exception."""
        began = self._clock()
        if self._off_until is not None:
            if began < self._off_until:
                return None
            self._off_until = None
        try:
            result = self._function(*arguments)
        except Exception as error:
            self.errors += 1
            self._fault(f"raised {shown(error)}{self._place(error)}")
            return None
        took = self._clock() - began
        if took > BUDGET:
            self.slow += 1
            text = f"took {took * 1000:.1f} ms, more than {BUDGET * 1000:g} ms{self._place()}"
            self._fault(text)
        return result

    def reject(self, result: object, wrong: str) -> None:
        """Note that a result makes no sense."""
        self.errors += 1
        self._fault(f"returned {shown(result)}, {wrong}{self._place()}")

    def _fault(self, what: str) -> None:
        now = self._clock()
        self._faults = [at for at in self._faults if now - at < WINDOW] + [now]
        if len(self._faults) >= STRIKES:
            self._faults = []
            self._off_until = now + PAUSE
            self.reports.append(f"{self.name} is switched off for {PAUSE:g} s: it {what}")

    def _place(self, error: Exception | None = None) -> str:
        """File and line: the last one in the user's file on the way to an error, or the function's
        first."""
        code = getattr(self._function, "__code__", None)
        if code is None:
            return ""
        line = code.co_firstlineno
        frame = error.__traceback__ if error else None
        while frame is not None:
            if frame.tb_frame.f_code.co_filename == code.co_filename:
                line = frame.tb_lineno
            frame = frame.tb_next
        return f" ({code.co_filename}:{line})"


def shown(value: object) -> str:
    """A value in one line, whatever its own methods do."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
