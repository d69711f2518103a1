"""Weighted least connections: open flows in proportion to weights. O(n) per pick.

Picks the smallest (active + 1) / weight, the load that the member would have with this flow, so an
idle pool fills from its strongest member. Compared by cross-multiplication. That is the shortest
expected delay, too: IPVS's sed (net/netfilter/ipvs/ip_vs_sed.c).
"""

from typing import ClassVar

from featherlb.core.pools.schedulers.base import Member, NewFlow
from featherlb.core.pools.schedulers.least_connections import LeastConnections, waited
from featherlb.core.pools.schedulers.registry import register


@register
class WeightedLeastConnections(LeastConnections):
    name = "weighted-least-connections"
    aliases: ClassVar[tuple[str, ...]] = (
        "wlc",
        "weighted-leastconn",
        "weighted-least-conn",
        "sed",
        "shortest-expected-delay",
    )

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
        return self._take(best)

    def explain(self, flow: NewFlow) -> str:
        best = self.peek(flow)
        assert best is not None
        equal = sum(
            (member.active + 1) * best.weight == (best.active + 1) * member.weight
            for member in self._members
        )
        load = (best.active + 1) / best.weight
        text = f"its load with this flow, (open + 1) / weight = {load:.3g}, is the lowest"
        return text + waited(equal)
