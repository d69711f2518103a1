"""Which pools a program in the kernel can open flows for by itself, and by which table.

A *wheel* is a list of slots, each with a member: the program takes the next slot, a random one, the
less loaded member of two random ones, or the one to which a flow hashes. That is enough for some
schedulers, as long as a flow depends on nothing that only Python knows. Flows of other pools are
opened by a worker.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd

from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import Member, NewFlow
from featherlb.core.pools.schedulers.hash_scheduler import HashScheduler
from featherlb.core.pools.schedulers.hashing import CLIENT, FIVE_TUPLE
from featherlb.core.pools.schedulers.weighted_round_robin import WeightedRoundRobin
from featherlb.core.pools.turn import How
from featherlb.model import Role

MAX_SLOTS = 1024
"""Of schedulers that don't hash."""


HOW = {
    "round-robin": How.IN_TURN,
    "weighted-round-robin": How.IN_TURN,
    "random": How.AT_RANDOM,
    "two-choices": How.BY_LOAD,
}
"""By scheduler."""
HOW_HASHED = {CLIENT: How.BY_CLIENT, FIVE_TUPLE: How.BY_TUPLE}
"""By what is hashed."""


@dataclass(frozen=True, slots=True)
class Wheel:
    """How the program chooses, and the member of each slot, None where it is not known yet. A hash
    starts from the state `hash_state`, draws from the seed at its beginning. If the program doesn't
    choose, `reason` is why, as a clause."""

    how: How
    slots: Sequence[Member | None] = ()
    hash_state: bytes = b""
    reason: str = ""


def wheel_of(pool: Pool) -> Wheel:
    """The wheel of a pool as it is now."""
    reason = obstacle(pool)
    if reason:
        return Wheel(How.BY_WORKER, reason=reason)
    tier = next((tier for tier in pool.tiers.values() if tier.usable), None)
    if tier is None:
        return Wheel(How.BY_WORKER, reason="no backend is usable")
    scheduler = tier.scheduler
    if isinstance(scheduler, HashScheduler):
        how = HOW_HASHED[scheduler.parts]
        return Wheel(how, scheduler.table(), scheduler.hash.after_key())
    weighted = pool.service.scheduler != "round-robin"
    shares = shares_of(tier.usable) if weighted else [1] * len(tier.usable)
    if sum(shares) > MAX_SLOTS:
        return Wheel(
            How.BY_WORKER,
            reason=f"its weights would need {sum(shares)} slots, and have {MAX_SLOTS}",
        )
    how = HOW[pool.service.scheduler]
    if pool.service.scheduler == "weighted-round-robin":
        return Wheel(how, smooth(tier.usable, sum(shares)))
    return Wheel(
        how,
        tuple(one for one, share in zip(tier.usable, shares, strict=True) for _ in range(share)),
    )


def obstacle(pool: Pool) -> str:
    """Why only a worker can open flows of a pool; empty if the program can as well."""
    service = pool.service
    scheduler = pool.schedulers[0]
    if isinstance(scheduler, HashScheduler):
        if scheduler.parts not in HOW_HASHED or pool.key is not None:
            return "`hash_on` names what only a worker hashes"
        if not scheduler.table():
            return f"the scheduler {service.scheduler} has no table"
    elif service.scheduler not in HOW:
        return f"the scheduler {service.scheduler} chooses by what only a worker knows"
    if pool.awaiting_rules:
        return "its rules are being changed"
    if pool.canaries is not None:
        return "a canary is on trial"
    if pool.guarded or pool.counts_clients:
        return "a worker decides who may open flows"
    for what, there in (
        ("nat: full", pool.full),
        ("persistence", pool.persistence is not None),
        ("one_packet", service.one_packet),
        ("responses", service.responses is not None),
        ("mss", service.mss is not None),
        ("prefer", service.prefer is not None),
        ("syn_cookies: always", pool.cookies_always),
        ("max_connections", any(one.max_connections is not None for one in service.backends)),
    ):
        if there:
            return f"`{what}` needs a worker"
    if any(vip.last_port != vip.first_port for vip in service.vips) or pool.ranged:
        return "ranges of ports need a worker"
    if any(vip.wildcard for vip in service.vips):
        return "a wildcard VIP needs a worker"
    if any(one.local for one in service.backends):
        return "a backend is on this host"
    if any(one.role is not Role.PRIMARY for one in service.backends):
        return "roles of backends need a worker"
    if any(member.ramp is not None for member in pool.members.values()):
        return "a backend starts slowly"
    return ""


def shares_of(members: Sequence[Member]) -> list[int]:
    """Slots of each member, by weight, as few as there can be."""
    common = reduce(gcd, (member.weight for member in members))
    return [member.weight // common for member in members]


def smooth(members: Sequence[Member], slots: int) -> tuple[Member, ...]:
    """One round of weighted round-robin."""
    scheduler = WeightedRoundRobin(seed=0, key=b"")
    scheduler.update(members)
    picks = (scheduler.pick(NewFlow(0, 4, 0, 0, 0, 0)) for _ in range(slots))
    return tuple(member for member in picks if member is not None)
