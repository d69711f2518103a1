"""How long backends take to answer, measured from the packets: from the SYN that goes to a backend
to its SYN-ACK, or from the first datagram of a flow to the first one that comes back.

A connection whose SYN was retransmitted is not measured, as its SYN-ACK may answer either (Karn and
Partridge, "Improving Round-Trip Time Estimates in Reliable Transport Protocols", SIGCOMM 1987).
Whether there was a retransmission is in the flow's state: callers report answers to the first SYN
only. Times are seconds on the clock of `Balancer.handle_packet`.
"""

from array import array

import cython

if not cython.compiled:
    import math

    exp = math.exp

UPPER_BOUNDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Of the histogram's buckets, in seconds; one more bucket has the rest."""
BOUNDS = memoryview(array("d", UPPER_BOUNDS))
BUCKETS = len(UPPER_BOUNDS) + 1
SLOTS = 8192
"""Flows that wait for an answer; a later one takes the place of an earlier one, which isn't
measured then."""
TAU = 2.0
"""Seconds in which a cost that nothing confirms falls to 1/e."""
LEAST_COST = 5e-5
"""Seconds: differences below are noise."""
FAILURE = 1.0
"""Seconds that a failed connection costs its client at least (RFC 6298 section 2: the first
retransmission)."""
SMOOTHING = 0.125
"""The weight of a new sample in the smoothed time (RFC 6298 section 2.3)."""

# The numbers of a member begin at its number times VALUES, and at its number times COUNTS.
SMOOTHED = 0  # seconds; 0: never measured
COST = 1  # seconds; 0: never measured
CHANGED = 2  # when COST was that
VALUES = 3
MICROSECONDS = 0  # the sum of all answers; the buckets follow
COUNTS = 1 + BUCKETS


class Latencies:
    """The answers of backends, by member number. `now` is the time, which the caller keeps up to
    date."""

    def __init__(self) -> None:
        self.now = 0.0
        self._owners = memoryview(array("I", bytes(4 * SLOTS)))
        self._sent = memoryview(bytearray(8 * SLOTS)).cast("d")
        self._values = memoryview(bytearray(8 * VALUES)).cast("d")
        self._counts = memoryview(array("Q", bytes(8 * COUNTS)))

    def begin(self, member: int) -> None:
        """Forget what is known of this member number."""
        count = len(self._values) // VALUES
        if member >= count:
            more = bytes(8 * max(count, member + 1 - count))
            self._values = memoryview(bytearray(self._values) + VALUES * more).cast("d")
            self._counts = memoryview(array("Q", bytes(self._counts) + COUNTS * more))
        for i in range(member * VALUES, (member + 1) * VALUES):
            self._values[i] = 0.0
        for i in range(member * COUNTS, (member + 1) * COUNTS):
            self._counts[i] = 0

    def sent(self, flow: int, now: float) -> None:
        """The first packet of a flow goes to its backend."""
        slot = flow & (SLOTS - 1)
        self._owners[slot] = flow
        self._sent[slot] = now

    def forget(self, flow: int) -> None:
        """The flow has this number now, and its first packet was not seen."""
        slot = flow & (SLOTS - 1)
        if self._owners[slot] == flow:
            self._owners[slot] = 0

    def answered(self, flow: int, member: int, now: float) -> None:
        """The flow's backend has answered the first packet."""
        slot = flow & (SLOTS - 1)
        if self._owners[slot] == flow:
            self._owners[slot] = 0
            self.take(member, max(0.0, now - self._sent[slot]), now)

    def take(self, member: int, seconds: float, now: float) -> None:
        """A backend took so long to answer."""
        self.now = now
        values = self._values
        at = member * VALUES
        smoothed = values[at + SMOOTHED]
        # Not 0, which says that there is none.
        seconds = max(seconds, 1e-6)
        values[at + SMOOTHED] = smoothed + SMOOTHING * (seconds - smoothed) if smoothed else seconds
        kept = exp((values[at + CHANGED] - now) / TAU)
        values[at + COST] = max(seconds, kept * values[at + COST] + (1 - kept) * seconds)
        values[at + CHANGED] = now
        bucket = 0
        while bucket < BUCKETS - 1 and seconds > BOUNDS[bucket]:
            bucket += 1
        self._counts[member * COUNTS + MICROSECONDS] += int(1e6 * seconds + 0.5)
        self._counts[member * COUNTS + 1 + bucket] += 1

    def failed(self, member: int) -> None:
        """A backend has refused a connection, or not answered it in time. Otherwise one that
        refuses at once, or that nothing is known of any more, would be the best."""
        values = self._values
        at = member * VALUES
        values[at + COST] = max(FAILURE, self.cost(member))
        values[at + CHANGED] = self.now

    def cost(self, member: int) -> float:
        """What a scheduler should expect, in seconds; 0 if nothing is known.

        The peak EWMA of Finagle (PeakEwma in finagle-core's com.twitter.finagle.loadbalancer): it
        rises to a longer time at once, and falls towards shorter ones with the time constant `TAU`.
        It also falls while there are no answers, so that a backend that was slow is tried again.
        """
        cost = self._values[member * VALUES + COST]
        idle = self.now - self._values[member * VALUES + CHANGED]
        if cost and idle > 0:
            cost = max(LEAST_COST, cost * exp(-idle / TAU))
        return cost

    def smoothed(self, member: int) -> float | None:
        """The smoothed time in seconds, None if it was never measured."""
        return self._values[member * VALUES + SMOOTHED] or None

    def total(self, member: int) -> int:
        """The sum of all times in microseconds."""
        return self._counts[member * COUNTS + MICROSECONDS]

    def histogram(self, member: int) -> tuple[int, ...]:
        """The number of answers in each bucket; empty if there are none."""
        first = member * COUNTS + 1
        counts = tuple([self._counts[i] for i in range(first, first + BUCKETS)])
        return counts if any(counts) else ()
