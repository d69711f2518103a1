"""Outlier detection: ejects backends that fail their clients' connections. Each sample of a backend
has two counters since it joined: connections opened to it, and connections that it refused or did
not answer. A backend is ejected if, since some sample in the window, both the number and the
proportion of failed connections are high enough. Each ejection is twice as long as the last one,
unless the backend did not fail for that long in between.
"""

from collections import deque

from featherlb.model import PassiveCheck


class Outlier:
    """The record of one backend. Times are seconds."""

    def __init__(self, rules: PassiveCheck) -> None:
        self.rules = rules
        self.ejected = False
        self.until = 0.0
        """When the ejection ends."""
        self.ejections = 0
        self._samples: deque[tuple[float, int, int]] = deque()
        self._lasted = 0.0

    def take(self, now: float, opened: int, failed: int) -> None:
        """Record the current counters."""
        samples = self._samples
        if samples and opened < samples[-1][1]:
            # Another worker counts from 0.
            samples.clear()
        samples.append((now, opened, failed))
        while len(samples) > 1 and samples[1][0] <= now - self.rules.window:
            samples.popleft()

    def failing(self) -> tuple[int, int] | None:
        """Connections opened and failed since some sample in the window, if they justify an
        ejection. The latest such sample is used, so that earlier successes do not excuse a
        backend."""
        if not self._samples:
            return None
        _, opened_now, failed_now = self._samples[-1]
        for _, opened_then, failed_then in reversed(self._samples):
            opened, failed = opened_now - opened_then, failed_now - failed_then
            if failed >= self.rules.failures and 100 * failed >= self.rules.share * opened:
                return opened, failed
        return None

    def eject(self, now: float) -> float:
        """Eject the backend; returns for how long."""
        # It may take a window until its failures are enough for another ejection.
        again = self.ejections and now - self.until <= self._lasted + self.rules.window
        lasts = 2 * self._lasted if again else self.rules.ejection
        self._lasted = min(lasts, max(self.rules.ejection, self.rules.longest_ejection))
        self.ejected = True
        self.until = now + self._lasted
        self.ejections += 1
        return self._lasted

    def readmit(self, now: float) -> None:
        """Use it again; earlier failures no longer count."""
        self.ejected = False
        self.until = now
        self._samples.clear()
