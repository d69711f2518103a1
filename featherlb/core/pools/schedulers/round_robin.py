"""Round-robin: each flow goes to the next member in turn. O(1).

Weight 0 excludes a member; other weights are ignored.
"""

from collections.abc import Sequence

from featherlb.core.pools.schedulers.base import Member, NewFlow, Scheduler
from featherlb.core.pools.schedulers.registry import register


@register
class RoundRobin(Scheduler):
    name = "round-robin"
    aliases = ("rr", "roundrobin")

    def __init__(self, *, seed: int, key: bytes) -> None:
        self._members: list[Member] = []
        self._next = 0

    def update(self, members: Sequence[Member]) -> None:
        usable = [member for member in members if member.weight > 0]
        # The next member stays next; if it left, the first remaining one after it.
        due = self._members[self._next :] + self._members[: self._next]
        position = {member: index for index, member in enumerate(usable)}
        self._next = next((position[member] for member in due if member in position), 0)
        self._members = usable

    def pick(self, flow: NewFlow) -> Member | None:
        members = self._members
        if not members:
            return None
        member = members[self._next]
        self._next = (self._next + 1) % len(members)
        return member

    def explain(self, flow: NewFlow) -> str:
        return f"it is next in turn, number {self._next + 1} of {len(self._members)}"

    def save(self) -> int:
        return self._next

    def restore(self, state: int) -> None:
        self._next = state
