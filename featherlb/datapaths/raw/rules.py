"""The datapath raw on the host: workers have the packets as frames, the kernel drops its copies.
Clients on this host are served through the queues.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from featherlb.datapaths.host_side import Needs, Replies, Scope
from featherlb.datapaths.rules.endpoints import Group, Parts, backend_entries
from featherlb.datapaths.rules.queueing import Queued
from featherlb.model import ALL_SOURCE_PORTS, NatMode
from featherlb.system.ruleset import Action, Chain, Rule, Side, State, hooked


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
        tracked = (State.ESTABLISHED, State.RELATED)
        after_tracking = list(_reply_copies(parts, others, scope, tracked))
    else:
        copies += _reply_copies(parts, others, scope)
        after_tracking = []
    copy = Chain("COPY", scope.options.queue)
    return Needs(
        sets=(*parts.sets(), *_full_backends(scope).sets()),
        rules={
            "mangle": hooked(copy, "PREROUTING", after_tracking),
            "raw": hooked(copy, "PREROUTING", copies),
        },
    )


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
        if any({*parts.dnat_backends.entries} & {*group.entries} for group in one.replying):
            # Only the worker can tell which datapath they belong to; it drops copies of frames.
            for match in one.replies(scope.facts):
                yield Rule(match, Action.RETURN)
    for match in parts.dnat_backends.matches(Side.SOURCE, scope.facts.sets, syn=False):
        remote = replace(match, destination_local=False, not_states=not_states)
        yield Rule(remote, Action.DROP)
