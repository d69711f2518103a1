"""What somebody else changed on the host against a plan, and what an update repairs."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from enum import StrEnum

from featherlb.datapaths.rules.vip_addresses import subnet_interface
from featherlb.host.plan import HostPlan
from featherlb.host.survey import bridge_filter, is_local
from featherlb.model import LOOPBACK, Address
from featherlb.model.counted import counted
from featherlb.system import ipset, iptables, programs, rtnetlink, sysctl, xtables

OwnRules = Mapping[int, list[tuple[str, str]]]
"""By address family, what `iptables.own` has found."""


class Kind(StrEnum):
    """What can be changed."""

    RULES = "rules"
    SETS = "sets"
    SETTINGS = "settings"
    ADDRESSES = "addresses"
    PROGRAMS = "programs"


ALL_KINDS = frozenset(Kind)


@dataclass(frozen=True, slots=True)
class Deviation:
    """One difference."""

    kind: Kind
    text: str
    """What is wrong, as a sentence."""
    repair: str
    """What an update does about it; `{}` stands for the number of rules. Empty if it can't."""
    ours: bool = True
    """Whether the instance has set up what is missing. An address that somebody else gives to this
    host and takes away again (VRRP) is restored only when an operator asks for it."""


def find(plan: HostPlan, rules: OwnRules, kinds: Set[Kind] = ALL_KINDS) -> Iterator[Deviation]:
    """The differences of these kinds, where `rules` are those that the plan has made."""
    if Kind.RULES in kinds:
        for family, before in rules.items():
            yield from _rules(plan, family, before)
    if Kind.SETS in kinds:
        yield from _sets(plan)
    if Kind.SETTINGS in kinds:
        yield from _settings(plan)
    if Kind.ADDRESSES in kinds:
        yield from _addresses(plan)
    if Kind.PROGRAMS in kinds and plan.programs:
        yield from _programs(plan)


def glance(plan: HostPlan) -> dict[Kind, object]:
    """Something that differs after most changes, much cheaper to get than the deviations: no
    program is started. Not of what the kernel announces changes of: addresses, and the rules of
    iptables' nf_tables variant."""
    looks: dict[Kind, object] = {
        Kind.SETTINGS: (
            bridge_filter(),
            [sysctl.read(key) for key, _ in plan.settings],
            # What the mode full needs of them, only the services say.
            sysctl.rp_filters() if plan.sources else (),
        ),
    }
    if plan.sets:
        sizes = ipset.sizes()
        looks[Kind.SETS] = [sizes.get(wanted.name) for wanted in plan.sets]
    if iptables.flavour() == "legacy":
        looks[Kind.RULES] = [
            xtables.outline(family, table)
            for family, ruleset in plan.rules.items()
            for table in ruleset
        ]
    if plan.programs:
        looks[Kind.PROGRAMS] = _links(plan)
    return looks


def repairs(deviations: Iterable[Deviation]) -> list[str]:
    """What an update does about them, one line for all rules of a table: `restored 10 rules of
    table raw`."""
    counts = Counter(one.repair for one in deviations if one.repair)
    return [text.format(counted(n, "rule")) for text, n in counts.items()]


def _rules(plan: HostPlan, family: int, before: list[tuple[str, str]]) -> Iterator[Deviation]:
    command = iptables.COMMANDS[family]
    ipv6 = " of IPv6" if family == 6 else ""
    now = iptables.own(family, plan.instance)
    # A rule may stand there twice.
    gone = Counter(before) - Counter(now)
    added = Counter(now) - Counter(before)
    for table, rule in gone.elements():
        yield Deviation(
            Kind.RULES,
            f"the {command} rule `{table}: {rule}` is gone",
            f"restored {{}} of table {table}{ipv6}",
        )
    for table, rule in added.elements():
        yield Deviation(
            Kind.RULES,
            f"the {command} rule `{table}: {rule}` is not featherlb's",
            f"removed {{}} of others from table {table}{ipv6}",
        )
    if not gone and not added:
        for table, chain in _disordered(before, now):
            yield Deviation(
                Kind.RULES,
                f"the {command} rules of chain {chain} in table {table} have another order",
                f"restored the order of table {table}{ipv6}",
            )


