"""What `featherlb up` changes on this host: surveyed, checked, planned, made and undone.

    services = host.prepare(services)
    facts = host.survey(services)
    host.check(services, options, facts)
    with host.Host() as instance:
        instance.apply(host.build(services, options, facts))
        ...

Composes the drivers; `build` is pure. None of it may be called from a running asyncio loop.
"""

from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.host.apply import Host, forget_flows, remove_leftovers
from featherlb.host.choose import pick, usable
from featherlb.host.kernel import check_kernel
from featherlb.host.peers import counts, may_return
from featherlb.host.plan import HostPlan, build
from featherlb.host.preflight import check, find
from featherlb.host.survey import free_queue, missing_capabilities, prepare, survey

__all__ = [
    "Facts",
    "Host",
    "HostPlan",
    "Options",
    "build",
    "check",
    "check_kernel",
    "counts",
    "find",
    "forget_flows",
    "free_queue",
    "may_return",
    "missing_capabilities",
    "pick",
    "prepare",
    "remove_leftovers",
    "survey",
    "usable",
]
