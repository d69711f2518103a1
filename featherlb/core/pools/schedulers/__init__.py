"""Schedulers choose the backend of a new flow. One file per strategy, behind one registry.

Importing this package registers the built-ins.
"""

from featherlb.core.pools.schedulers import (  # noqa: F401 (imported to register)
    failover,
    first,
    least_connections,
    least_latency,
    maglev,
    never_queue,
    overflow,
    rendezvous_hash,
    round_robin,
    two_choices,
    weighted_least_connections,
    weighted_random,
    weighted_round_robin,
)
from featherlb.core.pools.schedulers.base import Member, NewFlow, Scheduler
from featherlb.core.pools.schedulers.registry import (
    canonical_name,
    create,
    create_for,
    factory_of,
    goes_by_latency,
    hashed_parts,
    is_consistent,
    is_file_reference,
    limits_by_weight,
    names,
    register,
    scheduler,
    takes_hash_options,
    within_weights,
)
from featherlb.core.pools.schedulers.user import PickFunction, UserScheduler

__all__ = [
    "Member",
    "NewFlow",
    "PickFunction",
    "Scheduler",
    "UserScheduler",
    "canonical_name",
    "create",
    "create_for",
    "factory_of",
    "goes_by_latency",
    "hashed_parts",
    "is_consistent",
    "is_file_reference",
    "limits_by_weight",
    "names",
    "register",
    "scheduler",
    "takes_hash_options",
    "within_weights",
]
