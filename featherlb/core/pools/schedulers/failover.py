"""Failover: the member of the greatest weight; the next one if that leaves or is full. O(1), O(n)
while members are full. IPVS's fo (net/netfilter/ipvs/ip_vs_fo.c): of equal weights the first in the
configuration's order is picked.
"""

from collections.abc import Sequence

from featherlb.core.pools.schedulers.base import Member, NewFlow
from featherlb.core.pools.schedulers.first import First
from featherlb.core.pools.schedulers.registry import register


@register
class Failover(First):
    name = "failover"
    aliases = ("fo",)

    def update(self, members: Sequence[Member]) -> None:
        super().update(sorted(members, key=_weight, reverse=True))

    def explain(self, flow: NewFlow) -> str:
        greatest = self._members[0].weight
        equal = sum(member.weight == greatest for member in self._members)
        tie = f", and the first of {equal} with it" if equal > 1 else ""
        return f"it has the greatest weight, {greatest}{tie}"


def _weight(member: Member) -> int:
    return member.weight
