"""Preflight: what on this host would keep the services from working, each in one sentence.

Nothing on the host is changed.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path

from featherlb.datapaths.host_side import Replies, by_datapath, requirements_of, rules_of
from featherlb.datapaths.rules.extensions import check_kernel
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.datapaths.rules.vip_addresses import subnet_interface
from featherlb.host.backend_text import Backends, common, texts_of
from featherlb.host.choose import obstacle
from featherlb.host.claims import claims, conflict, datapaths_with, source_entries
from featherlb.host.orphans import read_vips
from featherlb.host.peers import peers, served, shared, way_out
from featherlb.host.survey import require_privileges
from featherlb.model import (
    DEFAULT_DATAPATH,
    LOOPBACK,
    Address,
    Backend,
    Endpoint,
    HostAddress,
    NatMode,
    Protocol,
    Service,
    Vip,
)
from featherlb.model.errors import HostError
from featherlb.system import arp, journal, nfqueue, rtnetlink, sockets, sysctl

NOWHERE = ""
"""Instead of an interface's name: no route leads to the address."""


def check(
    services: Sequence[Service],
    options: Options,
    facts: Facts,
    log: journal.Journal | None = None,
) -> None:
    """HostError with the first obstacle found; the backends of `services` are prepared.

    For a new instance, and for one whose services change. Takes a few tenths of a second if a VIP
    is to be assigned: ARP asks its subnet whether another host has it.
    """
    for problem in problems(services, options, facts, log):
        raise problem


def problems(
    services: Sequence[Service],
    options: Options,
    facts: Facts,
    log: journal.Journal | None = None,
    owner: int | None = None,
) -> Iterator[HostError]:
    """What `check` would raise, and what else it would have found, one of each kind.

    `owner` is the pid of the instance that is or will be responsible, by default this process.
    """
    try:
        require_privileges()
    except HostError as error:
        # Without them there is hardly anything to see.
        yield error
        return
    owner = owner or os.getpid()
    records = (log or journal.Journal()).records()
    rivals = peers(records, services, options.queue, owner)
    checks: list[Callable[[], None]] = [
        partial(_check_kernel, services, options),
        partial(_check_services, services),
        partial(_check_sources, services, options),
        partial(_check_limits, services, options, facts),
        partial(_check_peers, services, rivals),
        partial(_check_listeners, services),
        partial(_check_reverse_path, services, options, facts),
        partial(_check_vip_addresses, services, options, facts),
    ]
    if not any(record.alive and record.pid == owner for record in records):
        checks.insert(5, partial(_check_queues, options, rivals))
    for check_one in checks:
        try:
            check_one()
        except HostError as error:
            yield error


def _check_kernel(services: Sequence[Service], options: Options) -> None:
    families = {vip.address.version for _, _, vip in _vips(services)}
    full = any(service.nat is NatMode.FULL for service in services)
    check_kernel(families, options.workers, full)


def _check_services(services: Sequence[Service]) -> None:
    vips = list(_vips(services))
    loops = _Loops(vips)
    _check_shared_backends(services)
    _check_all_ports(services)
    for service in services:
        if service.datapath is not DEFAULT_DATAPATH and (
            sentence := obstacle(service, service.datapath)
        ):
            raise HostError(sentence)
        for backend in service.backends:
            if vip := loops.through(service, backend):
                raise HostError(
                    f"backend {backend} of service '{service.name}' is the VIP {vip} itself:"
                    " its packets would loop; name the server's own address"
                    " or another port"
                )
    for service, _, vip in vips:
        if vip.address.is_loopback and service.nat is NatMode.DNAT:
            for backend in service.backends:
                if not backend.local:
                    raise HostError(
                        f"backend {backend} cannot answer the clients of VIP {vip}, whose"
                        f" addresses are loopback addresses as well; set `nat: full` for service"
                        f" '{service.name}'"
                    )


def _check_sources(services: Sequence[Service], options: Options) -> None:
    """Whether replies to the source addresses of `full` mode come to this host."""
    if not options.assign:
        return
    for service, source in _foreign_sources(services):
        raise HostError(
            f"source address {source} of service '{service.name}' is not an address of this host,"
            f" so no reply would come here; name one that it has, or add it: {_addition(source)}"
        )


