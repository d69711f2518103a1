"""Which backend fails its clients, told by their connections. Each look at a backend gives two
counts since it joined: connections opened to it, and those that it refused or left without an
answer. Enough failures since some moment of the window, which also are a large enough share
since then, are a reason to eject the backend. Each ejection is twice as long as the last one,
unless the backend did well for that long in between.
"""

from collections import deque

from featherlb.model import PassiveCheck


class Outlier:
    """The record of one backend. Times are seconds."""

    def __init__(self, rules: PassiveCheck) -> None:
        self.rules = rules
        self.ejected = False
        self.until = 0.0
        """When an ejection ends by itself."""
        self.ejections = 0
        self._looks: deque[tuple[float, int, int]] = deque()
        self._lasted = 0.0

    def take(self, now: float, opened: int, failed: int) -> None:
        """Take in the counts of this moment."""
        looks = self._looks
        if looks and opened < looks[-1][1]:
            # Another worker counts from 0.
            looks.clear()
        looks.append((now, opened, failed))
        while len(looks) > 1 and looks[1][0] <= now - self.rules.window:
            looks.popleft()

    def failing(self) -> tuple[int, int] | None:
        """Connections opened and failed since some moment of the window, if that is reason
        enough to eject it. Of all such moments it is the last one, so that a backend is not
        excused by how well it was before."""
        if not self._looks:
            return None
        _, opened_now, failed_now = self._looks[-1]
        for _, opened_then, failed_then in reversed(self._looks):
            opened, failed = opened_now - opened_then, failed_now - failed_then
            if failed >= self.rules.failures and 100 * failed >= self.rules.share * opened:
                return opened, failed
        return None

    def eject(self, now: float) -> float:
        """Take it out of use; for how long."""
        # Until its failures are enough for another ejection, a window may pass.
        again = self.ejections and now - self.until <= self._lasted + self.rules.window
        lasts = 2 * self._lasted if again else self.rules.ejection
        self._lasted = min(lasts, max(self.rules.ejection, self.rules.longest_ejection))
        self.ejected = True
        self.until = now + self._lasted
        self.ejections += 1
        return self._lasted

    def readmit(self, now: float) -> None:
        """Use it again; what it did before is forgiven."""
        self.ejected = False
        self.until = now
        self._looks.clear()
