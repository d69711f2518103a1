"""Power of two choices: pick two members at random by weight, use the less loaded one. O(log n).

Nearly as even as least connections (Mitzenmacher, "The Power of Two Choices in Randomized
Load Balancing", 2001), without its scan and without herding: several balancers that see the same
idle backend don't all choose it. Load is open flows per weight. As in IPVS's twos the two picks are
independent, so they may be the same member.
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

    def explain(self, flow: NewFlow) -> str:
        state = self.save()
        first, second = self._draw.draw(), self._draw.draw()
        self.restore(state)
        assert first is not None
        assert second is not None
        if first is second:
            return "both random choices fall on it"
        return (
            f"of the random choices {_load(first)} and {_load(second)}"
            f" it has {'less' if self.peek(flow) is second else 'no more'} load"
        )

    def save(self) -> object:
        return self._draw.save()

    def restore(self, state: object) -> None:
        self._draw.restore(state)


def _load(member: Member) -> str:
    return f"{member.endpoint} ({member.active} open / weight {member.weight})"
