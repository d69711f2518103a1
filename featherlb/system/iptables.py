"""Packet filter rules on the host, through iptables-restore and iptables-save.

`replace` replaces an instance's chains and the jumps to them, in one commit per table; `remove`
removes them. Both read the current rules (iptables-save) instead of remembering them, so that
changes by others do no harm. Works with the legacy and the nf_tables variant, whichever
`iptables-restore` is.
"""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from featherlb.model.errors import HostError
from featherlb.system.ruleset import Chain, Jump, Rule, Ruleset, Table

COMMANDS = {4: "iptables", 6: "ip6tables"}
LOCK_TIMEOUT = 10
"""Seconds to wait for another program's iptables run (the legacy flavour's lock)."""
TRIES = 4
"""How often to try to replace rules that another program changes at the same time."""
RUN_TIMEOUT = 60
"""Seconds after which a run is given up, so that nothing waits for it for good."""

_CHAIN = re.compile(r"^:FEATHERLB-([A-Z]+)-(\d+) ")
_RULE = re.compile(r"^-A (\S+) (.*)$")
_COUNTED = re.compile(r"^\[(\d+):\d+\] -A (\S+) ")
_TARGET = re.compile(r"(?:-j|-g) FEATHERLB-([A-Z]+)-(\d+)$")
_PROGRAM = re.compile(r"^(?:ip6?tables[a-z-]*(?: v\S+)?(?: \(\w+\))?: ?)+")
_BESIDE = re.compile(r"^Error occurred at line|^Try `|^# Warning: |^line \d+ failed$")
_UNSUPPORTED = re.compile(r"Extension (\S+) revision \d+ not supported")


@dataclass(slots=True)
class _Standing:
    """A table as iptables-save shows it: featherlb's chains, and the rules of other chains."""

    chains: list[Chain] = field(default_factory=list)
    rules: dict[str, list[str]] = field(default_factory=dict)
    """By chain, in order."""


def replace(
    family: int, instance: int, rules: Ruleset, later: Collection[int] = frozenset()
) -> None:
    """Make `rules` the instance's rules; each table changes in one step or not at all.

    Rules of `later` instances stay in front of them. HostError with the program's message if it
    refuses. Another program may change the rules between the moment when they are read and that
    when they are replaced; then it starts again.
    """
    for _ in range(TRIES):
        listed = _save(family)
        script = _script(rules, _parse(listed), instance, later)
        try:
            if script:
                _restore(family, script)
            return
        except HostError:
            if _parse(_save(family)) == _parse(listed):
                raise
    raise HostError(f"another program keeps changing the rules of {COMMANDS[family]}; try again")


def remove(family: int, instance: int) -> None:
    """Remove the instance's chains and the jumps to them from every table."""
    replace(family, instance, {})


def instances(family: int) -> set[int]:
    """The instances that have chains, in any table; empty without the program."""
    if _find(f"{COMMANDS[family]}-save") is None:
        return set()
    return {chain.instance for table in _parse(_save(family)).values() for chain in table.chains}


def missing(family: int, rules: Sequence[Rule]) -> list[str]:
    """Which match and target extensions of `rules` this kernel lacks; nothing is committed.

    A rule with an error must be the last one.
    """
    # Extensions are loaded when a rule is parsed. Without COMMIT nothing else happens, and there is
    # no wait for the kernel to revert a test.
    script = "\n".join(["*raw", *(f"-A OUTPUT {rule}" for rule in rules), ""])
    # The exit code means nothing: a missing extension is only a warning, and a missing set is an
    # error.
    done = _run(family, "restore", script, "--test")
    return list(dict.fromkeys(_UNSUPPORTED.findall(done.stderr)))


def require_tables(family: int, tables: Sequence[str]) -> None:
    """HostError if this kernel lacks one of the tables."""
    if _refusal(family, tables) is None:
        return
    for table in tables:
        if reason := _refusal(family, [table]):
            module = f"{'ip6' if family == 6 else 'ip'}table_{table}"
            raise HostError(
                f"this kernel has no {COMMANDS[family]} table '{table}' ({reason});"
                f" load its module, for example with `modprobe {module}`"
            )


