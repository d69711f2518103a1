"""Rules that keep packets out of connection tracking and put them into the workers' queues.

- raw PREROUTING and OUTPUT take packets to a VIP and, in `full` mode, the replies to the addresses
  and ports that were given to flows.
- Replies in `dnat` mode keep their source until the routing decision is made (the kernel drops a
  packet from outside whose source is an address of this host: a martian). Rules untrack them in
  raw, and queue them in mangle POSTROUTING and INPUT.
- ICMP errors are queued at each of these hooks, whichever host they are for: only the quoted packet
  tells whether they are about a flow. Those of other connections continue unchanged, so they stay
  in connection tracking.
- filter accepts what these rules have untracked, and ICMP errors about connections that the kernel
  doesn't track.

Every worker has a queue. Which packets a datapath wants there, it says with a `Queued`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from featherlb.datapaths.rules import icmp
from featherlb.datapaths.rules.endpoints import Group, Parts
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.datapaths.rules.guards import guard, reassembly
from featherlb.datapaths.rules.steering import (
    queue_by_client,
    queue_by_port,
    queue_echo_requests,
    queue_errors,
    returns,
)
from featherlb.datapaths.rules.vip_addresses import foreign_vips
from featherlb.model import ALL_SOURCE_PORTS, Address
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
    join,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """The packets of one datapath, in one address family, that go to the queues untracked."""

    parts: Parts
    """The VIPs: packets to them are queued."""
    replying: tuple[Group, ...] = ()
    """Backends whose replies are matched by the backend alone: clients keep their address."""
    given: tuple[Group, ...] = ()
    """Backends whose replies are matched by SNAT address and port."""
    local_only: bool = False
    """Only packets of clients on this host are queued; others don't pass through the kernel."""

    def forward(self, facts: Facts) -> list[Match]:
        """Packets to a VIP."""
        return self.parts.vip_matches(Side.DESTINATION, facts.sets)

    def replies(self, facts: Facts) -> list[Match]:
        """Packets from backends, except SYNs, which open their own connections and must not pass
        the filter as replies."""
        return [
            match
            for group in self.replying
            for match in group.matches(Side.SOURCE, facts.sets, syn=False)
        ]

    def given_replies(self, facts: Facts) -> list[Match]:
        """Packets from backends to an SNAT address and port."""
        return [
            match
            for group in self.given
            for ports in ALL_SOURCE_PORTS
            for match in group.matches(Side.SOURCE, facts.sets, peer_ports=ports)
        ]

    def accepted(self, facts: Facts) -> Iterator[Match]:
        """All of these as they pass the filter: to backends, from backends, from VIPs."""
        for group in self.replying:
            yield from group.matches(Side.DESTINATION, facts.sets)
        yield from self.replies(facts)
        for group in self.given:
            for ports in ALL_SOURCE_PORTS:
                yield from group.matches(Side.DESTINATION, facts.sets, peer_ports=ports)
        yield from self.parts.vip_matches(Side.SOURCE, facts.sets)


def queue_rules(queued: Sequence[Queued], options: Options, facts: Facts) -> Ruleset:
    """The rules for what all datapaths queue in one address family; none if they queue nothing."""
    if not queued:
        return {}
    # Packets are steered last, when everything else is in place.
    return {
        "filter": _filter(queued, options, facts),
        "mangle": _mangle(queued, options, facts),
        "raw": _raw(queued, options, facts),
    }


def _family(queued: Sequence[Queued]) -> int:
    return queued[0].parts.family


def _chain(role: str, options: Options) -> Chain:
    return Chain(role, options.queue)


