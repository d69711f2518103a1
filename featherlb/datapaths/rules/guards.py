"""Kernel settings for forwarding, and rules against their side effects."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network, ip_address

from featherlb.datapaths.rules import icmp
from featherlb.datapaths.rules.endpoints import Parts
from featherlb.datapaths.rules.facts import Facts
from featherlb.model import LOOPBACK, Protocol
from featherlb.system import sysctl
from featherlb.system.ruleset import Action, Match, Rule, Side

LOOPBACK_NETWORK = IPv4Network("127.0.0.0/8")
NO_SOURCE = {4: ip_address("255.255.255.255"), 6: ip_address("ff02::1")}
"""By address family, an address that is never a source."""


def guards(parts: Parts, facts: Facts) -> Iterator[Rule]:
    """Drops what the kernel dropped before `settings` made it accept featherlb's packets, and what
    it would only drop after a worker has opened a connection for it."""
    outside = Match(not_in_interface=LOOPBACK)
    if parts.family == 4 and parts.full:
        yield Rule(replace(outside, source_local=True), Action.DROP)
    else:
        for match in parts.vip_matches(Side.DESTINATION, facts.sets, syn=True):
            if match.protocol is Protocol.TCP:
                forged = replace(match, not_in_interface=LOOPBACK, source_local=True)
                yield Rule(forged, Action.DROP)
    if parts.family == 4 and parts.loopback:
        yield Rule(replace(outside, source=LOOPBACK_NETWORK), Action.DROP)
        yield Rule(replace(outside, destination=LOOPBACK_NETWORK), Action.DROP)


def redirects(parts: Parts, facts: Facts) -> tuple[Rule, ...]:
    """Drops ICMP redirects, which make a backend bypass the balancer in a one-armed network."""
    return tuple(
        Rule(replace(icmp.redirects(parts.family), out_interface=interface), Action.DROP)
        for interface in facts.backend_interfaces
        if parts.forwards
    )


def reassembly(family: int, facts: Facts) -> Iterator[Rule]:
    """Makes the kernel reassemble fragments before they are queued.

    A rule that asks for the connection tracking state does so by its presence. Where the kernel has
    none, one that asks for the socket does, though no packet ever meets it
    (net/netfilter/xt_socket.c: socket_mt_enable_defrag).
    """
    if not facts.conntrack and facts.socket:
        yield Rule(Match(source=NO_SOURCE[family], socket=True), Action.RETURN)


def settings(parts: Parts, facts: Facts) -> Iterator[sysctl.Setting]:
    """Settings that let the kernel forward balanced flows and accept their addresses."""
    if parts.forwards and parts.family == 6:
        # A router ignores advertisements, and forgets the routes it has from them, unless told
        # otherwise before (net/ipv6/route.c: rt6_purge_dflt_routers).
        for interface in facts.advertised:
            yield f"net/ipv6/conf/{interface}/accept_ra", "2"
        yield "net/ipv6/conf/all/forwarding", "1"
    elif parts.forwards:
        yield "net/ipv4/ip_forward", "1"
    if parts.family == 4 and parts.full:
        # The source is one of this host's addresses before the routing decision.
        yield "net/ipv4/conf/all/accept_local", "1"
    if parts.family == 4 and parts.loopback:
        yield "net/ipv4/conf/all/route_localnet", "1"