def _refusal(family: int, tables: Sequence[str]) -> str | None:
    """Why the kernel refuses the tables, None if it has them."""
    script = "".join(f"*{table}\nCOMMIT\n" for table in tables)
    done = _run(family, "restore", script, "--test")
    return _reason(done.stderr) if done.returncode else None


def own(family: int, instance: int) -> list[tuple[str, str]]:
    """The instance's rules and the jumps to its chains, as they stand, each with its table."""
    named = re.compile(rf"FEATHERLB-[A-Z]+-{instance}(?!\d)")
    table = ""
    found = []
    for line in _save(family):
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith("-A ") and named.search(line):
            found.append((table, line))
    return found


def packets(family: int, table: str, chains: Collection[Chain]) -> dict[Chain, list[int]]:
    """How many packets each rule of these chains has matched, in order. Replacing rules sets all
    to 0."""
    counts: dict[Chain, list[int]] = {chain: [] for chain in chains}
    names = {str(chain): chain for chain in chains}
    for line in _save(family, "--counters", "--table", table):
        found = _COUNTED.match(line)
        if found and (chain := names.get(found[2])) is not None:
            counts[chain].append(int(found[1]))
    return counts


def listing(family: int, flavour: str = "") -> list[str]:
    """The output of iptables-save; with `flavour` (`legacy` or `nft`), empty if not installed.

    HostError if the program is missing or fails.
    """
    if not flavour:
        return _save(family)
    program = _find(f"{COMMANDS[family]}-{flavour}-save")
    if program is None:
        return []
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def flavour() -> str:
    """The variant that `iptables` is on this host: `legacy` or `nft`."""
    program = _find("iptables-save")
    return "nft" if program is None else _flavour(program)


