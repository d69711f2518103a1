"""Why a host cannot run the datapath raw: no frames reach a client or a backend."""

from collections.abc import Iterator, Sequence

from featherlb.datapaths.raw.interest import ROOM, Interest
from featherlb.datapaths.rules.extensions import queue_obstacles
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.datapaths.rules.vip_addresses import subnet_interface
from featherlb.model import DEFAULT_DATAPATH, LOOPBACK, SOURCE_PORTS, NatMode, Service
from featherlb.system import iptables, packet_socket, rtnetlink, sysctl
from featherlb.system.ruleset import Match, Rule


def obstacles(services: Sequence[Service]) -> Iterator[str]:
    yield from queue_obstacles(services)
    if not packet_socket.supported():
        yield "this kernel has no packet sockets with PACKET_VNET_HDR, or CAP_NET_RAW is missing"
    links = rtnetlink.links()
    filtering = [family for family in (4, 6) if sysctl.read(sysctl.BRIDGE_FILTERS[family]) == "1"]
    port = Rule(Match(bridge_port=True))
    if any(link.bridge for link in links.values()):
        for family in filtering:
            if iptables.missing(family, [port]):
                setting = f"{sysctl.dotted(sysctl.BRIDGE_FILTERS[family])}"
                yield (
                    "frames from this host's bridges pass iptables first, and this kernel can't"
                    f" tell them from others (xt_physdev): run `sysctl -w {setting}=0`"
                )
    with_frames = {link.name for link in links.values() if link.carries_frames}
    if not with_frames:
        yield "no Ethernet interface of this host is up"
    low, _ = map(int, (sysctl.read("net/ipv4/ip_local_port_range") or "32768 60999").split())
    addresses = rtnetlink.addresses()
    for service in services:
        for backend in service.backends:
            route = rtnetlink.route(backend.endpoint.address)
            link = links.get(route.link) if route is not None else None
            if backend.local:
                yield f"backend {backend} is on this host, which frames do not reach"
            elif link is not None and not link.carries_frames:
                yield (
                    f"the route to backend {backend} leads through {link.name}, which has no"
                    " Ethernet frames"
                )
        for vip in service.vips:
            interface = subnet_interface(vip.address, addresses)
            if vip.address.is_loopback:
                yield f"VIP {vip} is a loopback address, which only this host can reach"
            elif interface not in (None, LOOPBACK, *with_frames):
                yield f"VIP {vip} is in the subnet of {interface}, which has no Ethernet frames"
        if service.nat is NatMode.FULL and low in SOURCE_PORTS:
            yield (
                f"this host's own connections use ports from {low} up, which `nat: full` gives"
                ' to flows: run `sysctl -w net.ipv4.ip_local_port_range="32768 60999"`'
            )


def limits(services: Sequence[Service], options: Options, facts: Facts) -> Iterator[str]:
    addresses = frozenset(one.address.ip for one in facts.addresses)
    if not Interest(options.shard(0)).of(services, addresses).fits:
        yield (
            "the services with the datapath raw have more VIPs than fit into a socket filter"
            f" ({ROOM} addresses and ports); set the datapath of some to {DEFAULT_DATAPATH}"
        )
