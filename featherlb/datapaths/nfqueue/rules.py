"""Rules for the datapath nfqueue, and for what clients on this host send and get with raw.

- raw PREROUTING and OUTPUT take packets to a VIP and, in `full` mode, the replies to the
  addresses that were given to them, out of connection tracking and into the queue.
- Replies in `dnat` mode keep their source until the routing decision is made (a packet from
  outside that carries an address of this host would be dropped there as a martian). They are
  taken out of connection tracking in raw, and queued in mangle POSTROUTING and INPUT.
- ICMP errors are queued at each of these hooks, whomever they are for: only the quoted packet tells
  whether they are about a flow. Those of other connections go on as they came, so they stay in
  connection tracking.
- filter lets pass what featherlb itself took out of connection tracking, and ICMP errors about
  connections that the kernel doesn't track.
"""

from dataclasses import dataclass, replace

from featherlb.datapaths.raw.rules import copy_rules
from featherlb.datapaths.rules import icmp
from featherlb.datapaths.rules.endpoints import Parts
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.datapaths.rules.guards import guards, reassembly, redirects
from featherlb.datapaths.rules.steering import (
    queue_by_client,
    queue_by_port,
    queue_echo_requests,
    queue_errors,
    returns,
)
from featherlb.datapaths.rules.vip_addresses import foreign_vips
from featherlb.model import SOURCE_PORTS
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


@dataclass(frozen=True, slots=True)
class _Replies:
    """Matches for packets from backends, but for their own connections: those start with a SYN, and
    would pass the filter as replies."""

    kept: list[Match]
    """To clients whose address the backend sees."""
    replaced: list[Match]
    """To one of this host's addresses, and a port that was given to a flow."""
    wired: list[Match]
    """Of the datapath raw, to clients on this host: they keep their address in both modes."""

    @classmethod
    def of(cls, queued: Parts, wire: Parts, use_set: bool) -> "_Replies":
        return cls(
            queued.kept.matches(Side.SOURCE, use_set, syn=False),
            queued.replaced.matches(Side.SOURCE, use_set, peer_ports=SOURCE_PORTS),
            [
                match
                for group in (wire.kept, wire.full_backends)
                for match in group.matches(Side.SOURCE, use_set, syn=False)
            ],
        )


def queue_rules(queued: Parts, wire: Parts, options: Options, facts: Facts) -> Ruleset:
    """The rules for services of one address family with the datapath nfqueue, and for those with
    the datapath raw (`wire`)."""
    replies = _Replies.of(queued, wire, facts.sets)
    copies = copy_rules(queued, wire, facts)
    # Packets are steered last, when everything else stands.
    return {
        "filter": _filter(queued, wire, replies, options, facts),
        "mangle": _mangle(queued.family, replies, copies["mangle"], options, facts),
        "raw": _raw(queued, wire, replies, copies["raw"], options, facts),
    }


def _chain(role: str, options: Options) -> Chain:
    return Chain(role, options.queue)


def _serves(queued: Parts) -> bool:
    return bool(queued.vips.entries or queued.other_vips)