@functools.cache
def _flavour(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return "nft" if "nf_tables" in done.stdout else "legacy"


def commands(family: int, rules: Ruleset) -> list[str]:
    """The rules as shell commands, for display."""
    lines = []
    for table, part in rules.items():
        command = f"{COMMANDS[family]} -t {table}"
        lines += [f"{command} -N {chain}" for chain in part.chains]
        lines += [
            f"{command} -A {chain} {rule}" for chain, rules in part.chains.items() for rule in rules
        ]
        lines += [
            f"{command} {f'-I {jump.hook} 1' if jump.first else f'-A {jump.hook}'} {jump}"
            for jump in part.jumps
        ]
    return lines


def _script(
    rules: Ruleset, standing: dict[str, _Standing], instance: int, later: Collection[int]
) -> str:
    """The input of iptables-restore that makes `rules` the instance's; empty if there is nothing to
    do."""
    script: list[str] = []
    for name in [*rules, *(table for table in standing if table not in rules)]:
        changes = _changes(
            rules.get(name, Table()), standing.get(name, _Standing()), instance, later
        )
        if changes:
            script += [f"*{name}", *changes, "COMMIT", ""]
    return "\n".join(script)


def _changes(new: Table, standing: _Standing, instance: int, later: Collection[int]) -> list[str]:
    """The commands of iptables-restore that turn the instance's part of a table into `new`.

    An existing jump stays in place. Only those that must come first move to the front together, if
    others' rules are ahead of them or one is missing; the same jumps of `later` instances move as
    well, in front of them.
    """
    chains = [chain for chain in standing.chains if chain.instance == instance]
    jumps = {
        (hook, rule)
        for hook, rules in standing.rules.items()
        for rule in rules
        if (chain := _led_to(rule)) is not None and chain.instance == instance
    }
    added = [jump for jump in new.jumps if (jump.hook, str(jump)) not in jumps]
    removed = sorted(jumps - {(jump.hook, str(jump)) for jump in new.jumps})
    overtaken = {
        jump.hook
        for jump in new.jumps
        if jump.first and (jump in added or _overtaken(jump, standing))
    }
    front = [jump for jump in new.jumps if jump.first and jump.hook in overtaken]
    roles = {(jump.hook, jump.chain.role) for jump in front}
    ahead = [
        (hook, rule)
        for hook in sorted(overtaken)
        for rule in reversed(standing.rules.get(hook, []))
        if (chain := _led_to(rule)) is not None
        and (hook, chain.role) in roles
        and chain.instance in later
    ]
    moved = [(jump.hook, str(jump)) for jump in front if jump not in added] + ahead
    return [
        # Naming a chain creates it, or flushes an existing one.
        *(f":{chain} - [0:0]" for chain in dict.fromkeys([*new.chains, *chains])),
        *(f"-A {chain} {rule}" for chain, rules in new.chains.items() for rule in rules),
        # Positions are valid as long as nothing is inserted in front or deleted.
        *(_insertion(jump, standing, later) for jump in added if not jump.first),
        *(f"-D {hook} {rule}" for hook, rule in moved),
        *(f"-I {jump.hook} 1 {jump}" for jump in front),
        *(f"-I {hook} 1 {rule}" for hook, rule in ahead),
        *(f"-D {hook} {rule}" for hook, rule in removed),
        *(f"-X {chain}" for chain in chains if chain not in new.chains),
    ]


def _overtaken(jump: Jump, standing: _Standing) -> bool:
    """Whether somebody else's rule is ahead of it."""
    rules = standing.rules.get(jump.hook, [])
    return any(_led_to(rule) is None for rule in rules[: rules.index(str(jump))])


def _insertion(jump: Jump, standing: _Standing, later: Collection[int]) -> str:
    """The command that inserts a jump before the same jump of earlier instances, or else appends
    it. It is added to `standing`, so that later positions are correct."""
    rules = standing.rules.setdefault(jump.hook, [])
    for position, rule in enumerate(rules):
        chain = _led_to(rule)
        if chain is not None and chain.role == jump.chain.role and chain.instance not in later:
            rules.insert(position, str(jump))
            return f"-I {jump.hook} {position + 1} {jump}"
    rules.append(str(jump))
    return f"-A {jump.hook} {jump}"


def _led_to(rule: str) -> Chain | None:
    """The featherlb chain that a rule on the host jumps to; None for others' rules."""
    target = _TARGET.search(rule)
    return Chain(target[1], int(target[2])) if target else None


def _parse(listed: Sequence[str]) -> dict[str, _Standing]:
    """The tables in the output of iptables-save."""
    tables: dict[str, _Standing] = {}
    for line in listed:
        if line.startswith("*"):
            table = tables.setdefault(line[1:], _Standing())
        elif chain := _CHAIN.match(line):
            table.chains.append(Chain(chain[1], int(chain[2])))
        # Rules in featherlb's own chains are removed when the chain is flushed.
        elif (rule := _RULE.match(line)) and not rule[1].startswith("FEATHERLB-"):
            table.rules.setdefault(rule[1], []).append(rule[2])
    return tables


def _save(family: int, *options: str) -> list[str]:
    done = _run(family, "save", None, *options)
    if done.returncode:
        raise HostError(f"{COMMANDS[family]}-save failed: {_reason(done.stderr)}")
    return done.stdout.splitlines()


def _restore(family: int, script: str) -> None:
    done = _run(family, "restore", script)
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
    if action == "restore":
        options = ("--noflush", "--wait", str(LOCK_TIMEOUT), *options)
    try:
        return subprocess.run(
            [program, *options],
            input=script,
            capture_output=True,
            text=True,
            check=False,
            timeout=RUN_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise HostError(f"{name} has not ended within {RUN_TIMEOUT} s") from None


def _find(name: str) -> str | None:
    # Not every user's PATH has the system directories, where iptables lives.
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(name, path=f"{path}:/usr/sbin:/sbin")


def _reason(stderr: str) -> str:
    """What the program says went wrong, without what surrounds it: its name and version, warnings,
    the number of the line, an advertisement of its manual."""
    lines = [_PROGRAM.sub("", line.strip()) for line in stderr.splitlines()]
    said = [line for line in lines if line]
    useful = [line for line in said if not _BESIDE.search(line)]
    return "; ".join(dict.fromkeys(useful)) or (said[-1] if said else "no reason given")
