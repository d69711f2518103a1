"""Least latency: of two members drawn at random by weight, the one that should answer sooner.

Load is the time that a member takes to answer, times its open flows with this one, per weight: the
peak EWMA of Finagle (core/pools/latency.py) with power of two choices. Unlike `two-choices`, the
two are different members: otherwise a slow one of four would get every 16th flow, as both draws
fall on it. O(log n).

A member that nothing is known of gets a flow to find out, and while that is open it counts as
fast as the one it is compared with. One that was slow is tried again when its latency has faded.
"""

from collections.abc import Sequence

from featherlb.core.pools.schedulers.base import Member, NewFlow, Scheduler
from featherlb.core.pools.schedulers.draw import WeightedDraw
from featherlb.core.pools.schedulers.registry import register


@register
class LeastLatency(Scheduler):
    name = "least-latency"
    aliases = ("peak-ewma", "least-time")
    by_latency = True

    def __init__(self, *, seed: int, key: bytes) -> None:
        self._draw = WeightedDraw(seed)

    def update(self, members: Sequence[Member]) -> None:
        self._draw.update(members)

    def pick(self, flow: NewFlow) -> Member | None:
        drawn = self._draw.draw_two()
        if drawn is None:
            return None
        first, second = drawn
        return second if _load(second, first) < _load(first, second) else first

    def explain(self, flow: NewFlow) -> str:
        state = self.save()
        drawn = self._draw.draw_two()
        self.restore(state)
        assert drawn is not None
        first, second = drawn
        if first is second:
            return "it is the only one"
        sooner = _load(second, first) < _load(first, second)
        return (
            f"of the random choices {_shown(first)} and {_shown(second)} it should answer"
            f" {'sooner' if sooner else 'no later'}"
        )

    def save(self) -> object:
        return self._draw.save()

    def restore(self, state: object) -> None:
        self._draw.restore(state)


def _load(member: Member, other: Member) -> float:
    latency = member.latency
    if latency is None:
        if not member.active:
            return 0.0
        latency = other.latency or 1.0
    return latency * (member.active + 1) / member.weight


def _shown(member: Member) -> str:
    latency = member.latency
    known = "not measured" if latency is None else f"{1000 * latency:.3g} ms"
    return f"{member.endpoint} ({known}, {member.active} open / weight {member.weight})"