def _foreign_sources(services: Sequence[Service]) -> Iterator[tuple[Service, Address]]:
    """Source addresses that are neither this host's nor VIPs, which it may get later, each with the
    first service that has it."""
    vips = {vip.address for _, _, vip in _vips(services)}
    users: dict[Address, Service] = {}
    for service in services:
        for backend in service.backends:
            for source in backend.sources:
                users.setdefault(source, service)
    for source, service in users.items():
        route = None if source in vips else rtnetlink.route(source)
        if source not in vips and (route is None or not route.local):
            yield service, source


def _addition(address: Address) -> str:
    """How to give this host an address."""
    route = rtnetlink.route(address)
    link = rtnetlink.links().get(route.link) if route is not None else None
    name = LOOPBACK if link is None or route is None or route.gateway is not None else link.name
    return f"`ip addr add {address}/{address.max_prefixlen} dev {name}`"


def _check_shared_backends(services: Sequence[Service]) -> None:
    """Connection tracking sees a backend's replies to all services or to none."""

    def tracked(service: Service) -> bool:
        return Replies.TRACKED in rules_of(service.datapath).replies(service.nat)

    users: dict[str, Service] = {}
    for service in services:
        if not tracked(service):
            for backend in service.backends:
                users |= dict.fromkeys(texts_of(service, backend), service)
    untracked = Backends(users)
    for service in filter(tracked, services):
        for backend in service.backends:
            for text in texts_of(service, backend):
                if text in untracked:
                    user = next(user for other, user in users.items() if common([text], [other]))
                    raise HostError(
                        f"backend {backend} is in service '{user.name}' with the datapath"
                        f" {user.datapath} and in service '{service.name}' with the datapath"
                        f" {service.datapath}; give both the same datapath"
                    )


def _check_all_ports(services: Sequence[Service]) -> None:
    """Rules of one datapath can't leave some ports of a VIP to another one."""
    vips = [(service, vip) for service in services for vip in service.vips]
    for service, vip in vips:
        for other, narrower in vips if vip.all_ports else ():
            if (other.protocol, narrower.address) == (
                service.protocol,
                vip.address,
            ) and other.datapath is not service.datapath:
                raise HostError(
                    f"service '{service.name}' has all other ports of VIP {narrower} with the"
                    f" datapath {service.datapath}, and service '{other.name}' has the datapath"
                    f" {other.datapath}; give both the same datapath"
                )


def _check_limits(services: Sequence[Service], options: Options, facts: Facts) -> None:
    for datapath, ours in by_datapath(services).items():
        for sentence in requirements_of(datapath).limits(ours, options, facts):
            raise HostError(sentence)


def _check_peers(services: Sequence[Service], rivals: Sequence[journal.Record]) -> None:
    tracked = claims(services)[Replies.TRACKED]
    for record in rivals:
        if found := shared(served(services), read_vips(record.vips)):
            protocol, vip = found
            raise HostError(
                f"VIP {vip}/{protocol} is already served by the featherlb with pid"
                f" {record.pid}; stop that one first"
            )
        if sentence := conflict(services, record):
            raise HostError(sentence)
        both_tracked = common(tracked, record.claims[Replies.TRACKED])
        sources = source_entries(services, spared=both_tracked)
        if shared_sources := common(sources, record.sources):
            raise HostError(
                f"the featherlb with pid {record.pid} sends to the same backend from the same"
                f" source address ({min(shared_sources)}), so their ports would collide; give the"
                " service another source address, or both the datapath"
                f" {datapaths_with(Replies.TRACKED)}{way_out(record)}"
            )


def _check_queues(options: Options, rivals: Sequence[journal.Record]) -> None:
    bound = nfqueue.bound_queues()
    owners = {number: _process(queue.owner) for number, queue in bound.items()}
    for record in rivals:
        for number in range(record.instance, record.instance + record.workers):
            owners[number] = f"the featherlb with pid {record.pid}"
    for number in range(options.queue, options.queue + options.workers):
        if number in owners:
            raise HostError(
                f"queue {number} is in use by {owners[number]}; choose another queue number"
            )


