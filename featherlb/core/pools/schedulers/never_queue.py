"""Never queue: a flow goes to an idle member if there is one, even to a slow one, and else as with
weighted least connections. O(n) per pick. IPVS's nq (net/netfilter/ipvs/ip_vs_nq.c), except that
among idle members the one that waited longest is picked, not the first.
"""

from featherlb.core.pools.schedulers.base import Member, NewFlow
from featherlb.core.pools.schedulers.least_connections import waited
from featherlb.core.pools.schedulers.registry import register
from featherlb.core.pools.schedulers.weighted_least_connections import WeightedLeastConnections


@register
class NeverQueue(WeightedLeastConnections):
    name = "never-queue"
    aliases = ("nq",)

    def pick(self, flow: NewFlow) -> Member | None:
        for index, member in enumerate(self._members):
            if not member.active:
                return self._take(index)
        return super().pick(flow)

    def explain(self, flow: NewFlow) -> str:
        idle = sum(not member.active for member in self._members)
        if not idle:
            return f"none is idle and {super().explain(flow)}"
        return f"it is idle{waited(idle)}"
