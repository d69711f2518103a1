"""Packet filter rules, through iptables-restore and iptables-save. Imports the standard library.

All of featherlb's rules stand in chains named `FEATHERLB-<role>-<instance>`. `replace` puts an
instance's chains and the jumps into them in place of the ones that stand, in one commit per
table; `remove` takes them out. Both look at what stands (iptables-save) instead of trusting a
memory of it, so that somebody else's changes in between do no harm. Works with the legacy and
the nf_tables flavour: whichever the name `iptables-restore` leads to.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from featherlb.errors import HostError

COMMANDS = {4: "iptables", 6: "ip6tables"}
LOCK_TIMEOUT = 10
"""Seconds to wait for another program's iptables run (the legacy flavour's lock)."""

_CHAIN = re.compile(r"^:(FEATHERLB-[A-Z]+-(\d+)) ")
_RULE = re.compile(r"^-A (\S+) .*(?:-j|-g) FEATHERLB-[A-Z]+-(\d+)$")
_UNSUPPORTED = re.compile(r"Extension (\S+) revision \d+ not supported")


@dataclass(frozen=True, slots=True)
class Table:
    """What one instance has in one table.

    `chains` holds its own chains by name, each a tuple of rules without `-A NAME`; `jumps` are
    whole commands that lead there from the built-in chains (`-A PREROUTING -j NAME`).
    """

    chains: Mapping[str, tuple[str, ...]]
    jumps: tuple[str, ...]


Ruleset = Mapping[str, Table]
"""Tables by name, in the order of their commit."""


@dataclass(slots=True)
class _Standing:
    """An instance's part of a table as iptables-save shows it."""

    chains: list[str] = field(default_factory=list)
    jumps: list[str] = field(default_factory=list)


def replace(family: int, instance: int, rules: Ruleset) -> None:
    """Make `rules` the instance's rules; each table changes in one step or not at all.

    HostError with the program's own words if it refuses.
    """
    standing = _standing(family, instance)
    names = [*rules, *(table for table in standing if table not in rules)]
    script: list[str] = []
    for name in names:
        old = standing.get(name, _Standing())
        new = rules.get(name, Table({}, ()))
        script.append(f"*{name}")
        # Naming a chain creates it, or empties one that stands.
        script += [f":{chain} - [0:0]" for chain in dict.fromkeys([*new.chains, *old.chains])]
        script += [f"-D {jump}" for jump in old.jumps]
        script += [f"-A {chain} {rule}" for chain, rules in new.chains.items() for rule in rules]
        script += new.jumps
        script += [f"-X {chain}" for chain in old.chains if chain not in new.chains]
        script.append("COMMIT")
    if script:
        _restore(family, "\n".join(script) + "\n")


def remove(family: int, instance: int) -> None:
    """Take the instance's chains and the jumps to them out of every table."""
    replace(family, instance, {})


def instances(family: int) -> set[int]:
    """The instances that have chains, in any table; empty without the program."""
    if _find(f"{COMMANDS[family]}-save") is None:
        return set()
    return {instance for _, _, instance in _chains(_save(family))}


def missing(family: int, rules: Sequence[str]) -> list[str]:
    """Which match and target extensions of `rules` this kernel lacks; nothing is committed."""
    script = "\n".join(["*raw", *(f"-A OUTPUT {rule}" for rule in rules), "COMMIT\n"])
    # The exit code says nothing: a missing extension is only warned of, and a set that doesn't
    # exist is an error.
    done = _run(family, "restore", script, "--noflush", "--test")
    return list(dict.fromkeys(_UNSUPPORTED.findall(done.stderr)))


def require_table(family: int, table: str) -> None:
    """HostError if this kernel lacks the table."""
    done = _run(family, "restore", f"*{table}\nCOMMIT\n", "--noflush", "--test")
    if done.returncode:
        module = f"{'ip6' if family == 6 else 'ip'}table_{table}"
        raise HostError(
            f"this kernel has no {COMMANDS[family]} table '{table}' ({_reason(done.stderr)});"
            f" load its module, for example with `modprobe {module}`"
        )


def commands(family: int, rules: Ruleset) -> list[str]:
    """The rules as single commands for a shell, to be read."""
    lines = []
    for table, part in rules.items():
        command = f"{COMMANDS[family]} -t {table}"
        lines += [f"{command} -N {chain}" for chain in part.chains]
        lines += [
            f"{command} -A {chain} {rule}" for chain, rules in part.chains.items() for rule in rules
        ]
        lines += [f"{command} {jump}" for jump in part.jumps]
    return lines


def _standing(family: int, instance: int) -> dict[str, _Standing]:
    saved = _save(family)
    tables: dict[str, _Standing] = {}
    for table, chain, owner in _chains(saved):
        if owner == instance:
            tables.setdefault(table, _Standing()).chains.append(chain)
    table = ""
    for line in saved:
        if line.startswith("*"):
            table = line[1:]
        elif (rule := _RULE.match(line)) and int(rule[2]) == instance:
            part = tables.setdefault(table, _Standing())
            # A rule inside our own chains goes when the chain is emptied.
            if rule[1] not in part.chains:
                part.jumps.append(line.removeprefix("-A "))
    return tables


def _chains(saved: list[str]) -> Iterator[tuple[str, str, int]]:
    """Table, name and instance of each chain of featherlb's."""
    table = ""
    for line in saved:
        if line.startswith("*"):
            table = line[1:]
        elif chain := _CHAIN.match(line):
            yield table, chain[1], int(chain[2])


def _save(family: int) -> list[str]:
    done = _run(family, "save", None)
    if done.returncode:
        raise HostError(f"{COMMANDS[family]}-save failed: {_reason(done.stderr)}")
    return done.stdout.splitlines()


def _restore(family: int, script: str) -> None:
    done = _run(family, "restore", script, "--noflush", "--wait", str(LOCK_TIMEOUT))
    if done.returncode:
        line = re.search(r"line:? (\d+)", done.stderr)
        culprit = f" at `{script.splitlines()[int(line[1]) - 1]}`" if line else ""
        raise HostError(
            f"{COMMANDS[family]}-restore refused featherlb's rules{culprit}: {_reason(done.stderr)}"
        )


def _run(
    family: int, action: str, script: str | None, *options: str
) -> subprocess.CompletedProcess[str]:
    name = f"{COMMANDS[family]}-{action}"
    program = _find(name)
    if program is None:
        raise HostError(
            f"{name} is not installed; install the package iptables, for example with"
            " `apt install iptables`"
        )
    return subprocess.run(
        [program, *options], input=script, capture_output=True, text=True, check=False
    )


def _find(name: str) -> str | None:
    # Not every user's PATH has the system directories, where iptables lives.
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(name, path=f"{path}:/usr/sbin:/sbin")


def _reason(stderr: str) -> str:
    """The last line that isn't an advertisement."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and "Try `" not in line]
    return lines[-1] if lines else "no reason given"
