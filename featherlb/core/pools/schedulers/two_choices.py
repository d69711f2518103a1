"""Power of two choices: draw two members by weight, take the less loaded. O(log n).

Nearly as even as least connections (Mitzenmacher, "The Power of Two Choices in Randomized
Load Balancing", 2001), without its scan and without its herd: several balancers that all see
one idle backend don't all rush to it. Load is open flows per weight. As in IPVS's twos the
draws are independent, so the same member may come twice.
"""

from collections.abc import Sequence

from featherlb.core.pools.schedulers.base import Member, NewFlow, Scheduler
from featherlb.core.pools.schedulers.draw import WeightedDraw
from featherlb.core.pools.schedulers.registry import register


@register
class TwoChoices(Scheduler):
    name = "two-choices"
    aliases = ("p2c", "twos", "power-of-two", "random-two")

    def __init__(self, *, seed: int, key: bytes) -> None:
        self._draw = WeightedDraw(seed)

    def update(self, members: Sequence[Member]) -> None:
        self._draw.update(members)

    def pick(self, flow: NewFlow) -> Member | None:
        first = self._draw.draw()
        second = self._draw.draw()
        if first is None or second is None:
            return None
        if second.active * first.weight < first.active * second.weight:
            return second
        return first
