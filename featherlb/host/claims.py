"""What two instances on one host cannot share: backends, by how their replies are handled."""

from collections.abc import Collection, Iterable, Sequence

from featherlb.model import Datapath, NatMode, Service
from featherlb.system import ipset


def on_datapath(services: Iterable[Service], datapath: Datapath) -> list[Service]:
    """Those whose packets go this way."""
    return [service for service in services if service.datapath is datapath]


def source_entries(services: Iterable[Service], spared: Collection[str] = ()) -> frozenset[str]:
    """Each backend with a source address that `full` mode gives to packets towards it, as text; not
    of the backends that are `spared` (see `tracked_entries`).

    Only one instance of a host may use such a pair, as two would assign the same ports. Both may if
    conntrack has the flows of both: it refuses a port that is taken.
    """
    return frozenset(
        str(ipset.Entry(backend.endpoint, service.protocol, source))
        for service in services
        if service.nat is NatMode.FULL
        for backend in service.backends
        if str(ipset.Entry(backend.endpoint, service.protocol)) not in spared
        for source in backend.sources
    )


def kept_entries(services: Iterable[Service]) -> frozenset[str]:
    """Each backend that sees the client's address (`dnat`), as text.

    Instances may share it, but one can't drop its replies as copies that another has to get.
    """
    return _backend_entries(service for service in services if service.nat is NatMode.DNAT)


def tracked_entries(services: Iterable[Service]) -> frozenset[str]:
    """Each backend whose replies the kernel has to track (datapath offload), as text."""
    return _backend_entries(on_datapath(services, Datapath.OFFLOAD))


def untracked_entries(services: Sequence[Service]) -> frozenset[str]:
    """Each backend whose replies rules take out of connection tracking, whomever they are for, as
    text. Those of the datapath nfqueue in `full` mode are known by the port that was given to them,
    so only they are taken; with the datapath raw, all to this host's own addresses are, in
    either mode."""
    queued = kept_entries(on_datapath(services, Datapath.NFQUEUE))
    return queued | _backend_entries(on_datapath(services, Datapath.RAW))


def _backend_entries(services: Iterable[Service]) -> frozenset[str]:
    return frozenset(
        str(ipset.Entry(backend.endpoint, service.protocol))
        for service in services
        for backend in service.backends
    )
