"""Checks across values: services, VIPs and backends that conflict.

The same checks serve files, the command line and, with names resolved, the final configuration.
An unresolved name equals only the same name.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address

from featherlb.config.faults import Fault
from featherlb.config.types import (
    BackendConfig,
    BackendKey,
    ClusterConfig,
    Config,
    Host,
    NetworkFile,
    ServiceConfig,
    VipConfig,
)
from featherlb.core.pools.schedulers import is_consistent, limits_by_weight, takes_hash_options
from featherlb.model import (
    CLIENT_PREFIX,
    LAST_PORT,
    QUIC_KEY,
    TUPLE_FIELDS,
    Address,
    CheckType,
    Datapath,
    NatMode,
    NetworkSet,
    Protocol,
    SynCookies,
    reached_ports,
)
from featherlb.model.counted import counted

_BROADCAST = IPv4Address("255.255.255.255")


def check(config: Config) -> Iterator[Fault]:
    """Every fault between the parts of a configuration."""
    known = KnownVips()
    names: dict[str, ServiceConfig] = {}
    for service in config.services:
        first = names.setdefault(service.name, service)
        if first is not service and first.vips[0] != service.vips[0]:
            text = f"the name '{service.name}' is taken by another service ({first.origin.place})"
            yield Fault(service.origin, text)
        for vip in service.vips:
            yield from _usable(vip)
            yield from known.add(service, vip)
    for service in config.services:
        yield from _pool(service, known)
        yield from _ranges(service)
        yield from _common_ports(service)
        yield from _limits(service, config.workers)
        yield from _sources(service)
        yield from _families(service)
        yield from _options(service)
        yield from _health(service, known)
        yield from _client_limits(service, config.workers)
        yield from lists(service)
    if config.cluster is not None:
        yield from _cluster(config, config.cluster)


def advise(config: Config) -> Iterator[Fault]:
    """Warnings: what works, but probably not as intended."""
    for service in config.services:
        wanted = service.prefer.labels if service.prefer else ()
        if not any(set(wanted) <= set(backend.labels) for backend in service.backends) and wanted:
            text = f"no backend is labelled {', '.join(map(str, wanted))}"
            origin = service.option_origins.get("prefer", service.origin)
            yield Fault(origin, f"{text}: none is preferred (expected 'labels' of backends)")
        for backend in service.backends:
            if isinstance(backend.host, IPv6Address) and backend.host.is_loopback:
                text = f"only clients on this host can reach {backend}"
                yield Fault(backend.origin, f"{text} (make it listen on another address)")


class KnownVips:
    """The VIPs seen so far, by protocol and destination address."""

    def __init__(self) -> None:
        self._by_host: dict[tuple[Protocol, Host], _Vips] = defaultdict(_Vips)

    def add(self, service: ServiceConfig, vip: VipConfig) -> Iterator[Fault]:
        """Add a VIP; a fault if it overlaps with an earlier one."""
        everywhere = not isinstance(vip.host, str) and vip.host.is_unspecified
        for (protocol, host), owned in self._by_host.items() if everywhere else ():
            if protocol == service.protocol and _family(host) == _family(vip.host):
                yield from _overlap(service, vip, owned, same_host=host == vip.host)
        if not everywhere:
            here = self._at(service.protocol, vip.host)
            yield from _overlap(service, vip, here, same_host=True)
            elsewhere = self._everywhere(service.protocol, vip.host)
            yield from _overlap(service, vip, elsewhere, same_host=False)
        self._by_host[service.protocol, vip.host].add(service, vip)

    def owner(
        self, protocol: Protocol, host: Host, ports: Iterable[tuple[int, int]]
    ) -> ServiceConfig | None:
        """The service that has a VIP at this host with one of these ports (inclusive ranges)."""
        places = [self._at(protocol, host)]
        if not isinstance(host, str) and host.is_loopback:
            places.append(self._everywhere(protocol, host))
        for first, last in ports:
            for place in places:
                if place and (found := place.first(first, last)):
                    return found[0]
        return None

    def _at(self, protocol: Protocol, host: Host) -> "_Vips | None":
        return self._by_host.get((protocol, host))

    def _everywhere(self, protocol: Protocol, host: Host) -> "_Vips | None":
        return None if isinstance(host, str) else self._at(protocol, type(host)(0))


class _Vips:
    """The VIPs of one destination address. Thousands with a port each are found at once."""

    def __init__(self) -> None:
        self._order: list[tuple[ServiceConfig, VipConfig]] = []
        self._single: dict[int, int] = {}
        """By port, the place in `_order` of the first VIP that has this one alone."""
        self._ranges: list[int] = []

    def add(self, service: ServiceConfig, vip: VipConfig) -> None:
        place = len(self._order)
        self._order.append((service, vip))
        if vip.first_port == vip.last_port:
            self._single.setdefault(vip.first_port, place)
        else:
            self._ranges.append(place)

    def first(
        self, low: int, high: int, *, all_ports: bool | None = None
    ) -> tuple[ServiceConfig, VipConfig] | None:
        """The first VIP with a port from `low` to `high`, and its service; of those that have all
        ports, or that don't, if `all_ports` is given."""
        found = []
        if not all_ports:
            ports = range(low, high + 1)
            if len(ports) < len(self._single):
                found = [self._single[port] for port in ports if port in self._single]
            else:
                found = [place for port, place in self._single.items() if port in ports]
        for place in self._ranges:
            vip = self._order[place][1]
            if all_ports in (None, vip.all_ports) and (
                low <= vip.last_port and vip.first_port <= high
            ):
                found.append(place)
        return self._order[min(found)] if found else None