def _disordered(
    before: list[tuple[str, str]], now: list[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    """The chains, each with its table, in which the same rules stand in another order."""

    def by_chain(rules: list[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
        found: dict[tuple[str, str], list[str]] = {}
        for table, rule in rules:
            found.setdefault((table, rule.split()[1]), []).append(rule)
        return found

    standing = by_chain(now)
    return (chain for chain, rules in by_chain(before).items() if standing[chain] != rules)


def _sets(plan: HostPlan) -> Iterator[Deviation]:
    for wanted in plan.sets:
        if not ipset.has(wanted):
            yield Deviation(
                Kind.SETS,
                f"the ipset {wanted.name} is gone or has other entries",
                f"restored ipset {wanted.name}",
            )


def _settings(plan: HostPlan) -> Iterator[Deviation]:
    for key, value in plan.settings:
        if (now := sysctl.read(key)) not in (None, value):
            name = sysctl.dotted(key)
            yield Deviation(
                Kind.SETTINGS,
                f"{name} is {now} and has to be {value}",
                f"restored {name}={value}",
            )
    if plan.bridge_filter is not None:
        for family in sorted((bridge_filter() ^ plan.bridge_filter) & plan.rules.keys()):
            setting = sysctl.dotted(sysctl.BRIDGE_FILTERS[family])
            now_on = int(family not in plan.bridge_filter)
            yield Deviation(
                Kind.SETTINGS,
                f"{setting} is {now_on}, and the rules are made for {1 - now_on}",
                f"adapted the rules to {setting}={now_on}",
            )


def _addresses(plan: HostPlan) -> Iterator[Deviation]:
    if not plan.options.assign:
        return
    assigned = dict(plan.addresses)
    standing = rtnetlink.addresses()
    here = {own.address.ip for own in standing}
    hosts = [own for own in standing if own.address.ip not in assigned]
    for address, interface in plan.addresses:
        right = subnet_interface(address, hosts) or LOOPBACK
        if address not in here:
            yield Deviation(
                Kind.ADDRESSES,
                f"the VIP {address} is no address of this host any more",
                f"restored VIP {address} on {right}",
            )
        elif interface != right:
            yield Deviation(
                Kind.ADDRESSES,
                f"the VIP {address} is on {interface}, and {right} has its subnet",
                f"moved VIP {address} to {right}",
            )
    for address in sorted(_missing(plan, here) - assigned.keys(), key=str):
        yield Deviation(
            Kind.ADDRESSES,
            f"the VIP {address}, which featherlb did not assign, is no address of this host any"
            " more",
            f"assigned VIP {address}",
            ours=False,
        )


def _programs(plan: HostPlan) -> Iterator[Deviation]:
    wanted, there = _links(plan)
    if wanted - there:
        names = {link.index: link.name for link in rtnetlink.links().values()}
        where = ", ".join(sorted(names[index] for index in wanted - there if index in names))
        yield Deviation(
            Kind.PROGRAMS,
            f"the eBPF program does not run at {where}",
            f"attached the eBPF program to {where}",
        )
    elif there - wanted:
        yield Deviation(
            Kind.PROGRAMS,
            "the eBPF program runs at an interface that is down, gone or part of another one",
            "detached the eBPF program from an interface that is down, gone or part of another one",
        )


def _links(plan: HostPlan) -> tuple[set[int], set[int]]:
    """The indexes of the interfaces at which programs are to run, and of those where they do."""
    wanted = {link.index for link in rtnetlink.links().values() if programs.runs_at(link)}
    return wanted, programs.attached(plan.instance)


def moved(plan: HostPlan) -> bool:
    """See `Host.moved`."""
    if plan.options.assign:
        return False
    return _missing(plan, {own.address.ip for own in rtnetlink.addresses()}) != plan.foreign


def _missing(plan: HostPlan, here: Set[Address]) -> set[Address]:
    """The plan's VIPs whose packets are not for this host, which has the addresses `here`."""
    vips = {vip.address for _, vip in plan.vips if not vip.wildcard}
    return {vip for vip in vips - here if not is_local(vip)}
