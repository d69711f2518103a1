"""What somebody else changed on the host against a plan, and what an update repairs."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from featherlb.host.plan import HostPlan
from featherlb.system import ipset, iptables, rtnetlink, sysctl

OwnRules = Mapping[int, list[tuple[str, str]]]
"""By address family, what `iptables.own` has found."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """One difference."""

    text: str
    """What is wrong, as a sentence."""
    repair: str
    """What an update does about it; `{}` stands for the number of rules."""


def find(plan: HostPlan, rules: OwnRules) -> Iterator[Deviation]:
    """The differences, where `rules` are those that the plan has made."""
    for family, before in rules.items():
        command = iptables.COMMANDS[family]
        ipv6 = " of IPv6" if family == 6 else ""
        now = iptables.own(family, plan.instance)
        for table, rule in before:
            if (table, rule) not in now:
                yield Deviation(
                    f"the {command} rule `{table}: {rule}` is gone",
                    f"restored {{}} of table {table}{ipv6}",
                )
        for table, rule in now:
            if (table, rule) not in before:
                yield Deviation(
                    f"the {command} rule `{table}: {rule}` is not featherlb's",
                    f"removed {{}} of others from table {table}{ipv6}",
                )
    for wanted in plan.sets:
        if ipset.entries(wanted.name) != set(wanted.entries):
            yield Deviation(
                f"the ipset {wanted.name} is gone or has other entries",
                f"restored ipset {wanted.name}",
            )
    for key, value in plan.settings:
        if (now_set := sysctl.read(key)) not in (None, value):
            name = sysctl.dotted(key)
            yield Deviation(
                f"{name} is {now_set} and has to be {value}", f"restored {name}={value}"
            )
    if plan.addresses:
        here = {own.address.ip for own in rtnetlink.addresses()}
        for address, interface in plan.addresses:
            if address not in here:
                yield Deviation(
                    f"the VIP {address} is no address of this host any more",
                    f"restored VIP {address} on {interface}",
                )


def repairs(deviations: Iterable[Deviation]) -> list[str]:
    """What an update does about them, one line for all rules of a table: `restored 10 rules of
    table raw`."""
    counts = Counter(one.repair for one in deviations)
    return [text.format(f"{n} {'rule' if n == 1 else 'rules'}") for text, n in counts.items()]
