"""Do the host's packet filters let featherlb's packets pass?

featherlb accepts its packets in iptables' filter table, ahead of all other rules. That doesn't
help if another program's rules got ahead of them, or against separate tables: native nftables
(firewalld, a hand-written ruleset), or the other variant of iptables. An accept verdict ends the
traversal of one table only, and every table must accept a packet.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from featherlb.doctor.finding import Finding, error, note, warning
from featherlb.doctor.subject import Subject
from featherlb.model import Service
from featherlb.system import iptables, nftables
from featherlb.system.firewall import Action, Applies, FilterTable, Hooked, read_iptables

_OWN = re.compile(r"FEATHERLB-(RAW|MANGLE|FILTER)-")
"""The chains that take or accept all of an instance's packets."""
MAX_DEPTH = 64
"""Of nested chains; the kernel allows fewer."""


@dataclass(frozen=True, slots=True)
class Fate:
    """The outcome for an untracked packet: the action, and what else could happen before it."""

    action: Action | None
    """ACCEPT or DROP; None if the chain ends without either."""
    may_accept: bool = False
    """A rule with other conditions accepts some packets first."""
    may_drop: str = ""
    """The first rule that drops some packets before an unconditional verdict."""


def check(subject: Subject) -> Iterator[Finding]:
    """Finds rules that drop featherlb's packets ahead of its own rules, or in other tables."""
    own: list[FilterTable] = []
    others: list[FilterTable] = []
    flavour = iptables.flavour()
    running = subject.running
    for family in subject.families or [4]:
        name = iptables.COMMANDS[family]
        own += read_iptables(iptables.listing(family), name, family)
        if flavour == "nft":
            owner = f"{name}-legacy"
            others += read_iptables(iptables.listing(family, "legacy"), owner, family)
    others += nftables.filter_tables(with_iptables=flavour == "legacy")
    # `up` installs its rules ahead of all others: only a running instance's can have been
    # displaced.
    tables = others if running is None else own + others
    yield from judge(tables, hooks(subject), "" if running is None else running.fix)
    yield from judge_passed_by(own + others, subject.services)


def hooks(subject: Subject) -> list[str]:
    """The hooks that the services' packets pass."""
    backends = [backend for service in subject.services for backend in service.backends]
    found = ["prerouting", "postrouting"]
    if any(not backend.local for backend in backends):
        found.append("forward")
    if any(backend.local for backend in backends):
        found += ["input", "output"]
    return found


def judge(
    tables: Sequence[FilterTable], wanted_hooks: Sequence[str], fix: str
) -> Iterator[Finding]:
    """A finding for each hook of a table that drops untracked packets.

    `fix` is the command that moves featherlb's own rules to the front.
    """
    for table in tables:
        own = table.owner in iptables.COMMANDS.values()
        for hooked in table.hooked:
            if hooked.hook not in wanted_hooks:
                continue
            fate = walk(table, hooked)
            where = f"{table.owner} table '{table.table}', chain {hooked.name}"
            command = fix if own else _exemption(table, hooked)
            if fate.action is Action.DROP and not fate.may_accept:
                yield error(
                    f"{where} drops untracked packets, and so featherlb's; accept them",
                    command,
                )
            elif fate.action is Action.DROP:
                yield warning(
                    f"{where} drops untracked packets, and so featherlb's unless one of its rules"
                    " accepts them; accept them",
                    command,
                )
            # In other tables, conditional rules are the host's own business: raw and mangle see
            # packets as clients send them, and a later accept needs no priority.
            elif fate.may_drop and own and table.table == "filter":
                yield warning(
                    f"{where} may drop packets before featherlb's rule accepts them:"
                    f" `{fate.may_drop}`",
                    command,
                )


def judge_passed_by(
    tables: Sequence[FilterTable], services: Sequence[Service]
) -> Iterator[Finding]:
    """A note for each chain with a rule that may drop packets of clients, and that the packets of
    some services don't traverse: frames pass all chains by, and so does what a program in the
    kernel carries."""
    by_kind = {
        "packets": [one.name for one in services if one.datapath.takes_frames],
        "packets that a program carries": [one.name for one in services if one.datapath.carries],
    }
    for table in tables:
        # Our rules accept the packets of every datapath ahead of this table's other rules.
        if table.table == "filter" and table.owner in iptables.COMMANDS.values():
            continue
        for hooked in table.hooked:
            rule = walk(table, hooked).may_drop
            if not rule or hooked.hook not in ("prerouting", "forward", "postrouting"):
                continue
            for kind, names in by_kind.items():
                if names:
                    yield note(
                        f"`{rule}` in {table.owner} table '{table.table}', chain {hooked.name},"
                        f" doesn't see {kind} of {', '.join(names)}, which bypass netfilter: drop"
                        " them at tc or nftables ingress, or choose another datapath"
                    )


def _exemption(table: FilterTable, hooked: Hooked) -> str:
    if table.owner == "nftables":
        return f"nft insert rule {table.table} {hooked.name} ct state untracked accept"
    rule = "-m conntrack --ctstate UNTRACKED -j ACCEPT"
    return f"{table.owner} -t {table.table} -I {hooked.name} {rule}"


def walk(table: FilterTable, hooked: Hooked) -> Fate:
    """The outcome for an untracked packet in this table at this hook."""
    fate = _through(table, hooked.name, Fate(None), MAX_DEPTH)
    return fate if fate.action is not None else replace(fate, action=hooked.policy)


def _through(table: FilterTable, chain: str, so_far: Fate, depth: int) -> Fate:
    may_accept, may_drop = so_far.may_accept, so_far.may_drop
    for rule in table.chains.get(chain, ()) if depth else ():
        if rule.applies is Applies.NEVER:
            continue
        certain = rule.applies is Applies.ALWAYS
        if rule.action in (Action.JUMP, Action.GOTO):
            if _OWN.match(rule.chain):
                # What it accepts is featherlb's.
                return Fate(Action.ACCEPT, may_accept, may_drop)
            if rule.chain.startswith("FEATHERLB-"):
                continue
            inner = _through(table, rule.chain, Fate(None, may_accept, may_drop), depth - 1)
            may_accept, may_drop = inner.may_accept, inner.may_drop
            if certain and (inner.action is not None or rule.action is Action.GOTO):
                return inner
            may_accept |= inner.action is Action.ACCEPT
            if inner.action is Action.DROP:
                may_drop = may_drop or rule.text
        elif rule.action in (Action.ACCEPT, Action.DROP):
            if certain:
                return Fate(rule.action, may_accept, may_drop)
            if rule.action is Action.ACCEPT:
                may_accept = True
            else:
                may_drop = may_drop or rule.text
        elif rule.action is Action.RETURN and certain:
            break
    return Fate(None, may_accept, may_drop)
