"""Which of an instance's rules a packet meets. Goes by the rules as values and asks the kernel
nothing.

A condition that the packet alone doesn't answer, such as an outgoing interface or another
program's mark, counts as not met.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from featherlb.host import HostPlan
from featherlb.model import Address, Endpoint, Hook, Network, Protocol
from featherlb.system.ipset import AnySet, Entry, Networks
from featherlb.system.ruleset import (
    Action,
    Enqueue,
    Goto,
    HashMark,
    Match,
    Rule,
    Side,
    State,
    Table,
    TranslateTo,
)

TABLES = ("raw", "mangle", "nat", "filter")
"""In the order in which a packet passes them at a hook."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet as a hook sees it: one that opens a connection (`opens`), or an answer to one.

    `worker` is the one that its client's address and port select; `own` are the addresses of this
    host. `mark` and `states` (of conntrack, virtual ones included) are what has been made of it.
    """

    protocol: Protocol
    source: Endpoint
    destination: Endpoint
    opens: bool
    worker: int
    own: Collection[Address]
    mark: int = 0
    states: frozenset[State] = frozenset({State.NEW})


@dataclass(frozen=True, slots=True)
class Met:
    """A rule that a packet meets, as iptables-restore takes it."""

    table: str
    hook: str
    chain: str
    rule: str


def rules_met(plan: HostPlan, hook: Hook, packet: Packet) -> tuple[list[Met], Packet]:
    """The rules that match the packet at this hook, in their order, and what they make of it."""
    tables = plan.rules.get(packet.source.address.version, {})
    sets = {one.name: one for one in plan.sets}
    found: list[Met] = []
    for name in TABLES:
        if name in tables:
            packet, dropped = _walk(tables[name], name, hook, packet, sets, found)
            if dropped:
                break
    return found, packet


def _walk(
    table: Table,
    name: str,
    hook: Hook,
    packet: Packet,
    sets: Mapping[str, AnySet],
    found: list[Met],
) -> tuple[Packet, bool]:
    """One table: the packet after it, and whether it is dropped there."""
    # The last one of those that are to come first is inserted last.
    first = [jump for jump in reversed(table.jumps) if jump.first]
    for jump in (*first, *(jump for jump in table.jumps if not jump.first)):
        if jump.hook != hook.name or not matches(jump.match, packet, sets):
            continue
        chain, rules = jump.chain, table.chains[jump.chain]
        position = 0
        while position < len(rules):
            rule = rules[position]
            position += 1
            if not matches(rule.match, packet, sets):
                continue
            found.append(Met(name, hook.name, str(chain), _text(rule)))
            match rule.target:
                case Goto(chain):
                    rules, position = table.chains[chain], 0
                case HashMark(offset=offset):
                    packet = replace(packet, mark=offset + packet.worker)
                case Action.UNTRACK:
                    packet = replace(packet, states=frozenset({State.UNTRACKED}))
                case Action.RETURN:
                    break
                case Action.DROP:
                    return packet, True
                case Action.ACCEPT | Action.MASQUERADE | Enqueue() | TranslateTo():
                    return packet, False
    return packet, False


def _text(rule: Rule) -> str:
    """Without the seed of hashes: a client that knew it could choose its worker."""
    text = str(rule)
    if isinstance(rule.target, HashMark):
        return text.replace(f"{rule.target.seed:#010x}", "SECRET")
    return text


def matches(match: Match, packet: Packet, sets: Mapping[str, AnySet]) -> bool:
    """Whether all conditions hold for the packet."""
    source, destination, own = packet.source, packet.destination, packet.own
    known = (
        match.protocol in (None, packet.protocol)
        and match.syn in (None, packet.opens)
        and _within(source.address, match.source)
        and _within(destination.address, match.destination)
        and (match.source_ports is None or source.port in match.source_ports)
        and (match.destination_ports is None or destination.port in match.destination_ports)
        and match.source_local in (None, source.address in own)
        and match.destination_local in (None, destination.address in own)
        # Of what else has no route back, nothing is known here.
        and (match.reverse_path is None or source.address in own)
        and match.mark in (None, packet.mark)
        and (not match.states or not packet.states.isdisjoint(match.states))
        and packet.states.isdisjoint(match.not_states)
    )
    unknown = (
        match.in_interface
        or match.out_interface
        or match.socket
        or match.icmp_type
        or match.content
        or match.acknowledges
        or match.refuses
        or match.unassured
        or match.beyond
    )
    return known and not unknown and _listed(match, packet, sets)


def _within(address: Address, wanted: Address | Network | None) -> bool:
    if wanted is None or address == wanted:
        return True
    return isinstance(wanted, Network) and address in wanted


def _listed(match: Match, packet: Packet, sets: Mapping[str, AnySet]) -> bool:
    """Whether the packet is in the set that the match asks for, if it asks for one."""
    if match.member is None:
        return True
    wanted = sets.get(match.member.name)
    if wanted is None:
        return False
    ends = {Side.SOURCE: packet.source, Side.DESTINATION: packet.destination}
    first, *others = match.member.sides
    if isinstance(wanted, Networks):
        return wanted.addresses.covers(ends[first].address) is not match.member.negated
    peer = ends[others[-1]].address if len(others) > 1 else None
    return Entry(ends[first], packet.protocol, peer) in wanted.entries
