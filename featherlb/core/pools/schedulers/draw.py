"""Weighted random choice, shared by the schedulers that use randomness."""

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from featherlb.core.pools.schedulers.base import Member


class WeightedDraw:
    """Picks members at random, in proportion to weight: O(n) to update, O(log n) to pick."""

    __slots__ = ("_bounds", "_generator", "_members", "_random", "_total")

    def __init__(self, seed: int) -> None:
        self._generator = random.Random(seed)
        self._random = self._generator.random
        self._members: list[Member] = []
        self._bounds: list[int] = []
        self._total = 0

    def update(self, members: Sequence[Member]) -> None:
        self._members = [member for member in members if member.weight > 0]
        self._bounds = list(accumulate(member.weight for member in self._members))
        self._total = self._bounds[-1] if self._bounds else 0

    def draw(self) -> Member | None:
        """A member, or None if no member has a weight."""
        if not self._members:
            return None
        return self._members[bisect_right(self._bounds, self._random() * self._total)]

    def draw_two(self) -> tuple[Member, Member] | None:
        """Two different members, unless there is only one; None if no member has a weight."""
        if not self._members:
            return None
        bounds = self._bounds
        first = bisect_right(bounds, self._random() * self._total)
        start = bounds[first - 1] if first else 0
        rest = self._total - (bounds[first] - start)
        if not rest:
            return self._members[first], self._members[first]
        # Among the others, as if the first one's part were cut out.
        value = self._random() * rest
        if value >= start:
            value += self._total - rest
        return self._members[first], self._members[bisect_right(bounds, value)]

    def explain(self) -> str:
        """Where the next draw falls; changes nothing."""
        state = self.save()
        value = self._random() * self._total
        self.restore(state)
        position = bisect_right(self._bounds, value)
        first = self._bounds[position - 1] if position else 0
        return (
            f"the random number {value:.2f} of {self._total}, the sum of the weights, falls into"
            f" its part, {first} to {self._bounds[position]}"
        )

    def save(self) -> object:
        """The state of the generator, for `restore`."""
        return self._generator.getstate()

    def restore(self, state: Any) -> None:
        """Undo all draws since `save` returned this."""
        self._generator.setstate(state)
