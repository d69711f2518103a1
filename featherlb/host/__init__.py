"""What `featherlb up` changes on this host: surveyed, checked, planned, applied and reverted.

    services = host.prepare(services)
    facts = host.survey(services)
    host.check(services, options, facts)
    with host.Host() as instance:
        instance.apply(host.build(services, options, facts))
        ...

Composes the drivers; `build` is pure. None of it may be called from a running asyncio loop.
"""

from featherlb.datapaths.rules.extensions import check_kernel
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.host.advice import advice
from featherlb.host.apply import Host, remove_saved_flows, remove_stale, seed_of_programs
from featherlb.host.choose import pick, usable
from featherlb.host.deviations import ALL_KINDS, Deviation, Kind, repairs
from featherlb.host.peers import is_peer, may_resume
from featherlb.host.plan import HostPlan, build
from featherlb.host.preflight import advise, check, problems, reverse_path_problem
from featherlb.host.survey import free_queue, missing_capabilities, prepare, survey

__all__ = [
    "ALL_KINDS",
    "Deviation",
    "Facts",
    "Host",
    "HostPlan",
    "Kind",
    "Options",
    "advice",
    "advise",
    "build",
    "check",
    "check_kernel",
    "free_queue",
    "is_peer",
    "may_resume",
    "missing_capabilities",
    "pick",
    "prepare",
    "problems",
    "remove_saved_flows",
    "remove_stale",
    "repairs",
    "reverse_path_problem",
    "seed_of_programs",
    "survey",
    "usable",
]