def _raw(queued: Sequence[Queued], options: Options, facts: Facts) -> Table:
    steering, forward, reply, error = (
        _chain(role, options) for role in ("RAW", "FORWARD", "REPLY", "ERROR")
    )
    family = _family(queued)
    errors = icmp.errors(family)
    whole = [one for one in queued if not one.local_only]
    given = [match for one in queued for match in one.given_replies(facts)]
    # Before the queue: its verdict ends the traversal of the table.
    untrack = Rule(ANY, Action.UNTRACK)
    # A frame from a bridge that passes iptables has no copy yet.
    bridge_port = False if family in facts.bridge_filter else None
    chains = {
        # The narrowest match first: an SNAT port can be the port of a wildcard VIP.
        steering: (
            *returns(facts),
            *(Rule(match, Goto(reply)) for match in given),
            *(Rule(match, Goto(forward)) for one in queued for match in one.forward(facts)),
            *(
                Rule(replace(match, destination_local=one.local_only or None), Action.UNTRACK)
                for one in queued
                for match in one.replies(facts)
            ),
            *(Rule(match, Goto(error)) for match in errors if whole),
            *queue_echo_requests(family, _foreign(queued, options, facts), options),
            # They are for no socket of this host, which would forward them.
            *(
                Rule(replace(match, destination=address, bridge_port=bridge_port), Action.DROP)
                for address in _foreign([one for one in queued if one.local_only], options, facts)
                for match in errors
            ),
        ),
        forward: (untrack, *queue_by_client(family, Side.SOURCE, options)),
    }
    if whole:
        chains[error] = tuple(
            queue_errors(
                family,
                options,
                given=any(group for one in whole for group in one.given),
                kept=any(group for one in whole for group in one.replying),
            )
        )
    if given:
        protocols = {
            protocol for one in queued for group in one.given for protocol in group.protocols
        }
        chains[reply] = (untrack, *queue_by_port(sorted(protocols), options))
    return join(
        Table(chains, tuple(Jump(hook, steering) for hook in ("PREROUTING", "OUTPUT"))),
        guard(
            [one.parts for one in whole],
            _chain("GUARD", options),
            _chain("ORIGIN", options),
            facts,
            reassembly(family, facts),
        ),
    )


def _mangle(queued: Sequence[Queued], options: Options, facts: Facts) -> Table:
    replies = [match for one in queued for match in one.replies(facts)]
    if not replies:
        return Table()
    steering, reply, error = (_chain(role, options) for role in ("MANGLE", "REPLY", "ERROR"))
    family = _family(queued)
    chains = {
        steering: (
            *returns(facts, late=True),
            *(Rule(match, Goto(reply)) for match in replies),
            *(Rule(match, Goto(error)) for match in icmp.errors(family)),
        ),
        reply: tuple(queue_by_client(family, Side.DESTINATION, options)),
        # Here they quote a client's packet as its backend received it.
        error: tuple(queue_by_client(family, Side.SOURCE, options, bypass=True)),
    }
    leaving = any(not one.local_only and one.replies(facts) for one in queued)
    hooks = ("POSTROUTING", "INPUT") if leaving else ("INPUT",)
    return Table(chains, tuple(Jump(hook, steering) for hook in hooks))


def _filter(queued: Sequence[Queued], options: Options, facts: Facts) -> Table:
    error, balanced = _chain("ERROR", options), _chain("FILTER", options)
    family = _family(queued)
    chains = {
        error: tuple(Rule(match, Action.ACCEPT) for match in icmp.errors(family)),
        balanced: tuple(
            Rule(match, Action.ACCEPT) for one in queued for match in one.accepted(facts)
        ),
    }
    errors = Match(protocol=icmp.PROTOCOLS[family])
    conditions = {error: errors, balanced: ANY}
    if facts.conntrack:
        conditions = {
            error: replace(errors, states=(State.INVALID, State.UNTRACKED)),
            balanced: Match(states=(State.UNTRACKED,)),
        }
    local_only = all(one.local_only for one in queued)
    hooks = ("INPUT", "OUTPUT") if local_only else ("INPUT", "FORWARD", "OUTPUT")
    return Table(
        chains,
        # The last one is inserted first: it accepts every packet of a flow.
        tuple(
            Jump(hook, chain, match, first=True)
            for chain, match in conditions.items()
            for hook in hooks
        ),
    )


def _foreign(queued: Sequence[Queued], options: Options, facts: Facts) -> list[Address]:
    """VIPs that are not addresses of this host."""
    return foreign_vips([one.parts for one in queued], options, facts)
