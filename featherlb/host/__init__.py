"""What `featherlb up` changes on this host: planned, checked, made and undone.

    services = host.prepare(services)
    host.check(services, options)
    with host.Host() as instance:
        instance.apply(host.plan(services, options))
        ...

Composes the drivers; `plan` is pure. None of it may be called from a running asyncio loop.
"""

from collections.abc import Sequence

from featherlb.host.instance import Host, remove_leftovers
from featherlb.host.plan import Facts, HostPlan, Options, build, source_ports
from featherlb.host.refusals import refuse
from featherlb.host.survey import free_queue, prepare, survey
from featherlb.model import Service

__all__ = [
    "Facts",
    "Host",
    "HostPlan",
    "Options",
    "build",
    "check",
    "free_queue",
    "plan",
    "prepare",
    "remove_leftovers",
    "source_ports",
    "survey",
]


def check(services: Sequence[Service], options: Options) -> None:
    """HostError with the first thing on this host that would keep `services`, whose backends are
    prepared, from working."""
    refuse(services, options, survey(services))


def plan(services: Sequence[Service], options: Options) -> HostPlan:
    """What an instance for `services`, whose backends are prepared, would change here."""
    return build(services, options, survey(services))
