"""Which datapaths are available on this host, for which services, and which one is picked.

Nothing on the host is changed.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from featherlb.datapaths.host_side import Replies, requirements_of, rules_of
from featherlb.host.claims import conflict
from featherlb.host.peers import peers
from featherlb.model import DEFAULT_DATAPATH, Datapath, Endpoint, Protocol, Service
from featherlb.system import journal

BY_SPEED = (Datapath.OFFLOAD, Datapath.RAW, Datapath.NFQUEUE)
"""The fastest first (docs/benchmarks.md): the order in which `auto` tries them."""
ON_REQUEST = (Datapath.EBPF,)
"""Those that `auto` leaves alone."""


def obstacle(service: Service, datapath: Datapath) -> str | None:
    """Why the datapath is unavailable on this host for the service, whose backends are prepared: a
    sentence that names what to do; None if it is available."""
    reason = next(requirements_of(datapath).obstacles([service]), None)
    if reason is None:
        return None
    return (
        f"service '{service.name}' cannot use the datapath {datapath}: {reason};"
        f" set its datapath to {DEFAULT_DATAPATH}"
    )


def usable(services: Sequence[Service] = ()) -> dict[Datapath, str | None]:
    """All datapaths, those of `auto` first, in its order, each with the reason why it is
    unavailable on this host for all of the services (prepared; none, to ask about the host alone),
    None if it is available."""
    return {
        datapath: next(requirements_of(datapath).obstacles(services), None)
        for datapath in (*BY_SPEED, *ON_REQUEST)
    }


def pick(
    services: Sequence[Service],
    automatic: Collection[str],
    standing: Mapping[str, Datapath],
    queue: int | None = None,
    *,
    by_workers: bool = False,
) -> list[Service]:
    """The services, whose backends are prepared, with the datapath chosen for those that are
    `automatic`, by name: the one that is `standing` if it still works, or the fastest that does.
    `queue` is the number of their instance, if it is configured. `by_workers`: every packet meets a
    worker."""
    rivals = peers(journal.Journal().records(), services, queue, os.getpid())
    chosen = {service.name: service for service in services}
    order = [one for one in BY_SPEED if not (by_workers and one.outlives_workers)]
    able = {datapath: _able(services, automatic, datapath) for datapath in order}
    tracked: dict[tuple[Protocol, Endpoint], bool] = {}
    for service in services:
        if service.name not in automatic:
            tracked |= _tracked(service)
    # Those with the fewest choices come first; others that share a backend adapt to them.
    for name in sorted(automatic, key=lambda name: sum(name in names for names in able.values())):
        choices = dict.fromkeys((standing.get(name, order[0]), *order))
        works = (
            replace(chosen[name], datapath=one) for one in choices if name in able.get(one, ())
        )
        fitting = (
            one
            for one in works
            if all(tracked.get(key, value) is value for key, value in _tracked(one).items())
            and not any(conflict([one], record) for record in rivals)
        )
        # If none fits, preflight says why not this one.
        chosen[name] = next(fitting, replace(chosen[name], datapath=DEFAULT_DATAPATH))
        tracked |= _tracked(chosen[name])
    return list(chosen.values())


def _able(
    services: Sequence[Service], names: Collection[str], datapath: Datapath
) -> frozenset[str]:
    """Those of the named services for which the datapath is available on this host."""
    asked = [service for service in services if service.name in names]
    # Usually all, and each question costs a tenth of a second.
    if asked and next(requirements_of(datapath).obstacles(asked), None) is not None:
        asked = [service for service in asked if obstacle(service, datapath) is None]
    return frozenset(service.name for service in asked)


def _tracked(service: Service) -> dict[tuple[Protocol, Endpoint], bool]:
    """Whether conntrack sees the replies of each backend: for one that several services share, it
    does for all or for none."""
    seen = Replies.TRACKED in rules_of(service.datapath).replies(service.nat)
    return {
        (service.protocol, endpoint): seen
        for backend in service.backends
        for endpoint in service.endpoints_of(backend)
    }
