"""The plan: everything that an instance changes on the host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featherlb.datapaths.host_side import Replies, Scope, by_datapath, rules_of
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.datapaths.rules.gate import NO_SERVICE, Refusing
from featherlb.datapaths.rules.guards import guarding
from featherlb.datapaths.rules.queueing import Queued, queue_rules
from featherlb.datapaths.rules.steering import pass_mark
from featherlb.datapaths.rules.vip_addresses import assignments
from featherlb.host.claims import claims, source_entries
from featherlb.model import Address, Protocol, Service, Vip
from featherlb.system import ipset, iptables, sysctl
from featherlb.system.ruleset import Ruleset, join

TABLES = ("filter", "nat", "mangle", "raw")
"""In the order of their commit: packets are steered last, when everything else stands."""


@dataclass(frozen=True, slots=True)
class HostPlan:
    """Everything that `Host.apply` changes; equal plans change the same."""

    options: Options
    vips: tuple[tuple[Protocol, Vip], ...]
    settings: tuple[sysctl.Setting, ...]
    sets: tuple[ipset.AnySet, ...]
    rules: Mapping[int, Ruleset]
    """By address family, 4 or 6."""
    addresses: tuple[tuple[Address, str], ...]
    """VIPs to assign, each with the interface that gets it."""
    foreign: frozenset[Address]
    """VIPs that are not addresses of this host, if the instance doesn't assign them."""
    bridge_filter: frozenset[int] | None
    """See `Facts`; None if no rule depends on it."""
    sources: frozenset[str]
    """See `source_entries`."""
    claims: Mapping[Replies, frozenset[str]]
    """See `claims.claims`."""
    order: int
    earlier: tuple[int, ...]
    """See `Facts`."""
    refusing: tuple[Refusing, ...]
    """The rules in the table raw that refuse clients, or drop packets that no client has sent."""
    offloads: bool
    """Open flows of some service are forwarded in the kernel, even when the instance has gone."""
    programs: bool
    """Programs run at the host's links."""

    @property
    def pass_mark(self) -> int | None:
        """The mark with which workers repeat (NF_REPEAT) packets that they don't know, if others
        run on this host.

        A backend's reply in `dnat` mode doesn't tell the VIP, and an ICMP error doesn't tell the
        flow. Instances see each other's, the latest instance first: it passes on what isn't in
        its flow table. Accepting instead would end the way through the table, before the
        others' rules.
        """
        return pass_mark(self.order) if self.earlier else None

    @property
    def instance(self) -> int:
        return self.options.queue

    def describe(self) -> list[str]:
        """The exact changes as shell commands that would have the same effect."""
        return [
            *(f"sysctl -w {sysctl.dotted(key)}={value}" for key, value in self.settings),
            *(line for wanted in self.sets for line in wanted.commands()),
            *(
                line
                for family, rules in self.rules.items()
                for line in iptables.commands(family, rules)
            ),
            *(
                f"ip address add {address}/{address.max_prefixlen} dev {interface}"
                for address, interface in self.addresses
            ),
        ]


def build(
    services: Sequence[Service], options: Options, facts: Facts, *, handoff: bool = False
) -> HostPlan:
    """The plan for `services`, whose backends have `local` and `sources` filled in.

    With `handoff` it is for the time from this process to the next: the kernel forwards open flows,
    and refuses new ones or, with `fail_open`, sends each to a backend at random.
    """
    vips = tuple(
        sorted(
            {(service.protocol, vip) for service in services for vip in service.vips},
            key=lambda entry: (entry[1].address.version, *entry),
        )
    )
    families = sorted({vip.address.version for _, vip in vips})
    scopes = [
        (
            rules_of(datapath),
            Scope(services=ours, family=family, options=options, facts=facts, handoff=handoff),
        )
        for datapath, ours in by_datapath(services).items()
        for family in families
        if any(vip.address.version == family for service in ours for vip in service.vips)
    ]
    queued: dict[int, list[Queued]] = {family: [] for family in families}
    for rules, scope in scopes:
        if (found := rules.queued(scope)) is not None:
            queued[scope.family].append(found)
    needs = [(scope.family, rules.needs(scope, queued[scope.family])) for rules, scope in scopes]
    rulesets: dict[int, Ruleset] = {
        family: _merge(
            queue_rules(queued[family], options, facts),
            *(one.rules for theirs, one in needs if theirs == family),
        )
        for family in families
    }
    return HostPlan(
        options=options,
        vips=vips,
        settings=tuple(dict.fromkeys(setting for _, one in needs for setting in one.settings)),
        sets=tuple(wanted for _, one in needs for wanted in one.sets) if facts.sets else (),
        rules=rulesets,
        addresses=tuple(assignments(vips, facts)) if options.assign else (),
        foreign=frozenset(
            vip.address
            for _, vip in vips
            if not options.assign and not vip.wildcard and vip.address not in facts.local_vips
        ),
        bridge_filter=facts.bridge_filter
        if any(service.datapath.takes_frames for service in services)
        else None,
        sources=source_entries(services),
        claims=claims(services),
        order=facts.order,
        earlier=facts.earlier,
        refusing=(
            *(rule for _, one in needs for rule in one.refusing),
            *(
                Refusing(family, chain, position, *NO_SERVICE)
                for family, ruleset in rulesets.items()
                for chain, position in guarding(ruleset["raw"])
            ),
        ),
        offloads=any(service.datapath.outlives_workers for service in services),
        programs=any(one.programs for _, one in needs),
    )


def _merge(*rulesets: Ruleset) -> Ruleset:
    """All rulesets as one."""
    return {
        name: join(*(ruleset[name] for ruleset in rulesets if name in ruleset))
        for name in TABLES
        if any(name in ruleset for ruleset in rulesets)
    }
