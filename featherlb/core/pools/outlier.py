"""Outlier detection: ejects backends that fail their clients' connections, or that take much longer
than the others to answer them.

Each sample of a backend has counters since it joined. A backend is suspected if, since some sample
in the window, both the number and the proportion of failed connections are high enough, and they
are from several networks, unless all connections are from fewer: one broken or hostile client says
little. It is ejected once a connection of the supervisor's own has failed, too. Or if its mean
time to answer is so many times that of the others, in two stretches of the window one after the
other, so that a single late answer is not enough. Each ejection is twice as long as the last one,
unless the backend did well for that long in between.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from featherlb.model import PassiveCheck

ANSWERS = 10
"""The least number of answers that a mean time is made of."""
NETWORKS = 3
"""Networks (/24, /64) that failures must come from, if as many have opened connections."""


class Sample(NamedTuple):
    """Counters at a time: connections opened, those that the backend refused or did not answer,
    those whose answer was timed, and the sum of these times in microseconds. The networks of the
    clients, and of those that failed, are since the sample before, a bit for each
    (`Counters.networks`)."""

    at: float
    opened: int
    failed: int
    answered: int = 0
    microseconds: int = 0
    opened_from: int = 0
    failed_from: int = 0


class Outlier:
    """The record of one backend. Times are seconds."""

    def __init__(self, rules: PassiveCheck) -> None:
        self.rules = rules
        self.ejected = False
        self.slow = False
        """Why it is ejected: it was slow, rather than failing."""
        self.until = 0.0
        """When the ejection ends."""
        self.ejections = 0
        self.acquittals = 0
        """How often it was suspected, and not ejected."""
        self._samples: deque[Sample] = deque()
        self._lasted = 0.0

    def take(self, sample: Sample) -> None:
        """Record the current counters."""
        samples = self._samples
        if samples and (
            sample.opened < samples[-1].opened or sample.answered < samples[-1].answered
        ):
            # Another worker counts from 0.
            samples.clear()
        samples.append(sample)
        while len(samples) > 1 and samples[1].at <= sample.at - self.rules.window:
            samples.popleft()

    def failing(self) -> tuple[int, int] | None:
        """Connections opened and failed since some sample in the window, if they justify an
        ejection. The latest such sample is used, so that earlier successes do not excuse a
        backend."""
        if not self._samples:
            return None
        now = self._samples[-1]
        opened_from = failed_from = 0
        for then in reversed(self._samples):
            opened, failed = now.opened - then.opened, now.failed - then.failed
            enough = failed >= self.rules.failures and 100 * failed >= self.rules.share * opened
            if enough and failed_from.bit_count() >= min(NETWORKS, opened_from.bit_count()):
                return opened, failed
            opened_from |= then.opened_from
            failed_from |= then.failed_from
        return None

    def acquit(self) -> None:
        """It has accepted a connection of the supervisor's own: what failed before no longer
        counts."""
        self.acquittals += 1
        self._samples.clear()

    def latency(self) -> float | None:
        """How long it took to answer of late; the shorter mean of two stretches of `ANSWERS`
        answers or more, None if there are not as many in the window."""
        if not self._samples:
            return None
        means = []
        end = self._samples[-1]
        for then in reversed(self._samples):
            answered = end.answered - then.answered
            if answered >= ANSWERS:
                means.append((end.microseconds - then.microseconds) / 1e6 / answered)
                if len(means) == 2:
                    return min(means)
                end = then
        return None

    def too_slow(self, others: Sequence[float]) -> tuple[float, float] | None:
        """How long it takes to answer, and how long the others, of which these are the times, do
        (their median), if that justifies an ejection."""
        latency = self.latency()
        if self.rules.slower is None or latency is None or not others:
            return None
        usual = sorted(others)[(len(others) - 1) // 2]
        if latency > self.rules.slower * usual and latency - usual >= self.rules.slower_by:
            return latency, usual
        return None

    def eject(self, now: float, *, slow: bool = False) -> float:
        """Eject the backend; returns for how long."""
        # It may take a window until there is reason enough for another ejection.
        again = self.ejections and now - self.until <= self._lasted + self.rules.window
        lasts = 2 * self._lasted if again else self.rules.ejection
        self._lasted = min(lasts, max(self.rules.ejection, self.rules.longest_ejection))
        self.ejected = True
        self.slow = slow
        self.until = now + self._lasted
        self.ejections += 1
        return self._lasted

    def readmit(self, now: float) -> None:
        """Use it again; what it did before no longer counts."""
        self.ejected = False
        self.until = now
        self._samples.clear()
