"""Weighted least connections: open flows in proportion to weights. O(n) per pick.

Picks the smallest (active + 1) / weight, the load that the member would have with this flow;
so an idle pool fills from its strongest member. Compared crosswise, without division.
"""

from collections.abc import Sequence

from featherlb.core.scheduler.base import Member, NewFlow, Scheduler
from featherlb.core.scheduler.registry import register


@register
class WeightedLeastConnections(Scheduler):
    name = "weighted-least-connections"
    aliases = ("wlc", "weighted-leastconn", "weighted-least-conn")

    def __init__(self, *, seed: int, key: bytes) -> None:
        self._members: list[Member] = []

    def update(self, members: Sequence[Member]) -> None:
        self._members = [member for member in members if member.weight > 0]

    def pick(self, flow: NewFlow) -> Member | None:
        members = self._members
        if not members:
            return None
        best = 0
        load = members[0].active + 1
        capacity = members[0].weight
        for index, member in enumerate(members):
            if (member.active + 1) * capacity < load * member.weight:
                best = index
                load = member.active + 1
                capacity = member.weight
        # Of equals, who was picked last waits longest (as in least_connections).
        picked = members.pop(best)
        members.append(picked)
        return picked