def _overlap(
    service: ServiceConfig, vip: VipConfig, others: _Vips | None, *, same_host: bool
) -> Iterator[Fault]:
    if others is None:
        return
    # The others of its address come before the one that has the rest of the ports.
    all_ports = vip.all_ports if same_host else None
    if found := others.first(vip.first_port, vip.last_port, all_ports=all_ports):
        owner, other = found
        whose = "this service" if owner is service else f"service '{owner.name}'"
        text = f"{vip} overlaps with the VIP {other} of {whose} ({other.origin.place})"
        yield Fault(vip.origin, text)


def _usable(vip: VipConfig) -> Iterator[Fault]:
    if problem := _useless(vip.host):
        yield Fault(vip.origin, f"{vip.host} is {problem} (expected an address of one host)")
    elif vip.all_ports and not isinstance(vip.host, str) and vip.host.is_unspecified:
        text = f"{vip} would take every connection of this host"
        yield Fault(vip.origin, f"{text} (expected the address of a VIP)")


def _pool(service: ServiceConfig, known: KnownVips) -> Iterator[Fault]:
    first: dict[BackendKey, BackendConfig] = {}
    for backend in service.backends:
        earlier = first.setdefault(backend.key, backend)
        if earlier is not backend:
            text = f"{backend} is already a backend of this service ({earlier.origin.place})"
            yield Fault(backend.origin, text)
        if problem := _impossible(service, backend, known):
            yield Fault(backend.origin, problem)


def _ports(service: ServiceConfig, backend: BackendConfig) -> tuple[tuple[int, int], ...]:
    """The ranges of ports that packets reach at a backend."""
    vip_ports = ((vip.first_port, vip.last_port) for vip in service.vips)
    return reached_ports(backend.port, backend.last_port, vip_ports)


def _common_ports(service: ServiceConfig) -> Iterator[Fault]:
    """A port of a host belongs to one backend of the service."""
    ranged = [backend for backend in service.backends if backend.last_port]
    for backend in ranged:
        for other in service.backends:
            if other.host != backend.host or other.key == backend.key:
                continue
            if other.last_port and other.key[1:] < backend.key[1:]:
                continue  # it has found this one
            if any(
                first <= end and begin <= last
                for first, last in _ports(service, backend)
                for begin, end in _ports(service, other)
            ):
                text = f"{backend} has ports of the backend {other} ({other.origin.place})"
                yield Fault(backend.origin, text)
                break