def _check_listeners(services: Sequence[Service]) -> None:
    listeners = sockets.listeners({service.protocol for service in services})
    for service, protocol, vip in _vips(services):
        for listener in listeners:
            if (
                listener.protocol is protocol
                and not vip.all_ports  # `advice` names those that it hides
                and vip.first_port <= listener.endpoint.port <= vip.last_port
                and (vip.wildcard or listener.accepts(vip.address))
                and not any(
                    backend.local
                    and listener.accepts(backend.endpoint.address)
                    and endpoint.covers(Endpoint(endpoint.address, listener.endpoint.port))
                    for backend in service.backends
                    for endpoint in service.endpoints_of(backend)
                )
            ):
                raise HostError(
                    f"{listener.owner()} listens on {listener.endpoint}/{protocol} and would lose"
                    f" its connections to VIP {vip}; stop it, or bind it to another address or"
                    " port"
                )


def _check_reverse_path(services: Sequence[Service], options: Options, facts: Facts) -> None:
    """`full` mode: packets carry an address of this host before they are routed.

    A strict rp_filter (the greater one of the interface's and `all`) takes such a packet only
    on the interface that has the address; a loose one asks only that there is a route to it
    (net/ipv4/fib_frontend.c: __fib_validate_source). IPv6 has no such filter.
    """
    if problem := reverse_path_problem(services, options, facts.addresses):
        raise HostError(problem)


def reverse_path_problem(
    services: Sequence[Service], options: Options, addresses: Sequence[HostAddress]
) -> str:
    """What keeps the host, which has these addresses, from the above: a sentence that names what to
    do; empty if nothing does."""

    strict = cache(sysctl.rp_filter)
    settings: dict[str, int] = {}
    full = [service for service in services if service.nat is NatMode.FULL]
    owners = {own.address.ip: own.interface for own in rtnetlink.addresses()} if full else {}
    for service in full:
        for arrival, owner in _crossings(service, options, addresses, owners):
            if owner == arrival or (strictness := strict(arrival)) == 0:
                continue
            keys = [f"net/ipv4/conf/{name}/rp_filter" for name in ("all", arrival)]
            if owner == NOWHERE:
                settings |= dict.fromkeys(keys, 0)
            elif strictness == 1:
                settings.setdefault(keys[1], 2)
    if not settings:
        return ""
    fix = " ".join(f"{sysctl.dotted(key)}={value}" for key, value in settings.items())
    return f"rp_filter would drop packets in the NAT mode full; run `sysctl -w {fix}`"


def _crossings(
    service: Service,
    options: Options,
    addresses: Sequence[HostAddress],
    owners: Mapping[Address, str],
) -> Iterator[tuple[str, str]]:
    """Where packets of a `full` service arrive, each with the interface to whose address their
    source is rewritten there. `owners` are the interfaces of all addresses of this host."""
    links = rtnetlink.links()
    outside = sorted({name for name in owners.values() if name != LOOPBACK})
    for vip in service.vips:
        if vip.address.version != 4:
            continue
        if vip.wildcard:
            vip_interfaces = outside
        elif vip.address in owners:
            vip_interfaces = [owners[vip.address]]
        elif options.assign:
            own = subnet_interface(vip.address, addresses)
            vip_interfaces = [own or LOOPBACK]
        else:
            route = rtnetlink.route(vip.address)
            link = links.get(route.link) if route is not None else None
            vip_interfaces = [link.name if link is not None else NOWHERE]
        # Where clients come in: anywhere, unless the VIP's subnet says more.
        client_interfaces = [name for name in vip_interfaces if name in outside] or outside
        for backend in service.backends:
            for source, client_interface in product(backend.sources, client_interfaces):
                yield client_interface, owners.get(source, LOOPBACK)
            back = rtnetlink.route(backend.endpoint.address)
            if back is not None and not back.local and back.link in links:
                for vip_interface in vip_interfaces:
                    yield links[back.link].name, vip_interface


