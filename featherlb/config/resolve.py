"""Resolves names: from a `Config` to the services of the data plane.

Sans-IO: the caller provides the answers. They change while an instance runs, so they are not
judged by the rules for a file: what an answer makes impossible is left out, with the reason, and
everything else is served.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from featherlb import model
from featherlb.config import checks
from featherlb.config.faults import Fault, refuse
from featherlb.config.types import (
    AUTO,
    BackendConfig,
    ClusterConfig,
    Config,
    Host,
    ListedClients,
    NetworkFile,
    ServiceConfig,
)
from featherlb.core.pools.schedulers import goes_by_latency

Lookup = Callable[[str], Sequence[model.Address]]
"""The addresses of a host name; empty if it has none."""


@dataclass(frozen=True, slots=True)
class Place:
    """One address of a configured backend; None for a backend without one."""

    backend: BackendConfig
    address: model.Address | None
    problem: str = ""
    """Why the backend isn't served there; empty if it is."""
    merged: bool = False
    """Another backend of the service has this address and port, and comes first."""

    @property
    def endpoint(self) -> model.Endpoint | None:
        if self.address is None:
            return None
        return model.Endpoint(self.address, self.backend.port, self.backend.last_port)


Places = Mapping[str, Sequence[Place]]
"""By service, the places of its backends. Services without names are left out."""


def names(config: Config) -> list[str]:
    """All host names in the configuration, each once."""
    hosts = (host for service in config.services for host in _hosts(service))
    return list(dict.fromkeys(host for host in hosts if isinstance(host, str)))


def resolve(config: Config, lookup: Lookup) -> tuple[model.Service, ...]:
    """The services with every name replaced by its addresses.

    A backend's name stands for all its addresses of the VIP's family, a VIP's name for the first of
    them. This host's addresses are unknown here, so `Backend.local` stays False and
    `Backend.sources` has only the configured addresses. `auto` is nfqueue until it is picked.

    A backend without an address, or with one that it can't have, is left out, and so is a service
    without a VIP: see `place`. ConfigError if VIPs by name overlap with others.
    """
    return build(config, place(config, lookup), lookup)


def place(config: Config, lookup: Lookup) -> Places:
    """Where the backends of the services with names are."""
    named = [service for service in config.services if _has_names(service)]
    if not named:
        return {}
    known = checks.KnownVips()
    faults: list[Fault] = []
    for service in config.services:
        for vip in _with_vips(service, lookup).vips:
            faults += known.add(service, vip)
    refuse(faults)
    return {service.name: tuple(_places(service, lookup, known)) for service in named}


def build(config: Config, places: Places, lookup: Lookup) -> tuple[model.Service, ...]:
    """The services with their backends at these places."""
    resolved = (_with_vips(service, lookup) for service in config.services)
    return tuple(
        _service(service, places.get(service.name), config.cluster)
        for service in resolved
        if service.vips
    )


def absent(places: Places) -> dict[tuple[str, str], str]:
    """Why backends are at no place, by service and backend."""
    found: dict[tuple[str, str], str] = {}
    for service, ours in places.items():
        served = {one.backend for one in ours if not one.problem}
        for one in ours:
            if one.problem and one.backend not in served:
                found.setdefault((service, str(one.backend)), one.problem)
    return found


def with_weights(
    service: model.Service, configured: ServiceConfig, places: Sequence[Place] | None
) -> model.Service:
    """A service with the weights of another configuration, and its canaries, that differs in
    nothing else."""
    located = _located(configured, places)
    weights = _weights(located)
    canaries = {endpoint: backend.canary for endpoint, backend in reversed(located)}
    return replace(
        service,
        backends=tuple(
            replace(
                one, weight=weights.get(one.endpoint, 0), canary=canaries.get(one.endpoint, 0.0)
            )
            for one in service.backends
        ),
    )


def _has_names(service: ServiceConfig) -> bool:
    return any(isinstance(host, str) for host in _hosts(service))


def _hosts(service: ServiceConfig) -> Iterator[Host]:
    yield from (vip.host for vip in service.vips)
    yield from (backend.host for backend in service.backends)


def _with_vips(service: ServiceConfig, lookup: Lookup) -> ServiceConfig:
    """The service without the VIPs that have no address."""
    if not any(isinstance(vip.host, str) for vip in service.vips):
        return service
    version = _version(service, lookup)
    found = ((vip, next(iter(_addresses(vip.host, version, lookup)), None)) for vip in service.vips)
    return replace(
        service, vips=tuple(replace(vip, host=host) for vip, host in found if host is not None)
    )


def _places(service: ServiceConfig, lookup: Lookup, known: checks.KnownVips) -> Iterator[Place]:
    version = _version(service, lookup)
    vipless = not any(_addresses(vip.host, version, lookup) for vip in service.vips)
    first: dict[model.Endpoint, BackendConfig] = {}
    for backend in service.backends:
        found = _addresses(backend.host, version, lookup)
        if not found:
            text = f"the name '{backend.host}' has no IPv{version} address"
            yield Place(backend, None, f"{text} (check it with: getent ahosts {backend.host})")
        for address in found:
            problem = ""
            if isinstance(backend.host, str):
                there = replace(backend, host=address)
                problem = checks.objection(service, there, known) or ""
            if not problem and vipless:
                problem = f"the VIP's name '{service.vips[0].host}' has no IPv{version} address"
            if problem:
                yield Place(backend, address, problem)
                continue
            endpoint = model.Endpoint(address, backend.port, backend.last_port)
            earlier = first.setdefault(endpoint, backend)
            if earlier is backend:
                yield Place(backend, address)
            else:
                text = f"{endpoint} is the backend {earlier} already"
                yield Place(backend, address, text, merged=True)


