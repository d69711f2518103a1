"""The datapath offload on the host: connection tracking translates, and the kernel forwards.

- raw queues SYNs to a VIP before connection tracking has met them. When the verdict comes,
  conntrack has an entry for the connection and translates the SYN as its first packet. SYNs of
  connections that open with a cookie leave a worker translated, and connection tracking sees
  neither them nor the answers: those are out of state.
- filter accepts what connection tracking translates to and from the backends, and those SYNs.
  Behind that, where no packet of an established connection gets to, it queues what nobody
  translates: datagrams to a VIP that open a flow, and out-of-state packets to a VIP or from a
  backend, of connections that conntrack has forgotten or that were deleted there. Where that is too
  late, mangle does (`_is_late`).
- Refusals are queued, too: a RST from a backend, or an ICMP unreachable, while the connection is
  opening. In `dnat` mode filter does this, where only a few packets of an established connection
  meet one more rule. In `full` mode mangle must, as nat replaces the address by which a worker
  knows the connection.
- nat has a chain, as the kernel translates nothing without one. With `fail_open`, it sends what
  bypassed the queue to a backend.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from featherlb.datapaths.host_side import Needs, Replies, Scope
from featherlb.datapaths.rules import icmp
from featherlb.datapaths.rules.endpoints import Group, Parts, backend_entries, ports_of
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.datapaths.rules.gate import gate
from featherlb.datapaths.rules.guards import guard, redirects, settings
from featherlb.datapaths.rules.queueing import Queued
from featherlb.datapaths.rules.steering import (
    UNTRACKED_MARK,
    queue_by_client,
    queue_by_port,
    queue_echo_requests,
    queue_errors,
    returns,
)
from featherlb.datapaths.rules.vip_addresses import foreign_vips
from featherlb.model import ALL_SOURCE_PORTS, NatMode, Protocol, Service
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
    TranslateTo,
    hooked,
    join,
)


def replies(nat: NatMode) -> frozenset[Replies]:
    return frozenset({Replies.TRACKED})


def queued(scope: Scope) -> None:
    """Nothing untracked. The packets that it does queue have rules of their own (`needs`)."""


def needs(scope: Scope, queued: Sequence[Queued]) -> Needs:
    # The kernel replaces the source after the routing decision, so `full` mode needs no settings.
    parts = replace(scope.parts("ct-"), full=False)
    backends = scope.group("ct-ends", backend_entries(scope.services, scope.family))
    clients = gate(scope.services, scope.family, "CTGATE", scope.options, scope.facts)
    rules = _rules(parts, backends, scope)
    return Needs(
        sets=(
            *(
                wanted
                for group in (parts.vips, parts.full_pairs, backends)
                for wanted in group.sets()
            ),
            *clients.sets,
        ),
        refusing=clients.refusing,
        settings=(
            *settings(parts, scope.facts),
            # So that connection tracking counts packets and bytes.
            ("net/netfilter/nf_conntrack_acct", "1"),
        ),
        rules={**rules, "raw": join(rules["raw"], clients.table)},
    )


def _rules(parts: Parts, backends: Group, scope: Scope) -> Ruleset:
    options, facts = scope.options, scope.facts
    # A VIP of TCP and UDP has a match for each.
    opening = [
        match
        for match in parts.vip_matches(Side.DESTINATION, facts.sets, syn=True)
        if match.protocol is Protocol.TCP
    ]
    late = _is_late(parts, options, facts)
    untranslated = Table()
    if not scope.handoff:
        untranslated = _untranslated(parts, backends, opening, scope, late)
    passing = _filter(parts, backends, scope)
    return {
        # The last one is put in front.
        "filter": join(untranslated, passing) if late else passing,
        "nat": _nat(scope),
        "mangle": join(Table() if late else untranslated, _refused_in_full(parts, scope)),
        "raw": _raw(parts, opening, scope),
    }


def _chain(role: str, options: Options) -> Chain:
    return Chain(f"CT{role}", options.queue)


def _raw(parts: Parts, opening: list[Match], scope: Scope) -> Table:
    options, facts = scope.options, scope.facts
    echoes = queue_echo_requests(parts.family, foreign_vips([parts], options, facts), options)
    return join(
        Table() if scope.handoff else _opening(parts.family, opening, options, facts),
        hooked(_chain("REDIRECT", options), "OUTPUT", redirects(parts, facts)),
        hooked(_chain("ECHO", options), "PREROUTING", () if scope.handoff else echoes, first=False),
        guard([parts], _chain("GUARD", options), _chain("ORIGIN", options), facts),
    )


def _opening(family: int, opening: list[Match], options: Options, facts: Facts) -> Table:
    """Queues SYNs to a VIP, and takes those that are translated out of connection tracking."""
    if not opening:
        return Table()
    steering, queue, untrack = (_chain(role, options) for role in ("RAW", "OPEN", "UNTRACK"))
    return Table(
        {
            steering: (
                *returns(facts),
                Rule(Match(mark=UNTRACKED_MARK), Goto(untrack)),
                *(Rule(match, Goto(queue)) for match in opening),
            ),
            queue: tuple(queue_by_client(family, Side.SOURCE, options)),
            untrack: (Rule(ANY, Action.UNTRACK),),
        },
        tuple(
            Jump(hook, steering, Match(protocol=Protocol.TCP, syn=True))
            for hook in ("PREROUTING", "OUTPUT")
        ),
    )


def _is_late(parts: Parts, options: Options, facts: Facts) -> bool:
    """Whether packets that nobody translates are queued after the routing decision. Not if there
    may be no route to the VIP, nor if rules in nat would have picked a backend for them by then."""
    return not options.fail_open and not foreign_vips([parts], options, facts)


def _untranslated(
    parts: Parts, backends: Group, opening: list[Match], scope: Scope, late: bool
) -> Table:
    """Queues what conntrack takes for new, or for no part of a connection."""
    options, facts = scope.options, scope.facts
    queueing, forward, full, reply = (
        _chain(role, options) for role in ("UNKNOWN", "FORWARD", "FULL", "REPLY")
    )
    full_replies = [
        match
        for ports in ALL_SOURCE_PORTS
        for match in parts.full_pairs.matches(Side.SOURCE, facts.sets, peer_ports=ports, syn=False)
    ]
    replies = backends.matches(Side.SOURCE, facts.sets, syn=False)
    unknown = Match(states=(State.INVALID, State.NEW), not_states=(State.DNAT,))
    return Table(
        {
            queueing: (
                *returns(facts),
                *(returns(facts, late=True) if late else ()),
                *(
                    Rule(match, Goto(forward))
                    for match in parts.vip_matches(Side.DESTINATION, facts.sets, syn=False)
                ),
                *(Rule(match, Goto(full)) for match in full_replies),
                *(Rule(match, Goto(reply)) for match in replies if match.protocol is Protocol.TCP),
                # A SYN that was queued in raw has an entry by now, or is retransmitted.
                *(Rule(match, Action.DROP) for match in opening if not options.fail_open),
            ),
            forward: tuple(queue_by_client(parts.family, Side.SOURCE, options)),
            full: tuple(queue_by_port(parts.full_pairs.protocols, options, bypass=True)),
            reply: tuple(queue_by_client(parts.family, Side.DESTINATION, options, bypass=True)),
        },
        tuple(
            Jump(hook, queueing, unknown, first=late)
            for hook in (("INPUT", "FORWARD", "OUTPUT") if late else ("PREROUTING", "OUTPUT"))
        ),
    )


def _filter(parts: Parts, backends: Group, scope: Scope) -> Table:
    family, sets = parts.family, scope.facts.sets
    chain = _chain("FILTER", scope.options)
    resets, errors, chains = _refused(family, backends, scope)
    related = [replace(match, states=(State.RELATED,)) for match in icmp.errors(family)]
    return Table(
        {
            chain: (
                *_accept(backends.matches(Side.DESTINATION, sets)),
                *resets,
                *_accept(backends.matches(Side.SOURCE, sets)),
                *errors,
                *_accept(related),
            ),
            **chains,
        },
        tuple(
            Jump(hook, chain, Match(states=states), first=True)
            for hook, states in (
                ("INPUT", (State.DNAT,)),
                ("FORWARD", (State.DNAT,)),
                ("OUTPUT", (State.DNAT, State.UNTRACKED)),
            )
        ),
    )


def _accept(matches: Iterable[Match]) -> Iterator[Rule]:
    return (Rule(match, Action.ACCEPT) for match in matches)


def _refused(
    family: int, backends: Group, scope: Scope
) -> tuple[list[Rule], list[Rule], dict[Chain, tuple[Rule, ...]]]:
    """Queues what refuses a connection in `dnat` mode: rules for RSTs and for ICMP errors, and
    their chains."""
    if not _moves(scope, NatMode.DNAT):
        return [], [], {}
    options = scope.options
    skip = (*returns(scope.facts), *returns(scope.facts, late=True))
    reset, error, queue = (_chain(role, options) for role in ("RESET", "ERROR", "REFUSED"))
    sources = [
        match
        for match in backends.matches(Side.SOURCE, scope.facts.sets)
        if match.protocol is Protocol.TCP
    ]
    # HMARK looks at the client's packet that is quoted.
    chains = {error: (*skip, *queue_by_client(family, Side.SOURCE, options, bypass=True))}
    resets = []
    if sources:
        resets = [Rule(Match(protocol=Protocol.TCP, refuses=True, unassured=True), Goto(reset))]
        chains[reset] = (*skip, *(Rule(match, Goto(queue)) for match in sources))
        chains[queue] = tuple(queue_by_client(family, Side.DESTINATION, options, bypass=True))
    return resets, [Rule(replace(icmp.unreachable(family), unassured=True), Goto(error))], chains


def _refused_in_full(parts: Parts, scope: Scope) -> Table:
    """Queues what refuses a connection in `full` mode."""
    if not _moves(scope, NatMode.FULL):
        return Table()
    options, facts = scope.options, scope.facts
    refused, reset, error = (
        _chain(role, options) for role in ("FULLREFUSED", "FULLRESET", "FULLERROR")
    )
    sources = [
        match
        for ports in ALL_SOURCE_PORTS
        for match in parts.full_pairs.matches(Side.SOURCE, facts.sets, peer_ports=ports)
        if match.protocol is Protocol.TCP
    ]
    chains = {
        refused: (
            *returns(facts),
            *(Rule(replace(match, refuses=True), Goto(reset)) for match in sources),
            Rule(icmp.unreachable(parts.family), Goto(error)),
        ),
        error: tuple(queue_errors(parts.family, options, given=True, kept=False)),
    }
    if sources:
        chains[reset] = tuple(queue_by_port([Protocol.TCP], options, bypass=True))
    return Table(
        chains,
        tuple(
            Jump(hook, refused, Match(states=(State.DNAT,), unassured=True))
            for hook in ("PREROUTING", "OUTPUT")
        ),
    )


def _moves(scope: Scope, nat: NatMode) -> bool:
    """Whether workers want to know of refusals by backends in this NAT mode."""
    return not scope.handoff and any(
        service.redispatch.refused and service.nat is nat for service in scope.services
    )


def _nat(scope: Scope) -> Table:
    nat, source = _chain("NAT", scope.options), _chain("SOURCE", scope.options)
    chains: dict[Chain, tuple[Rule, ...]] = {nat: (), source: ()}
    if scope.options.fail_open:
        chains[nat] = tuple(_fallback(scope.services, scope.family))
        chains[source] = tuple(
            Rule(replace(match, states=(State.DNAT,)), Action.MASQUERADE)
            for match in _full_backends(scope.services, scope.family)
        )
    return Table(
        chains,
        (
            *(Jump(hook, nat) for hook in ("PREROUTING", "OUTPUT")),
            Jump("POSTROUTING", source),
        ),
    )


def _fallback(services: Sequence[Service], family: int) -> Iterator[Rule]:
    """In nat: a connection of each service to one of its backends, at random."""
    # The rest of a VIP's ports comes last.
    for service in sorted(services, key=lambda one: any(vip.all_ports for vip in one.vips)):
        backends = [
            backend.endpoint
            for backend in service.backends
            if backend.endpoint.address.version == family
        ]
        for match in Parts.of([service], family, "").vip_matches(Side.DESTINATION, use_set=False):
            for left, endpoint in zip(range(len(backends), 0, -1), backends, strict=True):
                chance = 1 / left if left > 1 else None
                yield Rule(
                    replace(match, probability=chance),
                    TranslateTo(endpoint, service.vips[0].first_port),
                )


def _full_backends(services: Sequence[Service], family: int) -> list[Match]:
    """Matches for packets to the backends that don't see their clients."""
    return sorted(
        {
            Match(
                protocol=service.protocol,
                destination=backend.endpoint.address,
                destination_ports=ports_of(endpoint),
            )
            for service in services
            for backend in service.backends
            for endpoint in service.endpoints_of(backend)
            if service.nat is NatMode.FULL and backend.endpoint.address.version == family
        },
        key=str,
    )
