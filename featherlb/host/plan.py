"""The plan: everything that an instance changes on the host."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featherlb.datapaths.nfqueue.rules import queue_rules
from featherlb.datapaths.offload.rules import Load, offload_rules, offload_settings
from featherlb.datapaths.rules.endpoints import Parts
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.datapaths.rules.guards import settings
from featherlb.datapaths.rules.steering import pass_mark
from featherlb.datapaths.rules.vip_addresses import assignments
from featherlb.host.claims import (
    kept_entries,
    on_datapath,
    source_entries,
    tracked_entries,
    untracked_entries,
)
from featherlb.model import Address, Datapath, Protocol, Service, Vip
from featherlb.system import ipset, iptables, sysctl
from featherlb.system.ruleset import Ruleset, Table, join


@dataclass(frozen=True, slots=True)
class HostPlan:
    """Everything that `Host.apply` changes; equal plans change the same."""

    options: Options
    vips: tuple[tuple[Protocol, Vip], ...]
    settings: tuple[sysctl.Setting, ...]
    sets: tuple[ipset.Set, ...]
    rules: Mapping[int, Ruleset]
    """By address family, 4 or 6."""
    addresses: tuple[tuple[Address, str], ...]
    """VIPs to assign, each with the interface that gets it."""
    sources: frozenset[str]
    """See `source_entries`."""
    raw: frozenset[str]
    queued: frozenset[str]
    """See `kept_entries`."""
    tracked: frozenset[str]
    """See `tracked_entries`."""
    untracked: frozenset[str]
    """See `untracked_entries`."""
    order: int
    earlier: tuple[int, ...]
    """See `Facts`."""
    offloads: bool
    """The kernel forwards open flows of some service."""

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
    prefix = f"featherlb-{options.queue}-"
    raw = on_datapath(services, Datapath.RAW)
    offloaded = on_datapath(services, Datapath.OFFLOAD)
    rest = on_datapath(services, Datapath.NFQUEUE)
    queued = [Parts.of(rest, family, prefix) for family in families]
    wired = [Parts.of(raw, family, f"{prefix}raw-") for family in families]
    loads = [Load.of(offloaded, family, f"{prefix}ct-") for family in families]
    sets = [wanted for part in (*queued, *wired) for wanted in part.sets()]
    sets += [wanted for load in loads for wanted in load.sets()]
    return HostPlan(
        options=options,
        vips=vips,
        settings=tuple(dict.fromkeys((*settings(queued, facts), *offload_settings(loads, facts)))),
        sets=tuple(sets) if facts.sets else (),
        rules={
            queue.family: _merge(
                queue_rules(queue, wire, options, facts) if rest or raw else {},
                offload_rules(load, offloaded, options, facts, handoff) if offloaded else {},
            )
            for queue, wire, load in zip(queued, wired, loads, strict=True)
        },
        addresses=tuple(assignments(vips, facts)) if options.assign else (),
        sources=source_entries(services),
        raw=kept_entries(raw),
        queued=kept_entries(rest),
        tracked=tracked_entries(services),
        untracked=untracked_entries(services),
        order=facts.order,
        earlier=facts.earlier,
        offloads=any(service.datapath.kernel_forwards for service in services),
    )


def _merge(one: Ruleset, other: Ruleset) -> Ruleset:
    """Both rulesets as one, in the order of their tables: steering comes last."""
    nothing = Table()
    return {
        name: join(one.get(name, nothing), other.get(name, nothing))
        for name in ("filter", "nat", "mangle", "raw")
        if name in one or name in other
    }
