"""First: the first member in the configuration's order that has room. O(1), O(n) while members are
full.

So few servers are in use that the others can be switched off: HAProxy's `balance first`, which like
this one makes sense only with a limit (`max_connections`) for each server.
"""

from collections.abc import Sequence

from featherlb.core.pools.schedulers.base import Member, NewFlow, Scheduler
from featherlb.core.pools.schedulers.registry import register


@register
class First(Scheduler):
    name = "first"

    def __init__(self, *, seed: int, key: bytes) -> None:
        self._members: list[Member] = []

    def update(self, members: Sequence[Member]) -> None:
        self._members = [member for member in members if member.weight > 0]

    def pick(self, flow: NewFlow) -> Member | None:
        return self._members[0] if self._members else None

    def explain(self, flow: NewFlow) -> str:
        return "it is the first in the configuration's order"

    def overflow(self, flow: NewFlow, members: Sequence[Member]) -> Member:
        wanted = frozenset(members)
        return next(member for member in self._members if member in wanted)
