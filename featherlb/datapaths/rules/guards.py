"""Kernel settings for forwarding, and rules against their side effects."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, ip_address

from featherlb.datapaths.rules import icmp
from featherlb.datapaths.rules.endpoints import Parts
from featherlb.datapaths.rules.facts import Facts
from featherlb.model import LOOPBACK, Protocol
from featherlb.system import sysctl
from featherlb.system.ruleset import (
    Action,
    Chain,
    Goto,
    Match,
    ReversePath,
    Rule,
    Side,
    Table,
    hooked,
    join,
)

LOOPBACK_NETWORK = IPv4Network("127.0.0.0/8")
NO_SOURCE = {4: ip_address("255.255.255.255"), 6: ip_address("ff02::1")}
"""By address family, an address that is never a source."""


def guard(
    parts: Sequence[Parts], guard: Chain, origin: Chain, facts: Facts, more: Iterable[Rule] = ()
) -> Table:
    """Drops what the kernel dropped before `settings` made it accept featherlb's packets, and what
    it would only drop, or whose answer it would, after a worker has opened a connection for it: its
    backend would seem to be dead. `more` rules follow.

    `guard` and `origin` are the chains; only SYNs to a VIP get to the second one.
    """
    opening = [match for one in parts for match in _opening(one, facts)]
    rules = (
        *(rule for one in parts for rule in _spoofed(one)),
        *(Rule(match, Goto(origin)) for match in opening),
        *more,
    )
    table = hooked(guard, "PREROUTING", rules)
    if not opening:
        return table
    forged = _forged(parts[0].family, facts)
    return join(table, Table({origin: tuple(Rule(match, Action.DROP) for match in forged)}))


def guarding(table: Table) -> Iterator[tuple[Chain, int]]:
    """The rules in the table raw that drop such packets: their chains, and places there."""
    for chain, rules in table.chains.items():
        if chain.role in ("GUARD", "CTGUARD", "ORIGIN", "CTORIGIN"):
            for position, rule in enumerate(rules):
                if rule.target is Action.DROP:
                    yield chain, position


def _spoofed(parts: Parts) -> Iterator[Rule]:
    outside = Match(not_in_interface=LOOPBACK)
    if parts.family == 4 and parts.full:
        yield Rule(replace(outside, source_local=True), Action.DROP)
    if parts.family == 4 and parts.loopback:
        yield Rule(replace(outside, source=LOOPBACK_NETWORK), Action.DROP)
        yield Rule(replace(outside, destination=LOOPBACK_NETWORK), Action.DROP)


def _opening(parts: Parts, facts: Facts) -> Iterator[Match]:
    """SYNs from other hosts to a VIP."""
    for match in parts.vip_matches(Side.DESTINATION, facts.sets, syn=True):
        if match.protocol is Protocol.TCP:
            yield replace(match, not_in_interface=LOOPBACK)


def _forged(family: int, facts: Facts) -> Iterator[Match]:
    """Such packets from nobody whom this host could answer."""
    if family not in facts.reverse_path:
        yield Match(source_local=True)
        return
    if family == 4:
        for interface in facts.strict:
            yield Match(in_interface=interface, reverse_path=ReversePath.ELSEWHERE)
    yield Match(reverse_path=ReversePath.NOWHERE)


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
