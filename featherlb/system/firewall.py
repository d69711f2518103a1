"""The packet filters of this host as values for `featherlb.doctor`, and a parser of iptables-save.
Standard library only; reads no file.

Of a rule, only its effect on untracked packets matters, because featherlb's are untracked.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum


class Applies(Enum):
    """Whether a rule matches an untracked packet."""

    ALWAYS = "always"
    SOMETIMES = "sometimes"
    """It depends on other conditions."""
    NEVER = "never"


class Action(StrEnum):
    """What a rule does with matching packets."""

    ACCEPT = "accept"
    DROP = "drop"
    """Silently, or with an error to the sender."""
    JUMP = "jump"
    GOTO = "goto"
    RETURN = "return"
    OTHER = "other"
    """It counts, logs or marks; the next rule follows."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; `chain` is the target of `JUMP` and `GOTO`, `text` its owner's spelling."""

    action: Action
    applies: Applies
    text: str
    chain: str = ""


@dataclass(frozen=True, slots=True)
class Hooked:
    """A chain that the kernel calls at one of its hooks."""

    name: str
    hook: str
    """`prerouting`, `input`, `forward`, `output` or `postrouting`."""
    policy: Action


@dataclass(frozen=True, slots=True)
class FilterTable:
    """Chains that can jump to each other."""

    owner: str
    """`iptables`, `ip6tables-legacy`, `nftables`."""
    table: str
    """As its owner's commands name it: `filter`, `inet firewalld`."""
    families: frozenset[int]
    """The address families whose packets it sees."""
    hooked: tuple[Hooked, ...]
    chains: Mapping[str, tuple[Rule, ...]]


def applies(states: Iterable[bool], others: bool) -> Applies:
    """Whether a rule applies, from its conntrack state conditions, each True if an untracked packet
    meets it, and whether it has `others`."""
    if not all(states):
        return Applies.NEVER
    return Applies.SOMETIMES if others else Applies.ALWAYS


_CHAIN = re.compile(r":(\S+) (\S+)")
_ACTIONS = {
    "ACCEPT": Action.ACCEPT,
    "DROP": Action.DROP,
    "REJECT": Action.DROP,
    "RETURN": Action.RETURN,
}


def read_iptables(lines: Iterable[str], owner: str, family: int) -> Iterator[FilterTable]:
    """The tables in the output of `iptables-save`, except `nat`, which untracked packets skip."""
    table = ""
    policies: dict[str, str] = {}
    rules: dict[str, list[Rule]] = {}
    for line in lines:
        if line.startswith("*"):
            table, policies, rules = line[1:], {}, {}
        elif chain := _CHAIN.match(line):
            policies[chain[1]] = chain[2]
            rules[chain[1]] = []
        elif line.startswith("-A "):
            _, name, text = line.split(" ", 2)
            rules[name].append(_read_rule(text, rules.keys()))
        elif line == "COMMIT" and table != "nat":
            yield FilterTable(
                owner=owner,
                table=table,
                families=frozenset({family}),
                hooked=tuple(
                    Hooked(name, name.lower(), Action.DROP if policy == "DROP" else Action.ACCEPT)
                    for name, policy in policies.items()
                    if policy != "-"
                ),
                chains={name: tuple(members) for name, members in rules.items()},
            )


def _read_rule(text: str, chains: Iterable[str]) -> Rule:
    words = shlex.split(text)
    action, chain = Action.OTHER, ""
    states: list[bool] = []
    others = negated = False
    position = 0
    while position < len(words):
        word = words[position]
        value = words[position + 1] if position + 1 < len(words) else ""
        position += 1
        if word in ("-j", "-g"):
            # The target's own options follow.
            action = _ACTIONS.get(value, Action.OTHER)
            if value in chains:
                action, chain = (Action.JUMP if word == "-j" else Action.GOTO), value
            break
        if word in ("--ctstate", "--state"):
            states.append(("UNTRACKED" in value.split(",")) is not negated)
            position += 1
        elif word == "--comment" or (word == "-m" and value in ("conntrack", "state", "comment")):
            position += 1
        elif word != "!":
            others = True
        negated = word == "!"
    return Rule(action, applies(states, others), text, chain)