def _addresses(host: Host, version: int, lookup: Lookup) -> Sequence[model.Address]:
    if not isinstance(host, str):
        return [host]
    return list(dict.fromkeys(one for one in lookup(host) if one.version == version))


def _version(service: ServiceConfig, lookup: Lookup) -> int:
    """4 or 6: the family of the addresses in the service; if there are only names, the family of
    the VIP's name, IPv4 first."""
    hosts = list(_hosts(service))
    for host in hosts:
        if not isinstance(host, str):
            return host.version
    versions = [address.version for name in hosts[:1] for address in lookup(str(name))]
    return min(versions, default=4)


def _located(
    service: ServiceConfig, places: Sequence[Place] | None
) -> list[tuple[model.Endpoint, BackendConfig]]:
    """The addresses at which the service's backends are served, each backend as it is configured
    now. Those that share an address follow each other."""
    if places is None:
        return [
            (model.Endpoint(_address(backend.host), backend.port, backend.last_port), backend)
            for backend in service.backends
        ]
    configured = {one.key: one for one in service.backends}
    return [
        (place.endpoint, backend)
        for place in places
        if place.endpoint is not None
        and (place.merged or not place.problem)
        and (backend := configured.get(place.backend.key)) is not None
    ]


def _weights(located: Sequence[tuple[model.Endpoint, BackendConfig]]) -> dict[model.Endpoint, int]:
    """The weight of each address. Where several backends have one, the greatest: a server is not to
    get more because two names lead to it, nor nothing because one of them is drained."""
    weights: dict[model.Endpoint, int] = {}
    for endpoint, backend in located:
        weights[endpoint] = max(backend.weight, weights.get(endpoint, 0))
    return weights


def _service(
    service: ServiceConfig, places: Sequence[Place] | None, cluster: ClusterConfig | None
) -> model.Service:
    sources = tuple(source.address for source in service.source_addresses)
    peer_sources: tuple[model.Address, ...] = ()
    if cluster is not None and service.nat is model.NatMode.FULL:
        family = _address(service.vips[0].host).version
        sources = cluster.sources(family, own=True)
        peer_sources = cluster.sources(family, own=False)
    located = _located(service, places)
    weights = _weights(located)
    first: dict[model.Endpoint, BackendConfig] = {}
    for endpoint, backend in located:
        first.setdefault(endpoint, backend)
    return model.Service(
        name=service.name,
        protocol=service.protocol,
        vips=tuple(
            model.Vip(_address(vip.host), vip.first_port, vip.last_port) for vip in service.vips
        ),
        backends=tuple(
            model.Backend(
                endpoint,
                weight=weights[endpoint],
                sources=sources,
                peer_sources=peer_sources,
                role=backend.role,
                max_connections=backend.max_connections,
                labels=backend.labels,
                canary=backend.canary,
            )
            for endpoint, backend in first.items()
        ),
        scheduler=service.scheduler,
        hash_on=service.hash_on,
        hash_balance=service.hash_balance,
        on_open=service.on_open,
        on_close=service.on_close,
        on_backend_change=service.on_backend_change,
        nat=service.nat,
        datapath=model.DEFAULT_DATAPATH if service.datapath == AUTO else service.datapath,
        one_packet=service.one_packet,
        responses=service.responses,
        mss=service.mss,
        syn_cookies=service.syn_cookies,
        sync=service.sync,
        persistence=_persistence(service),
        prefer=service.prefer,
        redispatch=service.redispatch,
        admission=_admission(service),
        measured=goes_by_latency(service.scheduler)
        or bool(service.passive_health and service.passive_health.slower),
    )


def _admission(service: ServiceConfig) -> model.Admission:
    address = _address(service.vips[0].host)

    def prefix(own: int | None) -> int:
        # A name may turn out to be of the family with the shorter addresses.
        client = model.CLIENT_PREFIX[address.version]
        return client if own is None else min(own, address.max_prefixlen)

    return model.Admission(
        allow=_addresses_of(service.allow) if service.allow else None,
        deny=_addresses_of(service.deny),
        deny_action=service.deny_action,
        max_flows=tuple(
            model.MaxFlows(one.limit, prefix(one.prefix), one.action) for one in service.max_flows
        ),
        max_new=tuple(
            model.MaxNew(
                one.rate.per_second,
                one.rate.count if one.burst is None else one.burst,
                prefix(one.prefix),
                one.action,
            )
            for one in service.max_new
        ),
    )


@lru_cache(maxsize=64)
def _addresses_of(clients: ListedClients) -> model.NetworkSet:
    found = model.NetworkSet.of(one for one in clients if not isinstance(one, NetworkFile))
    for one in clients:
        if isinstance(one, NetworkFile) and one.networks is not None:
            found |= one.networks
    return found


def _persistence(service: ServiceConfig) -> model.Persistence | None:
    if service.persistence is None:
        return None
    prefix = service.persistence.prefix or _address(service.vips[0].host).max_prefixlen
    return model.Persistence(service.persistence.timeout, prefix)


def _address(host: Host) -> model.Address:
    assert not isinstance(host, str), "names were replaced before"
    return host
