"""Least connections: each flow goes to the member with the fewest open flows. O(n) per pick.

A scan beats a heap here: `active` changes with every packet that opens or closes a flow, and each
of them would pay for keeping an order. Weight 0 excludes a member; other weights are ignored.
"""

from collections.abc import Sequence
from typing import ClassVar

from featherlb.core.pools.schedulers.base import Member, NewFlow, Scheduler
from featherlb.core.pools.schedulers.registry import register


@register
class LeastConnections(Scheduler):
    name = "least-connections"
    aliases: ClassVar[tuple[str, ...]] = ("lc", "leastconn", "least-conn")

    def __init__(self, *, seed: int, key: bytes) -> None:
        self._members: list[Member] = []

    def update(self, members: Sequence[Member]) -> None:
        self._members = [member for member in members if member.weight > 0]

    def pick(self, flow: NewFlow) -> Member | None:
        members = self._members
        if not members:
            return None
        best = 0
        least = members[0].active
        for index, member in enumerate(members):
            if member.active < least:
                best = index
                least = member.active
        return self._take(best)

    def explain(self, flow: NewFlow) -> str:
        least = min(member.active for member in self._members)
        equal = sum(member.active == least for member in self._members)
        return f"it has the fewest open flows, {least}{waited(equal)}"

    def save(self) -> list[Member]:
        return self._members.copy()

    def restore(self, state: list[Member]) -> None:
        self._members = state

    def _take(self, index: int) -> Member:
        """The member at this position, moved to the end of the list, so that equally loaded members
        take turns. Otherwise the first member of an idle pool would get every short connection."""
        picked = self._members.pop(index)
        self._members.append(picked)
        return picked


def waited(equal: int) -> str:
    """How a tie of so many members is broken."""
    return f", and of {equal} with as many it has waited longest" if equal > 1 else ""
