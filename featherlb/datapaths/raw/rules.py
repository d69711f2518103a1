"""Rules that drop the kernel's copies of what workers have as frames (datapath raw)."""

from featherlb.datapaths.rules.endpoints import GIVEN_PORTS, NO_OPENING, Parts
from featherlb.datapaths.rules.facts import Facts


def copy_rules(queued: Parts, wire: Parts, facts: Facts) -> dict[str, list[str]]:
    """By table, the rules that drop the kernel's copies of packets that workers have taken.

    A reply in `dnat` mode looks like one to a client that talks to the backend itself, through this
    host as its router. Where this host is a router, connection tracking tells them apart: of
    balanced connections it has seen nothing. Elsewhere it needn't be asked, which is faster.
    """
    sets = facts.sets
    given = f" --dport {GIVEN_PORTS}"
    raw = [f"{match} -j DROP" for match in wire.replaced.matches("src", sets, ports=given)]
    if any(vip.wildcard for _, vip in wire.other_vips):
        # A port given in `full` mode can equal a wildcard VIP's.
        others = queued.replaced.matches("src", sets, ports=given)
        raw += [f"{match} -j RETURN" for match in others]
    raw += [f"{match} -j DROP" for match in wire.vip_matches("dst", sets)]
    state = ""
    table = "raw"
    if facts.conntrack and (wire.family in facts.routers or queued.forwards):
        state = " -m conntrack ! --ctstate ESTABLISHED,RELATED"
        table = "mangle"
    replies = []
    if {*wire.kept.entries} & {*queued.kept.entries}:
        # Only the worker can tell whose they are. It drops what it has had as a frame.
        others = queued.kept.matches("src", sets, tcp=NO_OPENING)
        replies += [f"{match} -j RETURN" for match in others]
    replies += [
        f"{match} -m addrtype ! --dst-type LOCAL{state} -j DROP"
        for match in wire.kept.matches("src", sets, tcp=NO_OPENING)
    ]
    copies: dict[str, list[str]] = {"raw": raw, "mangle": []}
    copies[table] += replies
    return copies