def _ranges(service: ServiceConfig) -> Iterator[Fault]:
    """Each port of a VIP leads to the one at the same place in a backend's range. Of a single port,
    a backend says which one it leads to."""
    single = len({(vip.first_port, vip.last_port) for vip in service.vips}) == 1
    single = single and service.vips[0].first_port == service.vips[0].last_port
    for backend in service.backends:
        if not backend.last_port:
            continue
        if not backend.port:
            if single:
                text = f"'{backend}' has no port"
                yield Fault(backend.origin, f"{text} (expected HOST:PORT, as the VIP has one port)")
            continue
        count = backend.last_port - backend.port + 1
        for vip in service.vips:
            ports = vip.last_port - vip.first_port + 1
            if ports != count:
                text = f"{backend} has {count} ports, the VIP {vip} has {ports}"
                yield Fault(backend.origin, f"{text} (expected as many)")
                break
            if vip.first_port != service.vips[0].first_port:
                text = f"{backend} can't have the ports of both {service.vips[0]} and {vip}"
                yield Fault(backend.origin, f"{text} (expected VIPs with the same ports)")
                break


def _limits(service: ServiceConfig, workers: int) -> Iterator[Fault]:
    for backend in service.backends:
        limit = backend.max_connections
        if limits_by_weight(service.scheduler) and 0 < backend.weight < workers:
            shared = counted(backend.weight, "connection")
            text = f"{workers} workers can't share {shared} of {backend}"
            yield Fault(backend.origin, f"{text} (expected a weight of {workers} or more)")
        if limit is not None and limit < workers:
            text = f"{workers} workers can't share {counted(limit, 'connection')} of {backend}"
            yield Fault(backend.origin, f"{text} (expected max_connections of {workers} or more)")


def _client_limits(service: ServiceConfig, workers: int) -> Iterator[Fault]:
    family = next((_family(vip.host) for vip in service.vips if _family(vip.host)), None)
    client = None if family is None else CLIENT_PREFIX[family]
    for key, limits in (("max_flows", service.max_flows), ("max_new", service.max_new)):
        origin = service.option_origins.get(key, service.origin)
        prefixes = [client if one.prefix is None else one.prefix for one in limits]
        if twice := [one for one in prefixes if prefixes.count(one) > 1]:
            text = "no prefix" if twice[0] is None else f"the prefix {twice[0]}"
            yield Fault(origin, f"two limits have {text} (expected one for each)")
        longest = max((one or 0 for one in prefixes), default=0)
        if family == 4 and longest > 32:
            text = f"{longest} is too long a prefix for IPv4"
            yield Fault(origin, f"{text} (expected at most 32)")
    for most in service.max_flows:
        if most.prefix == 0 and most.limit < workers:
            text = (
                f"{workers} workers can't share {counted(most.limit, 'flow')} of '{service.name}'"
            )
            origin = service.option_origins.get("max_flows", service.origin)
            yield Fault(origin, f"{text} (expected a limit of {workers} or more)")


def lists(service: ServiceConfig) -> Iterator[Fault]:
    """Lists that let nobody in, if all their files have been read."""
    sets = [
        one.networks if isinstance(one, NetworkFile) else NetworkSet.of([one])
        for one in service.allow
    ]
    family = next((host.version for host in _hosts(service) if not isinstance(host, str)), None)
    if not sets or None in sets or family is None:
        return
    if not any(found is not None and found.has(family) for found in sets):
        text = f"'allow' has no IPv{family} network, so no client could connect"
        origin = service.option_origins.get("allow", service.origin)
        yield Fault(origin, f"{text} (expected one at least)")


def _hosts(service: ServiceConfig) -> Iterator[Host]:
    yield from (vip.host for vip in service.vips)
    yield from (backend.host for backend in service.backends)


def _sources(service: ServiceConfig) -> Iterator[Fault]:
    if service.source_addresses and service.nat is not NatMode.FULL:
        text = "source addresses require full NAT (expected nat: full)"
        yield Fault(service.source_addresses[0].origin, text)
    first = set()
    for source in service.source_addresses:
        if source.address in first:
            yield Fault(source.origin, f"{source.address} is listed twice")
        first.add(source.address)
        if problem := _useless(source.address):
            text = f"{source.address} is {problem} (expected an address of this host)"
            yield Fault(source.origin, text)
        elif source.address.is_unspecified:
            text = f"{source.address} is not an address (expected one of this host)"
            yield Fault(source.origin, text)


