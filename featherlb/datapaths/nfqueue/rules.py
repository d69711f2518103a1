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

from collections.abc import Mapping
from dataclasses import dataclass

from featherlb.datapaths.raw.rules import copy_rules
from featherlb.datapaths.rules import icmp
from featherlb.datapaths.rules.endpoints import GIVEN_PORTS, NO_OPENING, Parts
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
from featherlb.system.iptables import Jump, Ruleset, Table, hooked, join

UNTRACK = "-j CT --notrack"
"""Before the queue: the verdict ends the way through the table."""


@dataclass(frozen=True, slots=True)
class _Replies:
    """Matches for packets from backends, but for their own connections: those start with a SYN, and
    would pass the filter as replies."""

    kept: list[str]
    """To clients whose address the backend sees."""
    replaced: list[str]
    """To one of this host's addresses, and a port that was given to a flow."""
    wired: list[str]
    """Of the datapath raw, to clients on this host: they keep their address in both modes."""

    @classmethod
    def of(cls, queued: Parts, wire: Parts, use_set: bool) -> "_Replies":
        return cls(
            queued.kept.matches("src", use_set, tcp=NO_OPENING),
            queued.replaced.matches("src", use_set, ports=f" --dport {GIVEN_PORTS}"),
            [
                match
                for group in (wire.kept, wire.full_backends)
                for match in group.matches("src", use_set, tcp=NO_OPENING)
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


def _chain(role: str, options: Options) -> str:
    return f"FEATHERLB-{role}-{options.queue}"


def _serves(queued: Parts) -> bool:
    return bool(queued.vips.entries or queued.other_vips)


def _raw(
    queued: Parts,
    wire: Parts,
    replies: _Replies,
    copies: list[str],
    options: Options,
    facts: Facts,
) -> Table:
    forward, reply, error = (_chain(role, options) for role in ("FORWARD", "REPLY", "ERROR"))
    steering = _chain("RAW", options)
    errors = icmp.errors(queued.family)
    foreign = foreign_vips((queued, wire), options, facts)
    vips = (*queued.vip_matches("dst", facts.sets), *wire.vip_matches("dst", facts.sets))
    chains = {
        # The narrowest match first: a port given in `full` mode can equal a wildcard VIP's.
        steering: (
            *returns(facts),
            *(f"{match} -g {reply}" for match in replies.replaced),
            *(f"{match} -g {forward}" for match in vips),
            *(f"{match} {UNTRACK}" for match in replies.kept),
            *(f"{match} -m addrtype --dst-type LOCAL {UNTRACK}" for match in replies.wired),
            *(f"{match} -g {error}" for match in errors if _serves(queued)),
            *queue_echo_requests(queued.family, foreign, options),
            # No socket of this host's is to get them, so it would forward them.
            *(
                f"{match} -d {address} -j DROP"
                for address in foreign
                if address in wire.addresses()
                for match in errors
            ),
        ),
        forward: (UNTRACK, *queue_by_client("src,sport", options)),
    }
    if _serves(queued):
        chains[error] = tuple(queue_errors(queued, options))
    if replies.replaced:
        chains[reply] = (UNTRACK, *queue_by_port(queued.replaced.protocols, options))
    guarding = (*guards(queued, queued.full), *reassembly(queued, facts))
    return join(
        Table(chains, tuple(Jump(hook, f"-j {steering}") for hook in ("PREROUTING", "OUTPUT"))),
        hooked(_chain("COPY", options), "PREROUTING", copies),
        hooked(_chain("GUARD", options), "PREROUTING", guarding),
        hooked(_chain("REDIRECT", options), "OUTPUT", redirects(queued, facts)),
    )


def _mangle(
    family: int, replies: _Replies, copies: list[str], options: Options, facts: Facts
) -> Table:
    dropping = hooked(_chain("COPY", options), "PREROUTING", copies)
    if not (replies.kept or replies.wired):
        return dropping
    steering, reply, error = (_chain(role, options) for role in ("MANGLE", "REPLY", "ERROR"))
    chains = {
        steering: (
            *returns(facts, late=True),
            *(f"{match} -g {reply}" for match in (*replies.kept, *replies.wired)),
            *(f"{match} -g {error}" for match in icmp.errors(family)),
        ),
        reply: tuple(queue_by_client("dst,dport", options)),
        # Here they quote what a client sent, as its backend has got it.
        error: tuple(queue_by_client("src,sport", options, bypass=True)),
    }
    hooks = ("POSTROUTING", "INPUT") if replies.kept else ("INPUT",)
    return join(Table(chains, tuple(Jump(hook, f"-j {steering}") for hook in hooks)), dropping)


def _filter(queued: Parts, wire: Parts, replies: _Replies, options: Options, facts: Facts) -> Table:
    accepted = [
        *queued.kept.matches("dst", facts.sets),
        *replies.kept,
        *queued.replaced.matches("dst", facts.sets, ports=f" --sport {GIVEN_PORTS}"),
        *queued.vip_matches("src", facts.sets),
        *wire.kept.matches("dst", facts.sets),
        *wire.full_backends.matches("dst", facts.sets),
        *replies.wired,
        *wire.vip_matches("src", facts.sets),
    ]
    error, balanced = _chain("ERROR", options), _chain("FILTER", options)
    chains: Mapping[str, tuple[str, ...]] = {
        error: tuple(f"{match} -j ACCEPT" for match in icmp.errors(queued.family)),
        balanced: tuple(f"{match} -j ACCEPT" for match in accepted),
    }
    protocol = icmp.ERRORS[queued.family][0].split()[0]
    # The last one is put in front: every packet of a flow meets it, and need not go on.
    conditions = {error: (f"-p {protocol} ", "INVALID,UNTRACKED"), balanced: ("", "UNTRACKED")}
    # Of the datapath raw, only what clients on this host send and get meets the filter.
    hooks = ("INPUT", "FORWARD", "OUTPUT") if _serves(queued) else ("INPUT", "OUTPUT")
    return Table(
        chains,
        tuple(
            Jump(
                hook,
                which
                + (f"-m conntrack --ctstate {states} " if facts.conntrack else "")
                + f"-j {name}",
                first=True,
            )
            for name, (which, states) in conditions.items()
            for hook in hooks
        ),
    )
