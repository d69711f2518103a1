"""Packets that an injected fault holds back, of all engines of a worker, until their time comes."""

import heapq
from collections.abc import Callable
from itertools import count

from featherlb.core.path.balancer import Balancer


class Delayed:
    """What engines keep for the verdict HOLD."""

    def __init__(self, core: Balancer) -> None:
        self._core = core
        self._waiting: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._waiting)

    def hold(self, hand_in: Callable[[float], None]) -> None:
        """Have the packet with the verdict HOLD handed in again when it is due, by this function of
        the time then."""
        self._core.faults.held += 1
        heapq.heappush(self._waiting, (self._core.faults.due, next(self._numbers), hand_in))

    def timeout(self, now: float, longest: float) -> float:
        """Seconds until the next one is due, at most `longest`."""
        return min(max(0.0, self._waiting[0][0] - now), longest) if self._waiting else longest

    def release(self, now: float) -> None:
        """Hand in those that are due."""
        faults = self._core.faults
        while self._waiting and self._waiting[0][0] <= now:
            _, _, hand_in = heapq.heappop(self._waiting)
            faults.held -= 1
            faults.releasing = True
            try:
                hand_in(now)
            finally:
                faults.releasing = False
