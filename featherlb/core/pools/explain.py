"""Explains which member of a pool a new flow would get, and why. Changes nothing, as far as the
pool's schedulers are `rewindable`."""

from dataclasses import dataclass

from featherlb.core.pools.pool import Level, Pool
from featherlb.core.pools.schedulers import Member, NewFlow, UserScheduler
from featherlb.model import Endpoint, Role
from featherlb.model.ticks import TICKS_PER_SECOND


@dataclass(frozen=True, slots=True)
class Candidate:
    """A member at this moment. `active` and `max_connections` are this worker's part; `progress` is
    how much of its share it takes in slow start, 1 outside."""

    backend: Endpoint
    role: Role
    weight: int
    active: int
    max_connections: int | None
    progress: float


@dataclass(frozen=True, slots=True)
class Binding:
    """A client's entry in the persistence table, with the seconds until it expires."""

    backend: Endpoint
    remaining: float


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a new flow would go: None if nowhere. `reasons` are sentences, in the order in which
    things were decided."""

    backend: Endpoint | None
    reasons: tuple[str, ...]
    binding: Binding | None
    candidates: tuple[Candidate, ...]


def explain(pool: Pool, flow: NewFlow, ticks: int) -> Decision:
    """What `pool.pick` would do with this flow at this time (0.1 s)."""
    candidates = tuple(_candidate(member, ticks) for member in pool.members.values())
    binding = _binding(pool, flow, ticks)
    errors = _errors(pool)
    chosen = pool.peek(flow, ticks)
    reasons = []
    if pool.persistence is not None:
        reasons.append(_about(pool, binding, chosen))
    if binding is None or chosen is None or binding.backend != chosen.endpoint:
        if pool.rewindable or chosen is None:
            reasons += _scheduled(pool, flow, ticks)
        else:
            reasons.append(_custom(pool, chosen, failed=len(_errors(pool)) > len(errors)))
    if pool.carries and chosen is not None:
        why = pool.left_to_worker
        reasons.append(
            f"a worker opens the flow: {why}" if why else "the program in the kernel opens the flow"
        )
    return Decision(chosen.endpoint if chosen else None, tuple(reasons), binding, candidates)


def _candidate(member: Member, ticks: int) -> Candidate:
    ramp = member.ramp
    return Candidate(
        backend=member.endpoint,
        role=member.backend.role,
        weight=member.weight,
        active=member.active,
        max_connections=member.backend.max_connections,
        progress=1.0 if ramp is None else ramp.progress(ticks / TICKS_PER_SECOND),
    )


def _binding(pool: Pool, flow: NewFlow, ticks: int) -> Binding | None:
    if pool.persistence is None:
        return None
    member = pool.persistence.find(flow, ticks)
    if member is None:
        return None
    return Binding(member.endpoint, pool.persistence.remaining(flow, ticks) / TICKS_PER_SECOND)


def _about(pool: Pool, binding: Binding | None, chosen: Member | None) -> str:
    """What persistence has to do with it."""
    if binding is None:
        return "persistence: the client is not bound to a backend"
    text = (
        f"persistence: the client is bound to {binding.backend} for another"
        f" {binding.remaining:.0f} s"
    )
    if chosen is not None and chosen.endpoint == binding.backend:
        return text
    member = pool.members.get(binding.backend)
    if member is None:
        return f"{text}, but that has left the pool"
    if not member.weight:
        return f"{text}, but that takes no new flows"
    if not member.has_room:
        return f"{text}, but that is full"
    return f"{text}, but another role serves now"


def _scheduled(pool: Pool, flow: NewFlow, ticks: int) -> list[str]:
    """Why the scheduler of each tier that was asked did what it did."""
    reasons = []
    if pool.turn is not None:
        turn = pool.turn
        return [f"{pool.service.scheduler} picks {turn.peek().endpoint}, as {turn.explain()}"]
    if pool.canaries is not None:
        with pool.rewinding():
            canary = pool.canaries.pick(flow)
        shares = ", ".join(
            f"{one.endpoint} gets {one.backend.canary:g} %" for one in pool.canaries.members
        )
        reason = f"canary: {shares} of the new flows"
        if canary is not None:
            return [f"{reason}, and this one is among those of {canary.endpoint}"]
        reasons.append(f"{reason}; this one is left to the others")
    if pool.spill is not None:
        first = "others" if pool.spill.takes(flow) else "preferred ones"
        reasons.append(
            f"prefer: backends that are preferred are down, so the rest take"
            f" {100 * pool.spill.share:.0f} % of the flows; this one goes to {first} first"
        )
    for level, tier in pool.tiers_for(flow).items():
        if not tier.usable:
            reasons.append(f"{level}: no backend takes new flows")
            continue
        with pool.rewinding():
            picked = tier.pick(flow, ticks)
        if picked is not None:
            return [*reasons, *_picked(pool, level, flow, picked)]
        reasons.append(f"{level}: all backends are full")
    return reasons


def _picked(pool: Pool, level: Level, flow: NewFlow, picked: Member) -> list[str]:
    """Why a tier's scheduler picked this member."""
    scheduler = pool.tiers[level].scheduler
    first = scheduler.peek(flow)
    assert first is not None
    reason = (
        f"{level}: {pool.service.scheduler} picks {first.endpoint}, as {scheduler.explain(flow)}"
    )
    if picked is first:
        return [reason]
    why = "is in slow start and leaves this flow to others" if first.has_room else "is full"
    return [reason, f"{first.endpoint} {why}, so {picked.endpoint} takes it"]


def _errors(pool: Pool) -> list[str | None]:
    """One for each failure of the pool's custom schedulers."""
    return [
        one.first_error
        for one in pool.schedulers
        if isinstance(one, UserScheduler)
        for _ in range(one.errors)
    ]


def _custom(pool: Pool, chosen: Member, *, failed: bool) -> str:
    """What is known of a custom scheduler's pick."""
    name = pool.service.scheduler
    if failed:
        error = _errors(pool)[-1]
        return f"{name} fails ({error}), so {chosen.endpoint} is picked at random"
    return f"{chosen.backend.role}: the code of {name} picks {chosen.endpoint}"