def advise(services: Sequence[Service], options: Options, facts: Facts) -> Iterator[str]:
    """What keeps clients away for now, but may change without an operator: VIPs that this instance
    doesn't assign, and source addresses, that are not here. A standby host gets them when the other
    one fails."""
    for service, source in () if options.assign else _foreign_sources(services):
        yield (
            f"source address {source} of service '{service.name}' is not an address of this host:"
            f" no reply comes here until something adds it, such as VRRP or {_addition(source)}"
        )
    found = {} if options.assign else _on_link(services, facts)
    for interface, addresses in sorted(found.items()):
        for address in sorted(addresses, key=str):
            if not _answered(address, interface):
                yield (
                    f"VIP {address} is not an address of this host, and featherlb doesn't assign it"
                    " (`assign: false`): no client reaches it here until something else does, such"
                    f" as VRRP or `ip addr add {address}/{address.max_prefixlen} dev {interface}`"
                )


def _check_vip_addresses(services: Sequence[Service], options: Options, facts: Facts) -> None:
    """Whether clients reach the VIPs on this host, and on no other."""
    if not options.assign:
        return
    for interface, addresses in sorted(_on_link(services, facts).items()):
        for address, mac in arp.owners(interface, addresses).items():
            raise HostError(
                f"VIP {address} already belongs to the host with the MAC address {mac} on"
                f" {interface}; remove it there, or choose another VIP; if a program such as"
                " keepalived moves it between hosts, set `assign: false`"
            )


def _on_link(services: Sequence[Service], facts: Facts) -> dict[str, list[Address]]:
    """The VIPs that are not on this host, by the interface that has their subnet."""
    here = {own.address.ip for own in rtnetlink.addresses()} | facts.local_vips
    found: dict[str, list[Address]] = {}
    for address in {vip.address for _, _, vip in _vips(services)} - here:
        interface = subnet_interface(address, facts.addresses)
        if interface and not address.is_unspecified:
            found.setdefault(interface, []).append(address)
    return found


def _answered(address: Address, interface: str) -> bool:
    """Whether this host answers for an address that is not its own (proxy ARP or NDP)."""
    settings = [f"net/ipv4/conf/{name}/proxy_arp" for name in ("all", interface)]
    return (
        address.version == 4 and any(sysctl.read(key) == "1" for key in settings)
    ) or rtnetlink.has_proxy(address, interface)


def _vips(services: Sequence[Service]) -> Iterator[tuple[Service, Protocol, Vip]]:
    for service in services:
        for vip in service.vips:
            yield service, service.protocol, vip


class _Loops:
    """Finds the VIP that packets to a backend are packets to."""

    def __init__(self, vips: Iterable[tuple[Service, Protocol, Vip]]) -> None:
        self._single: dict[tuple[Protocol, Address, int], Vip] = {}
        self._ranges: dict[tuple[Protocol, Address], list[Vip]] = {}
        for _, protocol, vip in vips:
            if vip.first_port == vip.last_port:
                self._single[protocol, vip.address, vip.first_port] = vip
            else:
                self._ranges.setdefault((protocol, vip.address), []).append(vip)

    def through(self, service: Service, backend: Backend) -> Vip | None:
        """None if there is none."""
        protocol, address = service.protocol, backend.endpoint.address
        everywhere = type(address)(0)
        for endpoint in service.endpoints_of(backend):
            first, last = endpoint.port, endpoint.last_port or endpoint.port
            for one in (address, everywhere) if backend.local else (address,):
                for vip in self._ranges.get((protocol, one), ()):
                    if vip.first_port <= last and first <= vip.last_port:
                        return vip
                for port in range(first, last + 1):
                    if found := self._single.get((protocol, one, port)):
                        return found
        return None


def _process(port_id: int) -> str:
    """The process that probably has this netlink port id: the kernel gives the first socket
    of a process its pid."""
    try:
        return f"{Path(f'/proc/{port_id}/comm').read_text().strip()} (pid {port_id})"
    except OSError:
        return "another program"
