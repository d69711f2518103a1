"""The datapath raw on the host: workers have the packets as frames, the kernel drops its copies.
Clients on this host are served through the queues.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from featherlb.datapaths.host_side import Needs, Replies, Scope
from featherlb.datapaths.rules import icmp
from featherlb.datapaths.rules.endpoints import Group, Parts, backend_entries
from featherlb.datapaths.rules.queueing import Queued
from featherlb.datapaths.rules.vip_addresses import foreign_vips
from featherlb.model import ALL_SOURCE_PORTS, NatMode, Protocol
from featherlb.system.ruleset import (
    ANY,
    Action,
    Chain,
    Goto,
    Jump,
    Match,
    Rule,
    Ruleset,
    Side,
    State,
    Table,
    hooked,
    join,
)

TRACKED = (State.ESTABLISHED, State.RELATED)
"""The states of packets that belong to a connection."""


def replies(nat: NatMode) -> frozenset[Replies]:
    """Those to this host are untracked in either mode: clients on it keep their address."""
    if nat is NatMode.FULL:
        return frozenset({Replies.UNTRACKED})
    return frozenset({Replies.UNTRACKED, Replies.DROPPED})


def queued(scope: Scope) -> Queued:
    parts = _parts(scope)
    backends = (parts.dnat_backends, _full_backends(scope))
    return Queued(parts=parts, replying=backends, local_only=True)


def needs(scope: Scope, queued: Sequence[Queued]) -> Needs:
    parts, facts = _parts(scope), scope.facts
    others = [one for one in queued if not one.local_only]
    copies = list(_copies(parts, others, scope))
    # A reply in `dnat` mode looks like one to a client that talks to the backend itself, through
    # this host as its router. If this host is a router, conntrack distinguishes them, as it has not
    # seen balanced connections. Elsewhere rules without conntrack are enough, and faster.
    router = scope.family in facts.routers or any(one.parts.forwards for one in others)
    if facts.conntrack and router:
        after_tracking = list(_reply_copies(parts, others, scope, TRACKED))
    else:
        copies += _reply_copies(parts, others, scope)
        after_tracking = []
    copy = Chain("COPY", scope.options.queue)
    rules: Ruleset = {
        "mangle": hooked(copy, "PREROUTING", after_tracking),
        "raw": hooked(copy, "PREROUTING", copies),
    }
    if scope.family in facts.bridge_filter:
        rules = _behind_bridges(rules, parts, others, scope, router=router)
    return Needs(sets=(*parts.sets(), *_full_backends(scope).sets()), rules=rules)


def _behind_bridges(
    rules: Ruleset, parts: Parts, others: Sequence[Queued], scope: Scope, *, router: bool
) -> Ruleset:
    """The same where frames that arrive through a bridge pass iptables (br_netfilter).

    Such a frame is in PREROUTING before the bridge's own packet sockets have it, and not a second
    time (net/bridge/br_netfilter_hooks.c: ip_sabotage_in). Connection tracking and NAT must not
    change it there, and the kernel's copy is dropped where it gets to next.
    """
    copy, port, frame, bridge = (
        Chain(role, scope.options.queue) for role in ("COPY", "PORT", "FRAME", "BRIDGE")
    )
    arriving = Rule(Match(bridge_port=True), Goto(port))
    first = [
        replace(rule, target=Goto(frame)) if rule.target is Action.DROP else rule
        for rule in _copies(parts, others, scope)
    ]
    states = TRACKED if scope.facts.conntrack and router else ()
    later = [
        Rule(Match(bridge_port=False), Action.RETURN),
        # A frame for another host.
        Rule(Match(bridged=True), Action.RETURN),
        *_copies(parts, others, scope),
        *_reply_copies(parts, others, scope, states),
        *(
            Rule(replace(match, destination=address), Action.DROP)
            for address in foreign_vips([parts], scope.options, scope.facts)
            for match in icmp.errors(scope.family)
        ),
    ]
    spared = {port: tuple(first), frame: (Rule(ANY, Action.UNTRACK), Rule(ANY, Action.ACCEPT))}
    raw, mangle = rules["raw"], rules["mangle"]
    return {
        "mangle": join(
            replace(
                mangle,
                chains={
                    one: (Rule(Match(bridge_port=True), Action.RETURN), *its)
                    for one, its in mangle.chains.items()
                },
            ),
            Table(
                {bridge: tuple(later)},
                tuple(Jump(hook, bridge, first=True) for hook in ("INPUT", "FORWARD")),
            ),
        ),
        "raw": replace(
            raw,
            chains={copy: (arriving, *raw.chains[copy]), **spared},
        ),
    }


def _parts(scope: Scope) -> Parts:
    return scope.parts("raw-")


def _full_backends(scope: Scope) -> Group:
    """The backends in `full` mode, which see the address of a client on this host."""
    services = [service for service in scope.services if service.nat is NatMode.FULL]
    return scope.group("raw-full", backend_entries(services, scope.family))


def _copies(parts: Parts, others: Sequence[Queued], scope: Scope) -> Iterator[Rule]:
    """Drops copies of packets to VIPs, and of replies to an SNAT port."""
    sets = scope.facts.sets
    for ports in ALL_SOURCE_PORTS:
        for match in parts.full_pairs.matches(Side.SOURCE, sets, peer_ports=ports):
            yield Rule(match, Action.DROP)
    if any(vip.wildcard for _, vip in parts.other_vips):
        # Another datapath's SNAT port can be the port of a wildcard VIP.
        for one in others:
            for match in one.given_replies(scope.facts):
                yield Rule(match, Action.RETURN)
    for match in parts.vip_matches(Side.DESTINATION, sets):
        yield Rule(match, Action.DROP)


def _reply_copies(
    parts: Parts, others: Sequence[Queued], scope: Scope, not_states: tuple[State, ...] = ()
) -> Iterator[Rule]:
    """Drops copies of replies in `dnat` mode."""
    for one in others:
        if any(parts.dnat_backends.overlaps(group) for group in one.replying):
            # Only the worker can tell which datapath they belong to; it drops copies of frames.
            for match in one.replies(scope.facts):
                yield Rule(match, Action.RETURN)
    remote = [
        replace(match, destination_local=False)
        for match in parts.dnat_backends.matches(Side.SOURCE, scope.facts.sets, syn=False)
    ]
    for match in remote:
        yield Rule(replace(match, not_states=not_states), Action.DROP)
    if not not_states:
        return
    # A client that opens its own connection from the port of a balanced one would answer these
    # with a RST: to conntrack they are replies to its SYN.
    for match in remote:
        if match.protocol is Protocol.TCP:
            stray = replace(match, syn=None, acknowledges=True, unassured=True)
            yield Rule(stray, Action.DROP)
