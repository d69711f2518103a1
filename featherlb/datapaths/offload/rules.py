"""Rules and settings for services whose connections the kernel carries (datapath offload)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from featherlb.datapaths.rules import icmp
from featherlb.datapaths.rules.endpoints import Group, Parts
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.datapaths.rules.guards import guards, redirects, settings
from featherlb.datapaths.rules.steering import (
    queue_by_client,
    queue_by_port,
    queue_echo_requests,
    returns,
)
from featherlb.datapaths.rules.vip_addresses import foreign_vips
from featherlb.model import SOURCE_PORTS, NatMode, Protocol, Service
from featherlb.system import ipset, sysctl
from featherlb.system.ruleset import (
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


@dataclass(frozen=True, slots=True)
class Load:
    """What the kernel's connection tracking carries of one address family (datapath offload)."""

    parts: Parts
    backends: Group
    """All of them, whichever address they see."""

    @classmethod
    def of(cls, services: Sequence[Service], family: int, prefix: str) -> "Load":
        backends = {
            ipset.Entry(backend.endpoint, service.protocol)
            for service in services
            for backend in service.backends
            if backend.endpoint.address.version == family
        }
        return cls(
            Parts.of(services, family, prefix),
            Group(f"{prefix}ends{family}", family, tuple(sorted(backends, key=str))),
        )

    def sets(self) -> Iterator[ipset.Set]:
        for group in (self.parts.vips, self.parts.replaced, self.backends):
            yield from group.sets()


def offload_rules(
    load: Load, services: Sequence[Service], options: Options, facts: Facts, handoff: bool
) -> Ruleset:
    """Rules for services whose connections the kernel carries.

    - raw takes SYNs to a VIP to the queue, before connection tracking has met them. When the
      verdict comes, it knows the connection and translates the SYN as its first packet.
    - filter lets pass what connection tracking translates to and from the backends. Behind that,
      where no packet of an established connection gets to, it takes the strays, which connection
      tracking doesn't know and nobody translates: datagrams to a VIP that it takes for new ones,
      and of connections that it has forgotten, or that were taken away from it, whatever comes to
      a VIP or from a backend. Where that is too late, mangle takes them (`_strays_are_late`).
    - nat has a chain, for without one the kernel translates nothing. With `fail_open`, it sends to
      a backend what got past the queue.
    """
    # A VIP of TCP and UDP has a match for each.
    opened = [
        match
        for match in load.parts.vip_matches(Side.DESTINATION, facts.sets, syn=True)
        if match.protocol is Protocol.TCP
    ]
    late = _strays_are_late(load.parts, options, facts)
    strays = Table() if handoff else _strays(load, opened, options, facts, late)
    passing = _filter(load, options, facts)
    return {
        # The last one is put in front.
        "filter": join(strays, passing) if late else passing,
        "nat": _nat(services, load.parts.family, options),
        "mangle": Table() if late else strays,
        "raw": _raw(load.parts, [] if handoff else opened, options, facts, handoff),
    }


def _chain(role: str, options: Options) -> Chain:
    return Chain(f"CT{role}", options.queue)


def _raw(parts: Parts, opened: list[Match], options: Options, facts: Facts, handoff: bool) -> Table:
    opening = Table()
    if opened:
        steering, open_ = _chain("RAW", options), _chain("OPEN", options)
        opening = Table(
            {
                steering: (*returns(facts), *(Rule(match, Goto(open_)) for match in opened)),
                open_: tuple(queue_by_client(Side.SOURCE, options)),
            },
            tuple(
                Jump(hook, steering, Match(protocol=Protocol.TCP, syn=True))
                for hook in ("PREROUTING", "OUTPUT")
            ),
        )
    echoes = queue_echo_requests(parts.family, foreign_vips([parts], options, facts), options)
    return join(
        opening,
        hooked(_chain("REDIRECT", options), "OUTPUT", redirects(parts, facts)),
        hooked(_chain("ECHO", options), "PREROUTING", () if handoff else echoes, first=False),
        hooked(_chain("GUARD", options), "PREROUTING", guards(parts, full=False)),
    )


def _strays_are_late(parts: Parts, options: Options, facts: Facts) -> bool:
    """Whether strays are taken behind the routing decision. Not if it may be that there is no
    route to the VIP, nor if rules in nat would have chosen a backend for them by then."""
    return not options.fail_open and not foreign_vips([parts], options, facts)


