"""Rules that drop SYNs of clients which may not open a connection, before any worker sees them.

Workers decide about every client (`core/pools/gate.py`), and alike on all datapaths. These rules
spare them the bulk, where the kernel sees the packets and clients are not to be told: sets drop
what the lists refuse, and `hashlimit` what is far beyond a client's rate. That counts
retransmissions, too, so it lets `SLACK` times as many pass, and workers choose. And it counts what
is refused for another reason: so it is for limits of single clients alone, who can't waste what
others share.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from string import ascii_uppercase
from zlib import crc32

from featherlb.datapaths.rules.endpoints import Parts
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.model import CLIENT_PREFIX, MaxNew, Protocol, Refusal, Service, Vip
from featherlb.model.reason import Reason
from featherlb.system import ipset
from featherlb.system.ruleset import (
    Action,
    Chain,
    Goto,
    HashLimit,
    Jump,
    Match,
    Membership,
    Rule,
    Side,
    Table,
)

SLACK = 4
"""A client that is at its limit may need so many SYNs for each connection."""


NO_SERVICE = ("", Reason.MARTIAN)
"""Service and reason of rules that drop forged packets, whatever the service."""


@dataclass(frozen=True, slots=True)
class Refusing:
    """A rule that refuses clients of a service: the place in its chain in the table raw, from 0."""

    family: int
    chain: Chain
    position: int
    service: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Gate:
    """What the rules need: a table, the sets that they match, and which rule is for what."""

    table: Table
    sets: tuple[ipset.Networks, ...]
    refusing: tuple[Refusing, ...]


def gate(
    services: Sequence[Service], family: int, role: str, options: Options, facts: Facts
) -> Gate:
    """For services of one datapath in one address family; the roles of chains begin with `role`."""
    entrance = Chain(role, options.queue)
    chains: dict[Chain, tuple[Rule, ...]] = {entrance: ()}
    sets: list[ipset.Networks] = []
    refusing: list[Refusing] = []
    entries: list[tuple[Vip, list[Match], Chain | None]] = []
    names = (Chain(f"{role}{suffix}", options.queue) for suffix in _suffixes())
    seen: set[Vip] = set()
    for service in services:
        vips = [one for one in service.vips if one.address.version == family and one not in seen]
        if service.protocol is not Protocol.TCP or not vips:
            continue
        seen.update(vips)
        chain = None
        if conditions := list(_conditions(service, family, options, facts, sets)):
            chain = next(names)
            chains[chain] = tuple(Rule(match, Action.DROP) for match, _ in conditions)
            refusing += [
                Refusing(family, chain, position, service.name, reason)
                for position, (_, reason) in enumerate(conditions)
            ]
        for vip in vips:
            parts = Parts.of([replace(service, vips=(vip,), backends=())], family, "")
            matches = parts.vip_matches(Side.DESTINATION, use_set=False, syn=True)
            entries.append((vip, matches, chain))
    if not refusing:
        return Gate(Table(), (), ())
    # As workers look for the service: all ports of a VIP, and every address, come last.
    entries.sort(key=lambda entry: (entry[0].wildcard, entry[0].all_ports))
    last = max(number for number, (_, _, chain) in enumerate(entries) if chain)
    broad = any(chain and (vip.wildcard or vip.all_ports) for vip, _, chain in entries)
    chains[entrance] = tuple(
        Rule(match, Action.RETURN if chain is None else Goto(chain))
        for _, matches, chain in entries[: last + 1]
        for match in matches
        if chain or broad
    )
    jumps = tuple(
        Jump(hook, entrance, Match(protocol=Protocol.TCP, syn=True), first=True)
        for hook in ("PREROUTING", "OUTPUT")
    )
    return Gate(Table(chains, jumps), tuple(sets), tuple(refusing))


def _conditions(
    service: Service, family: int, options: Options, facts: Facts, sets: list[ipset.Networks]
) -> Iterator[tuple[Match, Reason]]:
    """Matches for SYNs that the service refuses, each with the reason."""
    admission = service.admission
    if facts.networks and admission.deny_action is Refusal.DROP:
        for networks, allowed in ((admission.allow, True), (admission.deny, False)):
            if networks is None or not (allowed or networks.has(family)):
                continue
            # The same at every reload: rules and sets are not replaced in one step.
            number = crc32(service.name.encode())
            kind = "a" if allowed else "d"
            name = f"featherlb-{options.queue}-{number:08x}{kind}-{family}"
            sets.append(ipset.Networks(name, family, networks))
            member = Membership(name, (Side.SOURCE,), negated=allowed)
            yield Match(member=member), Reason.NOT_ALLOWED
    for limit in admission.max_new if facts.hashlimit else ():
        if limit.action is Refusal.DROP and limit.prefix >= CLIENT_PREFIX[family]:
            yield Match(beyond=_far_beyond(service, limit, options)), Reason.MAX_NEW


def _far_beyond(service: Service, limit: MaxNew, options: Options) -> HashLimit:
    # The kernel goes on with a limit of the same name as it was, so another one has another name.
    text = f"{service.name} {limit.rate} {limit.burst} {limit.prefix}"
    return HashLimit(
        name=f"flb{options.queue}-{crc32(text.encode()):08x}",
        rate=SLACK * limit.rate,
        burst=SLACK * limit.burst,
        prefix=limit.prefix,
    )


def _suffixes() -> Iterator[str]:
    """A, B, ... Z, BA, BB: names of chains have capital letters only."""
    for number in count():
        text = ""
        while number or not text:
            number, digit = divmod(number, len(ascii_uppercase))
            text = ascii_uppercase[digit] + text
        yield text
