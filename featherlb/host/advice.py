"""What works on this host, but perhaps not as intended: sentences for the log and the doctor."""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address

from featherlb.datapaths.host_side import Replies, rules_of
from featherlb.model import Address, Datapath, NatMode, Route, Service
from featherlb.system import rtnetlink, sockets

OUTSIDERS: dict[int, Address] = {4: IPv4Address("192.0.2.1"), 6: IPv6Address("3fff::1")}
"""By address family, a client that hosts reach only by their default route: a documentation
address (RFC 5737, RFC 9637)."""


def advice(services: Sequence[Service]) -> Iterator[str]:
    """Each sentence names what is affected and the way out. Nothing is changed."""
    greedy = [service for service in services if any(vip.all_ports for vip in service.vips)]
    yield from _shadowed(greedy)
    for service in greedy:
        if Replies.QUEUED in rules_of(service.datapath).replies(service.nat):
            yield (
                f"backends of service '{service.name}' are recognised by their address alone, so"
                f" this host masquerades none of their own connections; if it should, set"
                f" `nat: {NatMode.FULL}` or another datapath than {service.datapath}"
            )
    yield from _bypassed(services)
    yield from _unruled(services)


def _shadowed(services: Sequence[Service]) -> Iterator[str]:
    """Daemons of this host that clients no longer reach at a VIP with all ports."""
    if not services:
        return
    listeners = sockets.listeners({service.protocol for service in services})
    for service in services:
        for vip in service.vips:
            hidden = [
                f"{listener.owner()} on port {listener.endpoint.port}"
                for listener in listeners
                if listener.protocol is service.protocol and listener.accepts(vip.address)
            ]
            if vip.all_ports and hidden:
                yield (
                    f"VIP {vip}/{service.protocol} takes all connections to its address: clients"
                    f" reach {', '.join(dict.fromkeys(hidden))} only at other addresses of this"
                    " host"
                )


def _bypassed(services: Sequence[Service]) -> Iterator[str]:
    """Services whose backends see clients' addresses and are in the subnet of clients."""
    if all(service.nat is NatMode.FULL for service in services):
        return
    subnets = [
        own.address.network
        for own in rtnetlink.addresses()
        if own.address.network.prefixlen < own.address.max_prefixlen
    ]
    for service in services:
        addresses = [] if service.nat is NatMode.FULL else [vip.address for vip in service.vips]
        shared = [one for one in subnets if any(address in one for address in addresses)]
        found = {
            str(backend.endpoint.address): None
            for backend in service.backends
            if not backend.local and any(backend.endpoint.address in one for one in shared)
        }
        if found:
            yield (
                f"service '{service.name}' has backends in the subnet of its VIP"
                f" ({', '.join(found)}), which answer the clients of that subnet directly, not"
                f" through this host: these clients can't connect; set `nat: {NatMode.FULL}`, or"
                " put the backends into a subnet of their own"
            )


def _unruled(services: Sequence[Service]) -> Iterator[str]:
    """Services whose replies are routed before their source is the VIP, though the host has
    routing rules for packets from the VIP."""
    late = {
        vip.address: service
        for service in services
        if {Replies.QUEUED, Replies.TRACKED} & rules_of(service.datapath).replies(service.nat)
        for vip in service.vips
        if not vip.wildcard and any(not backend.local for backend in service.backends)
    }
    if not late or all(rule.marked for rule in rtnetlink.rules()):
        return
    found: dict[str, list[Address]] = {}
    for vip, service in late.items():
        outsider = OUTSIDERS[vip.version]
        usual, ruled = rtnetlink.route(outsider), rtnetlink.route(outsider, vip)
        # Without a usual route, the replies have none.
        if ruled is not None and (usual is None or _path(usual) != _path(ruled)):
            found.setdefault(service.name, []).append(vip)
    framed = " or ".join(datapath for datapath in Datapath if datapath.takes_frames)
    for name, vips in found.items():
        yield (
            f"this host routes packets from {', '.join(map(str, vips))} by rules of its own, which"
            f" the replies of service '{name}' don't match, as they are routed before they have"
            f" that source; set `datapath: {framed}`, which answers over the link that a client"
            " came in on, or see docs/operations.md (several uplinks)"
        )


def _path(route: Route) -> tuple[int, Address | None]:
    return route.link, route.gateway
