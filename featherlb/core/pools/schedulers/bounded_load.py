"""Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018), around any hash
scheduler; HAProxy's `hash-balance-factor`. O(n) per pick.

A member takes no more than `balance` per cent of its fair share of the open flows: its part of
their number by weight, the new one included and rounded up. A flow whose member has that many
already goes to the next one in the scheduler's order of preference that has fewer.

Where a flow goes then depends on the open flows, which each worker and each node counts for itself:
the scheduler is no longer consistent.
"""

from collections.abc import Sequence

from featherlb.core.pools.schedulers.base import Member, NewFlow, Scheduler


class BoundedLoad(Scheduler):
    def __init__(self, scheduler: Scheduler, balance: int) -> None:
        """`balance` is a percentage above 100: with less, there might be no member to pick."""
        self.name = scheduler.name
        self._scheduler = scheduler
        self._balance = balance
        self._members: list[Member] = []
        self._weights = 0

    def update(self, members: Sequence[Member]) -> None:
        self._members = [member for member in members if member.weight > 0]
        self._weights = sum(member.weight for member in self._members)
        self._scheduler.update(members)

    def pick(self, flow: NewFlow) -> Member | None:
        member = self._scheduler.pick(flow)
        if member is None:
            return None
        share = self._share()
        if member.active < self._bound(member, share):
            return member
        # Not all can be at their bounds: together these exceed the number of open flows.
        below = [one for one in self._members if one.active < self._bound(one, share)]
        return self._scheduler.overflow(flow, below)

    def slots(self) -> Sequence[Member]:
        return self._scheduler.slots()

    def explain(self, flow: NewFlow) -> str:
        member = self._scheduler.pick(flow)
        assert member is not None
        bound = self._bound(member, self._share())
        reason = self._scheduler.explain(flow)
        if member.active < bound:
            return f"{reason}; it has {member.active} of at most {bound} open flows (hash_balance)"
        return (
            f"{member.endpoint} is the first choice ({reason}), but has {member.active} open flows"
            f" of at most {bound} (hash_balance)"
        )

    def overflow(self, flow: NewFlow, members: Sequence[Member]) -> Member:
        share = self._share()
        below = [one for one in members if one.active < self._bound(one, share)]
        return self._scheduler.overflow(flow, below or members)

    def _share(self) -> int:
        """What a bound is in proportion to, besides the member's weight."""
        return self._balance * (sum(member.active for member in self._members) + 1)

    def _bound(self, member: Member, share: int) -> int:
        """Its limit of open flows, rounded up."""
        return -(-share * member.weight // (100 * self._weights))