def _strays(load: Load, opened: list[Match], options: Options, facts: Facts, late: bool) -> Table:
    parts = load.parts
    stray, forward, full, reply = (
        _chain(role, options) for role in ("STRAY", "FORWARD", "FULL", "REPLY")
    )
    full_replies = parts.replaced.matches(
        Side.SOURCE, facts.sets, peer_ports=SOURCE_PORTS, syn=False
    )
    replies = load.backends.matches(Side.SOURCE, facts.sets, syn=False)
    unknown = Match(states=(State.INVALID, State.NEW), not_states=(State.DNAT,))
    return Table(
        {
            stray: (
                *returns(facts),
                *(returns(facts, late=True) if late else ()),
                *(
                    Rule(match, Goto(forward))
                    for match in parts.vip_matches(Side.DESTINATION, facts.sets, syn=False)
                ),
                *(Rule(match, Goto(full)) for match in full_replies),
                *(Rule(match, Goto(reply)) for match in replies if match.protocol is Protocol.TCP),
                # One that was queued in raw is known by now, or has to be sent again.
                *(Rule(match, Action.DROP) for match in opened if not options.fail_open),
            ),
            forward: tuple(queue_by_client(Side.SOURCE, options)),
            full: tuple(queue_by_port(parts.replaced.protocols, options, bypass=True)),
            reply: tuple(queue_by_client(Side.DESTINATION, options, bypass=True)),
        },
        tuple(
            Jump(hook, stray, unknown, first=late)
            for hook in (("INPUT", "FORWARD", "OUTPUT") if late else ("PREROUTING", "OUTPUT"))
        ),
    )


def _filter(load: Load, options: Options, facts: Facts) -> Table:
    name = _chain("FILTER", options)
    both = [
        *load.backends.matches(Side.DESTINATION, facts.sets),
        *load.backends.matches(Side.SOURCE, facts.sets),
        *(replace(match, states=(State.RELATED,)) for match in icmp.errors(load.parts.family)),
    ]
    return Table(
        {name: tuple(Rule(match, Action.ACCEPT) for match in both)},
        tuple(
            Jump(hook, name, Match(states=(State.DNAT,)), first=True)
            for hook in ("INPUT", "FORWARD", "OUTPUT")
        ),
    )


def _nat(services: Sequence[Service], family: int, options: Options) -> Table:
    nat, source = _chain("NAT", options), _chain("SOURCE", options)
    fallback = tuple(_fallback(services, family)) if options.fail_open else ()
    full = tuple(
        Rule(replace(match, states=(State.DNAT,)), Action.MASQUERADE)
        for match in _full_backends(services, family)
        if options.fail_open
    )
    return Table(
        {nat: fallback, source: full},
        (
            *(Jump(hook, nat) for hook in ("PREROUTING", "OUTPUT")),
            Jump("POSTROUTING", source),
        ),
    )


def offload_settings(loads: Iterable[Load], facts: Facts) -> Iterator[sysctl.Setting]:
    for load in loads:
        if load.parts.vips.entries or load.parts.other_vips:
            yield from settings([replace(load.parts, full=False)], facts)
            # So that connection tracking counts packets and bytes.
            yield "net/netfilter/nf_conntrack_acct", "1"


def _fallback(services: Sequence[Service], family: int) -> Iterator[Rule]:
    """In nat: a connection of each service to one of its backends, at random."""
    for service in services:
        backends = [
            backend.endpoint
            for backend in service.backends
            if backend.endpoint.address.version == family
        ]
        for match in Parts.of([service], family, "").vip_matches(Side.DESTINATION, use_set=False):
            for left, endpoint in zip(range(len(backends), 0, -1), backends, strict=True):
                chance = 1 / left if left > 1 else None
                yield Rule(replace(match, probability=chance), TranslateTo(endpoint))


def _full_backends(services: Sequence[Service], family: int) -> list[Match]:
    """Matches for packets to the backends that don't see their clients."""
    return sorted(
        {
            Match(
                protocol=service.protocol,
                destination=backend.endpoint.address,
                destination_ports=range(backend.endpoint.port, backend.endpoint.port + 1),
            )
            for service in services
            for backend in service.backends
            if service.nat is NatMode.FULL and backend.endpoint.address.version == family
        },
        key=str,
    )
