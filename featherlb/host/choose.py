"""Which datapaths this host can run, for which services, and which one is picked.

Nothing on the host is changed.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from featherlb.datapaths.rules.vip_addresses import subnet_interface
from featherlb.host.claims import kept_entries, on_datapath, tracked_entries, untracked_entries
from featherlb.host.kernel import check_kernel
from featherlb.host.peers import peers, way_out
from featherlb.model import (
    DEFAULT_DATAPATH,
    SOURCE_PORTS,
    Datapath,
    Endpoint,
    NatMode,
    Protocol,
    Service,
)
from featherlb.model.errors import HostError
from featherlb.system import iptables, journal, network, paths, sysctl
from featherlb.system.ruleset import Match, Rule, State

BY_SPEED = (Datapath.OFFLOAD, Datapath.RAW, Datapath.NFQUEUE)
"""All datapaths, the fastest first (docs/benchmarks.md)."""


def obstacle(service: Service, datapath: Datapath) -> str | None:
    """Why this host can't run the service, whose backends are prepared, with the datapath: a
    sentence that names what to do, None if it can."""
    reason = next(_OBSTACLES[datapath]([service]), None)
    if reason is None:
        return None
    return (
        f"service '{service.name}' can't have the datapath {datapath}: {reason};"
        f" set its datapath to {DEFAULT_DATAPATH}"
    )


def usable(services: Sequence[Service] = ()) -> dict[Datapath, str | None]:
    """All datapaths, the fastest first, each with the reason why this host can't run all of the
    services with it (prepared; none, to ask about the host alone), None if it can."""
    return {datapath: next(_OBSTACLES[datapath](services), None) for datapath in BY_SPEED}


def pick(
    services: Sequence[Service],
    automatic: Collection[str],
    standing: Mapping[str, Datapath],
    queue: int | None = None,
) -> list[Service]:
    """The services, whose backends are prepared, with the datapath chosen for those that are
    `automatic`, by name: the one that is `standing` if it still works, or the fastest that does.
    `queue` is the number of their instance, if it is configured."""
    rivals = peers(journal.Journal().records(), services, queue, os.getpid())
    chosen = {service.name: service for service in services}
    able = {datapath: _able(services, automatic, datapath) for datapath in BY_SPEED}
    tracked: dict[tuple[Protocol, Endpoint], bool] = {}
    for service in services:
        if service.name not in automatic:
            tracked |= _tracked(service)
    # Those that have the least choice come first: others that share a backend make way for them.
    for name in sorted(automatic, key=lambda name: sum(name in names for names in able.values())):
        choices = dict.fromkeys((standing.get(name, BY_SPEED[0]), *BY_SPEED))
        works = (replace(chosen[name], datapath=one) for one in choices if name in able[one])
        fitting = (
            one
            for one in works
            if all(tracked.get(key, value) is value for key, value in _tracked(one).items())
            and not any(opposed([one], record) for record in rivals)
        )
        # If none fits, the refusal of this one says what is wrong.
        chosen[name] = next(fitting, replace(chosen[name], datapath=DEFAULT_DATAPATH))
        tracked |= _tracked(chosen[name])
    return list(chosen.values())


def _able(
    services: Sequence[Service], names: Collection[str], datapath: Datapath
) -> frozenset[str]:
    """Which ones of the named services this host can run with the datapath."""
    asked = [service for service in services if service.name in names]
    # Mostly all, and each question costs a tenth of a second.
    if asked and next(_OBSTACLES[datapath](asked), None) is not None:
        asked = [service for service in asked if obstacle(service, datapath) is None]
    return frozenset(service.name for service in asked)


def _tracked(service: Service) -> dict[tuple[Protocol, Endpoint], bool]:
    """Whether conntrack sees the replies of each backend: for one that several services share, it
    does for all or for none."""
    seen = service.datapath.kernel_forwards
    return {(service.protocol, backend.endpoint): seen for backend in service.backends}


def opposed(services: Sequence[Service], record: journal.Record) -> str | None:
    """Why these services can't run beside another instance that has a backend of theirs with
    another datapath: a sentence that names what to do, None if they can."""
    tracked, untracked = tracked_entries(services), untracked_entries(services)
    both = tracked.intersection(record.untracked) | untracked.intersection(record.tracked)
    if both:
        return (
            f"the featherlb with pid {record.pid} has the backend {min(both)} as well, and only one"
            " of the two has it with the datapath offload, whose replies the other takes out of"
            " connection tracking; give both the same datapath, or the other one nfqueue with the"
            f" NAT mode full{way_out(record)}"
        )
    raw = kept_entries(on_datapath(services, Datapath.RAW))
    queued = kept_entries(on_datapath(services, Datapath.NFQUEUE))
    if both := raw.intersection(record.queued) | queued.intersection(record.raw):
        return (
            f"the featherlb with pid {record.pid} has the backend {min(both)} as well, and"
            " only one of the two has it with the datapath raw, which keeps the backend's replies"
            " from the other; give both the same datapath, or one the NAT mode full"
            f"{way_out(record)}"
        )
    return None


def _nfqueue_obstacles(services: Sequence[Service]) -> Iterator[str]:
    families = {vip.address.version for service in services for vip in service.vips}
    full = any(service.nat is NatMode.FULL for service in services)
    try:
        check_kernel(families or (4,), 1, full)
    except HostError as error:
        yield str(error)


def _raw_obstacles(services: Sequence[Service]) -> Iterator[str]:
    # Clients on this host are served by a queue.
    yield from _nfqueue_obstacles(services)
    if not paths.has_packet_sockets():
        yield "this kernel has no packet sockets with PACKET_VNET_HDR, or CAP_NET_RAW is missing"
    interfaces = {one.name: one for one in paths.read_interfaces().values()}
    if not any(one.carries_frames for one in interfaces.values()):
        yield "no Ethernet interface of this host is up"
    low, _ = map(int, (sysctl.read("net/ipv4/ip_local_port_range") or "32768 60999").split())
    addresses = network.addresses()
    for service in services:
        for backend in service.backends:
            route = network.route(backend.endpoint.address)
            if backend.local:
                yield f"backend {backend} is on this host, where no frame gets"
            elif route is not None and not interfaces[route.interface].carries_frames:
                yield (
                    f"the route to backend {backend} leads through {route.interface}, which has no"
                    " Ethernet frames"
                )
        for vip in service.vips:
            interface = subnet_interface(vip.address, addresses)
            if vip.address.is_loopback:
                yield f"VIP {vip} is a loopback address, which only this host can reach"
            elif interface not in (None, network.LOOPBACK) and (
                not interfaces[interface].carries_frames
            ):
                yield f"VIP {vip} is in the subnet of {interface}, which has no Ethernet frames"
        if service.nat is NatMode.FULL and low in SOURCE_PORTS:
            yield (
                f"connections of this host itself have ports from {low} on, which `nat: full`"
                ' gives to flows: run `sysctl -w net.ipv4.ip_local_port_range="32768 60999"`'
            )


def _offload_obstacles(services: Sequence[Service]) -> Iterator[str]:
    yield from _nfqueue_obstacles(services)
    for family in sorted({vip.address.version for service in services for vip in service.vips}):
        try:
            iptables.require_tables(family, ["nat"])
        except HostError as error:
            yield str(error)
        if iptables.missing(family, [Rule(Match(states=(State.DNAT,)))]):
            yield "this kernel has no connection tracking (load its module nf_conntrack)"
    for service in services:
        for key, wanted in (
            ("one_packet", service.one_packet),
            ("responses", service.responses is not None),
            ("mss", service.mss is not None),
        ):
            if wanted:
                yield f"only the first packet of a flow is seen, which is not enough for `{key}`"


_OBSTACLES: dict[Datapath, Callable[[Sequence[Service]], Iterator[str]]] = {
    Datapath.NFQUEUE: _nfqueue_obstacles,
    Datapath.RAW: _raw_obstacles,
    Datapath.OFFLOAD: _offload_obstacles,
}