def _cluster(config: Config, cluster: ClusterConfig) -> Iterator[Fault]:
    """What several nodes need, and what they can't do."""
    if cluster.listen.address.is_unspecified:
        text = f"a cluster's node can't listen on {cluster.listen}"
        yield Fault(cluster.origin, f"{text} (expected an address that its peers know)")
    first: dict[Address, str] = {}
    for node, addresses in cluster.source_addresses.items():
        for address in addresses:
            other = first.setdefault(address, node)
            if problem := "no address" if address.is_unspecified else _useless(address):
                text = f"source address {address} of node {node} is {problem}"
                yield Fault(cluster.origin, f"{text} (expected an address of that node)")
            elif other != node:
                text = f"nodes {other} and {node} have the source address {address}"
                yield Fault(cluster.origin, f"{text} (expected addresses of each node's own)")
    for service in config.services:
        datapath = service.datapath
        if isinstance(datapath, Datapath) and datapath.outlives_workers:
            origin = service.option_origins.get("datapath", service.origin)
            text = f"flows of the datapath {datapath} can't go on at another node"
            yield Fault(origin, f"{text} (expected nfqueue, raw or auto in a cluster)")
        if service.nat is NatMode.FULL:
            yield from _cluster_sources(service, config.workers, cluster)


def _cluster_sources(
    service: ServiceConfig, workers: int, cluster: ClusterConfig
) -> Iterator[Fault]:
    """Each node of a cluster needs source addresses of its own, which the others know."""
    origin = service.option_origins.get("nat", service.origin)
    if service.source_addresses:
        text = "in a cluster, source addresses belong to nodes, not to a service"
        place = service.source_addresses[0].origin
        yield Fault(place, f"{text} (expected `source_addresses` in `cluster`)")
    if workers > 1:
        text = "in a cluster, `nat: full` works with one worker only"
        yield Fault(origin, f"{text} (expected workers: 1, or nat: dnat)")
    family = next(filter(None, map(_family, _hosts(service))), 4)
    if not cluster.sources(family, own=True):
        text = f"with `nat: full`, node {cluster.node} needs an IPv{family} source address"
        yield Fault(
            origin,
            f"{text} (expected `source_addresses` in `cluster`, with those of all nodes by name)",
        )


def _families(service: ServiceConfig) -> Iterator[Fault]:
    """Translation doesn't change the IP version, so a service has addresses of one family."""
    others = [
        *((vip.host, vip.origin) for vip in service.vips),
        *((source.address, source.origin) for source in service.source_addresses),
        *((backend.host, backend.origin) for backend in service.backends),
    ]
    expected, first = next(
        ((family, host) for host, _ in others if (family := _family(host))), (None, None)
    )
    for host, origin in others:
        if (family := _family(host)) and family != expected:
            text = f"{host} is IPv{family} and {first} is IPv{expected}"
            yield Fault(origin, f"{text} (expected IPv{expected} throughout)")


