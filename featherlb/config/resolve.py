"""Resolves names: from a `Config` to the services of the data plane.

Sans-IO: the caller provides the resolver.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from featherlb import model
from featherlb.config import checks
from featherlb.config.faults import Fault, Origin, refuse
from featherlb.config.types import AUTO, Config, Host, ServiceConfig

Lookup = Callable[[str], Sequence[model.Address]]
"""The addresses of a host name; empty if it has none."""


def resolve(config: Config, lookup: Lookup) -> tuple[model.Service, ...]:
    """The services with every name replaced by its addresses.

    A backend's name stands for all its addresses of the VIP's family, a VIP's name for the first of
    them. This host's addresses are unknown here, so `Backend.local` stays False and
    `Backend.sources` has only the configured addresses. `auto` is nfqueue until it is picked.

    ConfigError for names without an address of the family, and for whatever `checks` finds once the
    addresses are known.
    """
    faults: list[Fault] = []
    services = tuple(_with_addresses(service, lookup, faults) for service in config.services)
    refuse([*faults, *checks.check(replace(config, services=services))])
    return tuple(_service(service) for service in services)


def _with_addresses(service: ServiceConfig, lookup: Lookup, faults: list[Fault]) -> ServiceConfig:
    version = _version(service, lookup)

    def addresses(host: Host, origin: Origin) -> Sequence[Host]:
        if not isinstance(host, str):
            return [host]
        found = list(dict.fromkeys(a for a in lookup(host) if a.version == version))
        if not found:
            text = f"the name '{host}' has no IPv{version} address"
            faults.append(Fault(origin, f"{text} (check it with: getent ahosts {host})"))
        return found or [host]

    return replace(
        service,
        vips=tuple(replace(v, host=addresses(v.host, v.origin)[0]) for v in service.vips),
        backends=tuple(
            replace(backend, host=address)
            for backend in service.backends
            for address in addresses(backend.host, backend.origin)
        ),
    )


def _version(service: ServiceConfig, lookup: Lookup) -> int:
    """4 or 6: the family of the addresses in the service; if there are only names, the family of
    the VIP's name, IPv4 first."""
    hosts = [vip.host for vip in service.vips] + [backend.host for backend in service.backends]
    for host in hosts:
        if not isinstance(host, str):
            return host.version
    versions = [address.version for name in hosts[:1] for address in lookup(str(name))]
    return min(versions, default=4)


def _service(service: ServiceConfig) -> model.Service:
    sources = tuple(source.address for source in service.source_addresses)
    return model.Service(
        name=service.name,
        protocol=service.protocol,
        vips=tuple(
            model.Vip(_address(vip.host), vip.first_port, vip.last_port) for vip in service.vips
        ),
        backends=tuple(
            model.Backend(
                model.Endpoint(_address(backend.host), backend.port, backend.last_port),
                weight=backend.weight,
                sources=sources,
                role=backend.role,
                max_connections=backend.max_connections,
            )
            for backend in service.backends
        ),
        scheduler=service.scheduler,
        nat=service.nat,
        datapath=model.DEFAULT_DATAPATH if service.datapath == AUTO else service.datapath,
        one_packet=service.one_packet,
        responses=service.responses,
        mss=service.mss,
        persistence=_persistence(service),
    )


def _persistence(service: ServiceConfig) -> model.Persistence | None:
    if service.persistence is None:
        return None
    prefix = service.persistence.prefix or _address(service.vips[0].host).max_prefixlen
    return model.Persistence(service.persistence.timeout, prefix)


def _address(host: Host) -> model.Address:
    assert not isinstance(host, str), "names were replaced before"
    return host
