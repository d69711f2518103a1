"""Weighted round-robin, smooth as nginx's. O(n) per pick.

Each pick gives every member its weight as credit; the richest is picked and pays what was
given out. Weights 5, 1, 1 make a a b a c a a: in proportion, and never five in a row.
(nginx, src/http/ngx_http_upstream_round_robin.c, ngx_http_upstream_get_peer.)
"""

from collections.abc import Sequence

from featherlb.core.pools.schedulers.base import Member, NewFlow, Scheduler
from featherlb.core.pools.schedulers.registry import register


@register
class WeightedRoundRobin(Scheduler):
    name = "weighted-round-robin"
    aliases = ("wrr",)

    def __init__(self, *, seed: int, key: bytes) -> None:
        self._members: list[Member] = []
        self._weights: list[int] = []
        self._credits: list[int] = []
        self._total = 0

    def update(self, members: Sequence[Member]) -> None:
        credit_of = dict(zip(self._members, self._credits, strict=True))
        old_total = self._total
        self._members = [member for member in members if member.weight > 0]
        self._weights = [member.weight for member in self._members]
        self._total = sum(self._weights)
        # Credits are worth shares of a round. Kept as they are over a change from weights in
        # thousands to ones, they would shut a member out for thousands of picks.
        self._credits = [
            round(credit_of.get(member, 0) * self._total / old_total) if old_total else 0
            for member in self._members
        ]

    def pick(self, flow: NewFlow) -> Member | None:
        if not self._members:
            return None
        credits = self._credits
        best = 0
        best_credit = credits[0] - 1
        for index, weight in enumerate(self._weights):
            credit = credits[index] + weight
            credits[index] = credit
            if credit > best_credit:
                best = index
                best_credit = credit
        credits[best] = best_credit - self._total
        return self._members[best]

    def explain(self, flow: NewFlow) -> str:
        credit = max(map(sum, zip(self._credits, self._weights, strict=True)))
        return f"it has the most credit, {credit}, and pays the sum of all weights, {self._total}"

    def save(self) -> list[int]:
        return self._credits.copy()

    def restore(self, state: list[int]) -> None:
        self._credits = state