def _options(service: ServiceConfig) -> Iterator[Fault]:
    """Options that conflict with the protocol, the address family or another option."""
    options = {
        "mss": (Protocol.TCP, service.mss is not None),
        "syn_cookies": (Protocol.TCP, service.syn_cookies is SynCookies.ALWAYS),
        "one_packet": (Protocol.UDP, service.one_packet),
        "responses": (Protocol.UDP, service.responses is not None),
        "passive_health": (Protocol.TCP, service.passive_health is not None),
    }
    for name, (protocol, present) in options.items():
        if present and service.protocol != protocol:
            text = f"'{name}' requires protocol {protocol}"
            origin = service.option_origins.get(name, service.origin)
            yield Fault(origin, f"{text} (this service has {service.protocol})")
    for name, value in (("hash_on", service.hash_on), ("hash_balance", service.hash_balance)):
        if value and not takes_hash_options(service.scheduler):
            text = f"'{name}' has no effect with {service.scheduler}, which hashes no flows"
            origin = service.option_origins.get(name, service.origin)
            yield Fault(origin, f"{text} (expected a scheduler such as maglev or source-hash)")
    origin = service.option_origins.get("hash_on", service.origin)
    fields = [part.field for part in service.hash_on]
    if twice := next((one for one in TUPLE_FIELDS if fields.count(one) > 1), None):
        yield Fault(origin, f"'{twice}' is listed twice")
    if sum(bool(part.key) for part in service.hash_on) > 1:
        yield Fault(origin, "there are two keys in datagrams (expected one)")
    if service.hash_key_name and service.protocol is not Protocol.UDP:
        text = f"the key '{service.hash_key_name}' requires protocol udp"
        yield Fault(origin, f"{text} (this service has {service.protocol})")
    if service.hash_key_name == QUIC_KEY and service.one_packet:
        yield Fault(
            origin, f"one_packet and '{QUIC_KEY}' exclude each other (expected one of them)"
        )
    widest = max((part.prefix or 0 for part in service.hash_on), default=0)
    if widest > 32 and any(_family(vip.host) == 4 for vip in service.vips):
        yield Fault(origin, f"src/{widest} is too long a prefix for IPv4 (expected at most 32)")
    if service.slow_start and is_consistent(service.scheduler) and not service.hash_balance:
        text = (
            f"'slow_start' has no effect with {service.scheduler}, whose picks don't depend on time"
        )
        origin = service.option_origins.get("slow_start", service.origin)
        yield Fault(origin, f"{text} (expected another scheduler)")
    persistence = service.persistence
    if persistence and service.one_packet:
        text = "persistence and one_packet exclude each other (expected one of them)"
        yield Fault(persistence.origin, text)
    if persistence and persistence.prefix and persistence.prefix > 32:
        first = next((vip.host for vip in service.vips if _family(vip.host) == 4), None)
        if first:
            text = f"{persistence.prefix} is too long a prefix for {first}"
            yield Fault(persistence.origin, f"{text} (expected at most 32 with IPv4)")


def _health(service: ServiceConfig, known: KnownVips) -> Iterator[Fault]:
    check = service.health
    if check and not check.port and check.type is not CheckType.SCRIPT:
        for backend in service.backends:
            if _ports(service, backend)[0] == (1, LAST_PORT):
                text = f"which of the ports of {backend} the health check asks is unclear"
                yield Fault(service.origin, f"{text} (expected 'port' in 'health')")
                return
    for backend in service.backends:
        if text := _checks_a_vip(service, backend, known) or "":
            yield Fault(service.origin, text)
            return


def objection(service: ServiceConfig, backend: BackendConfig, known: KnownVips) -> str | None:
    """Why the service can't have this backend, of whose address nobody knew when the file was
    checked; None if it can."""
    return _impossible(service, backend, known) or _checks_a_vip(service, backend, known)


def _impossible(service: ServiceConfig, backend: BackendConfig, known: KnownVips) -> str | None:
    """Why the address can't be a backend's."""
    problem = _useless(backend.host)
    if not problem and not isinstance(backend.host, str) and backend.host.is_unspecified:
        problem = "not the address of a host"
    if problem:
        return f"{backend.host} is {problem} (expected an address of one host)"
    if owner := known.owner(service.protocol, backend.host, _ports(service, backend)):
        return f"{backend} is a VIP of service '{owner.name}' (expected a server of its pool)"
    return None


def _checks_a_vip(service: ServiceConfig, backend: BackendConfig, known: KnownVips) -> str | None:
    """A health check that goes to a VIP tests the pool, not the backend."""
    check = service.health
    if check is None or not (check.address or check.port):
        return None
    protocol = Protocol.UDP if check.type is CheckType.UDP else Protocol.TCP
    host, port = check.address or backend.host, check.port or _ports(service, backend)[0][0]
    owner = known.owner(protocol, host, [(port, port)])
    if owner is None:
        return None
    text = f"the health check of {backend} would go to a VIP of service '{owner.name}'"
    return f"{text} (expected an address or port of the backend)"


def _family(host: Host) -> int | None:
    return None if isinstance(host, str) else host.version


def _useless(host: Host) -> str | None:
    """Why no connection can have this address; None if one can."""
    if isinstance(host, str):
        return None
    if host.is_multicast:
        return "a multicast address"
    if host == _BROADCAST:
        return "the broadcast address"
    if isinstance(host, IPv6Address) and host.ipv4_mapped:
        return f"an IPv4-mapped address: write {host.ipv4_mapped}"
    return None