def _raw(
    queued: Parts,
    wire: Parts,
    replies: _Replies,
    copies: list[Rule],
    options: Options,
    facts: Facts,
) -> Table:
    forward, reply, error = (_chain(role, options) for role in ("FORWARD", "REPLY", "ERROR"))
    steering = _chain("RAW", options)
    errors = icmp.errors(queued.family)
    foreign = foreign_vips((queued, wire), options, facts)
    vips = (
        *queued.vip_matches(Side.DESTINATION, facts.sets),
        *wire.vip_matches(Side.DESTINATION, facts.sets),
    )
    # Before the queue: the verdict ends the way through the table.
    untrack = Rule(ANY, Action.UNTRACK)
    chains = {
        # The narrowest match first: a port given in `full` mode can equal a wildcard VIP's.
        steering: (
            *returns(facts),
            *(Rule(match, Goto(reply)) for match in replies.replaced),
            *(Rule(match, Goto(forward)) for match in vips),
            *(Rule(match, Action.UNTRACK) for match in replies.kept),
            *(
                Rule(replace(match, destination_local=True), Action.UNTRACK)
                for match in replies.wired
            ),
            *(Rule(match, Goto(error)) for match in errors if _serves(queued)),
            *queue_echo_requests(queued.family, foreign, options),
            # No socket of this host's is to get them, so it would forward them.
            *(
                Rule(replace(match, destination=address), Action.DROP)
                for address in foreign
                if address in wire.addresses()
                for match in errors
            ),
        ),
        forward: (untrack, *queue_by_client(Side.SOURCE, options)),
    }
    if _serves(queued):
        chains[error] = tuple(queue_errors(queued, options))
    if replies.replaced:
        chains[reply] = (untrack, *queue_by_port(queued.replaced.protocols, options))
    guarding = (*guards(queued, queued.full), *reassembly(queued, facts))
    return join(
        Table(chains, tuple(Jump(hook, steering) for hook in ("PREROUTING", "OUTPUT"))),
        hooked(_chain("COPY", options), "PREROUTING", copies),
        hooked(_chain("GUARD", options), "PREROUTING", guarding),
        hooked(_chain("REDIRECT", options), "OUTPUT", redirects(queued, facts)),
    )


def _mangle(
    family: int, replies: _Replies, copies: list[Rule], options: Options, facts: Facts
) -> Table:
    dropping = hooked(_chain("COPY", options), "PREROUTING", copies)
    if not (replies.kept or replies.wired):
        return dropping
    steering, reply, error = (_chain(role, options) for role in ("MANGLE", "REPLY", "ERROR"))
    chains = {
        steering: (
            *returns(facts, late=True),
            *(Rule(match, Goto(reply)) for match in (*replies.kept, *replies.wired)),
            *(Rule(match, Goto(error)) for match in icmp.errors(family)),
        ),
        reply: tuple(queue_by_client(Side.DESTINATION, options)),
        # Here they quote what a client sent, as its backend has got it.
        error: tuple(queue_by_client(Side.SOURCE, options, bypass=True)),
    }
    hooks = ("POSTROUTING", "INPUT") if replies.kept else ("INPUT",)
    return join(Table(chains, tuple(Jump(hook, steering) for hook in hooks)), dropping)


def _filter(queued: Parts, wire: Parts, replies: _Replies, options: Options, facts: Facts) -> Table:
    accepted = [
        *queued.kept.matches(Side.DESTINATION, facts.sets),
        *replies.kept,
        *queued.replaced.matches(Side.DESTINATION, facts.sets, peer_ports=SOURCE_PORTS),
        *queued.vip_matches(Side.SOURCE, facts.sets),
        *wire.kept.matches(Side.DESTINATION, facts.sets),
        *wire.full_backends.matches(Side.DESTINATION, facts.sets),
        *replies.wired,
        *wire.vip_matches(Side.SOURCE, facts.sets),
    ]
    error, balanced = _chain("ERROR", options), _chain("FILTER", options)
    chains = {
        error: tuple(Rule(match, Action.ACCEPT) for match in icmp.errors(queued.family)),
        balanced: tuple(Rule(match, Action.ACCEPT) for match in accepted),
    }
    errors = Match(protocol=icmp.PROTOCOLS[queued.family])
    conditions = {error: errors, balanced: ANY}
    if facts.conntrack:
        conditions = {
            error: replace(errors, states=(State.INVALID, State.UNTRACKED)),
            balanced: Match(states=(State.UNTRACKED,)),
        }
    # Of the datapath raw, only what clients on this host send and get meets the filter.
    hooks = ("INPUT", "FORWARD", "OUTPUT") if _serves(queued) else ("INPUT", "OUTPUT")
    return Table(
        chains,
        # The last one is put in front: every packet of a flow meets it, and need not go on.
        tuple(
            Jump(hook, chain, match, first=True)
            for chain, match in conditions.items()
            for hook in hooks
        ),
    )
