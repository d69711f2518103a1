"""Health states that do not flap. A state changes after enough results in a row that contradict it;
the very first result counts at once. A backend that falls again soon after it rose needs twice as
many good results the next time, so a flapping backend stays down for longer and longer.

`panicking` decides whether a pool's states are plausible: if too few backends are healthy, sending
them all traffic would take them down too, and the checks themselves may be broken.
"""

from collections.abc import Sequence

from featherlb.model import Health, Role

SETTLED = 30
"""Good results in a row that reset the count of earlier falls."""
MAX_FACTOR = 16
"""A flapping backend needs at most this many times `rise` good results."""


class Hysteresis:
    """The state of one backend."""

    def __init__(self, rise: int, fall: int, state: Health) -> None:
        """`state` is the one before the first result."""
        self.state = state
        self.rise = rise
        self.fall = fall
        self._first = True
        self._streak = 0
        """Results in a row, of the kind of the last one."""
        self._last = True
        self._falls = 0

    @property
    def agrees(self) -> bool:
        """Whether the last result agrees with the state."""
        return not self._first and self._last is (self.state is Health.UP)

    def take(self, good: bool) -> bool:
        """Record a result; whether the state has changed."""
        self._streak = self._streak + 1 if good is self._last else 1
        self._last = good
        if good and self.state is Health.UP and self._streak >= SETTLED:
            self._falls = 0
        first, self._first = self._first, False
        contradicts = good is not (self.state is Health.UP)
        if not contradicts or not (first or self._streak >= self._needed(good)):
            return False
        self.state = Health.UP if good else Health.DOWN
        self._streak = 0
        self._falls += not good
        return True

    def fall_at_once(self) -> None:
        """Go down regardless of results, which are counted from here."""
        if self.state is Health.UP:
            self._falls += 1
        self.state = Health.DOWN
        self._first = False
        self._streak = 0

    def _needed(self, good: bool) -> int:
        if not good:
            return self.fall
        factor: int = min(2 ** max(0, self._falls - 1), MAX_FACTOR)
        return self.rise * factor


def panicking(backends: Sequence[tuple[Role, bool]], threshold: int) -> Role | None:
    """The role whose backends' health is to be ignored, if there is one.

    `backends` are the ones with a weight, each with whether it is healthy. The result is the role
    that would serve now, if less than `threshold` per cent of its backends are healthy. So if no
    primary backend is healthy, healthy backups serve without panic.
    """
    roles = sorted({role for role, _ in backends}, key=list(Role).index)
    usable = [role for role in roles if (role, True) in backends]
    for role in (usable or roles)[:1]:
        states = [healthy for other, healthy in backends if other is role]
        if 100 * states.count(True) < threshold * len(states):
            return role
    return None
