"""What the plan depends on, read from this host."""

import os
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

from featherlb.datapaths.rules.facts import Facts
from featherlb.host.peers import peers
from featherlb.host.resources import Assignment, changes
from featherlb.model import EVERYBODY, LOOPBACK, Address, Backend, NatMode, Service
from featherlb.model.errors import HostError
from featherlb.system import ipset, iptables, journal, nfqueue, rtnetlink, sysctl
from featherlb.system.privileges import has_capability
from featherlb.system.ruleset import (
    HashLimit,
    Match,
    Membership,
    ReversePath,
    Rule,
    Side,
    State,
)
from featherlb.system.sysctl import BRIDGE_FILTERS

CAP_NET_ADMIN, CAP_NET_RAW = 12, 13  # linux/capability.h
_CAPABILITIES = {CAP_NET_ADMIN: "CAP_NET_ADMIN", CAP_NET_RAW: "CAP_NET_RAW"}

_FORWARDING = {4: "net/ipv4/ip_forward", 6: "net/ipv6/conf/all/forwarding"}


def prepare(services: Sequence[Service]) -> list[Service]:
    """Fill in which backends are on this host and, for `full` mode without configured sources,
    the address that the kernel would send from. HostError for a `full` backend without route."""
    return [
        replace(
            service,
            backends=tuple(_prepare_backend(backend, service.nat) for backend in service.backends),
        )
        for service in services
    ]


def survey(services: Sequence[Service], log: journal.Journal | None = None) -> Facts:
    """The facts for a plan of `services`, whose backends are prepared.

    Without CAP_NET_ADMIN the kernel's features can't be probed and are assumed.
    """
    log = log or journal.Journal()
    assigned = {
        ip_address(resource.address)
        for record in log.records()
        for resource in changes(record)
        if isinstance(resource, Assignment)
    }
    vips = {vip.address for service in services for vip in service.vips}
    routes = [
        rtnetlink.route(backend.endpoint.address)
        for service in services
        for backend in service.backends
        if not backend.local
    ]
    links = rtnetlink.links()
    families = sorted({address.version for address in vips})
    probe = has_capability(CAP_NET_ADMIN)
    limited = any(service.admission != EVERYBODY for service in services)
    lacking = _lacking(families, limited) if probe else set()
    order, earlier = place(log)
    return Facts(
        addresses=tuple(own for own in rtnetlink.addresses() if own.address.ip not in assigned),
        local_vips=frozenset(vip for vip in vips - assigned if is_local(vip)),
        backend_interfaces=tuple(
            sorted({links[route.link].name for route in routes if route and route.link in links})
        ),
        advertised=tuple(
            interface
            for interface in sorted(link.name for link in links.values())
            if interface != LOOPBACK
            # An instance may have set 2; where an operator did, nothing changes.
            and sysctl.read(f"net/ipv6/conf/{interface}/accept_ra") in ("1", "2")
        ),
        routers=frozenset(family for family, key in _FORWARDING.items() if sysctl.read(key) == "1"),
        bridge_filter=bridge_filter(),
        sets="set" not in lacking,
        networks="networks" not in lacking,
        hashlimit="hashlimit" not in lacking,
        reverse_path=frozenset(families) - {rule.version for rule in rtnetlink.rules()}
        if "rpfilter" not in lacking
        else frozenset(),
        strict=tuple(
            sorted(link.name for link in links.values() if sysctl.rp_filter(link.name) == 1)
        ),
        conntrack="conntrack" not in lacking,
        socket="socket" not in lacking,
        order=order,
        earlier=earlier,
    )


def bridge_filter() -> frozenset[int]:
    """See `Facts`."""
    return frozenset(family for family, key in BRIDGE_FILTERS.items() if sysctl.read(key) == "1")


def place(log: journal.Journal) -> tuple[int, tuple[int, ...]]:
    """This process's order among the live instances, and the orders of the earlier ones."""
    records = [record for record in log.records() if record.alive]
    for record in records:
        if record.pid == os.getpid():
            return record.order, record.earlier
    earlier = tuple(sorted(record.order for record in records))
    return (earlier[-1] + 1 if earlier else 0), earlier


def is_local(address: Address) -> bool:
    """Whether packets to the address are for this host."""
    route = rtnetlink.route(address)
    return route is not None and route.local


def require_privileges() -> None:
    """HostError if this process may not change the network."""
    for name in missing_capabilities():
        raise HostError(f"featherlb needs the capability {name}; run it as root, with sudo")


def missing_capabilities() -> list[str]:
    """The names of those that this process needs and hasn't got."""
    return [name for number, name in _CAPABILITIES.items() if not has_capability(number)]


def free_queue(
    workers: int, services: Sequence[Service] = (), log: journal.Journal | None = None
) -> int:
    """The lowest number that begins `workers` free queues, for an instance of these services."""
    taken = set(nfqueue.bound_queues())
    for record in peers((log or journal.Journal()).records(), services, None, os.getpid()):
        taken.update(range(record.instance, record.instance + record.workers))
    for first in range(65536 - workers + 1):
        if taken.isdisjoint(range(first, first + workers)):
            return first
    raise HostError(f"no {workers} consecutive queue numbers are free; use fewer workers")


def _prepare_backend(backend: Backend, nat: NatMode) -> Backend:
    address = backend.endpoint.address
    route = rtnetlink.route(address)
    sources = backend.sources
    if nat is NatMode.FULL and not sources:
        if route is None or route.source is None:
            raise HostError(
                f"backend {backend} has no route, so `nat: full` finds no address to send from;"
                " add a route to it"
            )
        sources = (route.source,)
    return replace(backend, local=route is not None and route.local, sources=sources)


def _lacking(families: Sequence[int], limited: bool) -> set[str]:
    """Which of the extensions that featherlb can do without this kernel lacks; those for limits of
    clients only if some service is `limited`."""
    rate = HashLimit("flb-probe", 1, 1, 32)
    # There is no set `-`, so that rule comes last.
    # Some extensions are for one hook only, but that is looked at later.
    rules = (
        Rule(Match(reverse_path=ReversePath.NOWHERE)),
        *([Rule(Match(beyond=rate))] if limited else ()),
        Rule(Match(states=(State.UNTRACKED,))),
        Rule(Match(socket=True)),
        Rule(Match(member=Membership("-", (Side.DESTINATION,)))),
    )
    found = {name for family in families for name in iptables.missing(family, rules)}
    if not ipset.supported(*ipset.ENDPOINTS):
        found.add("set")
    if "set" in found or (limited and not ipset.supported("hash:net")):
        found.add("networks")
    return found
