"""Random: each flow goes to a random member, by weight. O(log n).

Needs no state about flows, so any number of workers and nodes agree on the shares without
talking to each other.
"""

from collections.abc import Sequence

from featherlb.core.pools.schedulers.base import Member, NewFlow, Scheduler
from featherlb.core.pools.schedulers.draw import WeightedDraw
from featherlb.core.pools.schedulers.registry import register


@register
class Random(Scheduler):
    name = "random"

    def __init__(self, *, seed: int, key: bytes) -> None:
        self._draw = WeightedDraw(seed)

    def update(self, members: Sequence[Member]) -> None:
        self._draw.update(members)

    def pick(self, flow: NewFlow) -> Member | None:
        return self._draw.draw()

    def explain(self, flow: NewFlow) -> str:
        return self._draw.explain()

    def save(self) -> object:
        return self._draw.save()

    def restore(self, state: object) -> None:
        self._draw.restore(state)
