"""Rules that drop the kernel's copies of what workers have as frames (datapath raw)."""

from dataclasses import replace

from featherlb.datapaths.rules.endpoints import Parts
from featherlb.datapaths.rules.facts import Facts
from featherlb.model import SOURCE_PORTS
from featherlb.system.ruleset import Action, Rule, Side, State


def copy_rules(queued: Parts, wire: Parts, facts: Facts) -> dict[str, list[Rule]]:
    """By table, the rules that drop the kernel's copies of packets that workers have taken.

    A reply in `dnat` mode looks like one to a client that talks to the backend itself, through this
    host as its router. Where this host is a router, connection tracking tells them apart: of
    balanced connections it has seen nothing. Elsewhere it needn't be asked, which is faster.
    """
    sets = facts.sets
    raw = [
        Rule(match, Action.DROP)
        for match in wire.replaced.matches(Side.SOURCE, sets, peer_ports=SOURCE_PORTS)
    ]
    if any(vip.wildcard for _, vip in wire.other_vips):
        # A port given in `full` mode can equal a wildcard VIP's.
        others = queued.replaced.matches(Side.SOURCE, sets, peer_ports=SOURCE_PORTS)
        raw += [Rule(match, Action.RETURN) for match in others]
    raw += [Rule(match, Action.DROP) for match in wire.vip_matches(Side.DESTINATION, sets)]
    known: tuple[State, ...] = ()
    table = "raw"
    if facts.conntrack and (wire.family in facts.routers or queued.forwards):
        known = (State.ESTABLISHED, State.RELATED)
        table = "mangle"
    replies = []
    if {*wire.kept.entries} & {*queued.kept.entries}:
        # Only the worker can tell whose they are. It drops what it has had as a frame.
        others = queued.kept.matches(Side.SOURCE, sets, syn=False)
        replies += [Rule(match, Action.RETURN) for match in others]
    replies += [
        Rule(replace(match, destination_local=False, not_states=known), Action.DROP)
        for match in wire.kept.matches(Side.SOURCE, sets, syn=False)
    ]
    copies: dict[str, list[Rule]] = {"raw": raw, "mangle": []}
    copies[table] += replies
    return copies
