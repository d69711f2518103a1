"""The host side of a datapath: what it needs on the host, and why a host cannot run it.

The plan and the checks ask each datapath without knowing it. Its answers are in the modules `rules`
and `requirements` of the folder that has the datapath's name, where `rules_of` and
`requirements_of` find them. A new datapath is one more such folder.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from typing import Protocol, cast

from featherlb.datapaths.rules.endpoints import Group, Parts
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.datapaths.rules.gate import Refusing
from featherlb.datapaths.rules.queueing import Queued
from featherlb.model import Datapath, NatMode, Service
from featherlb.system import ipset, sysctl
from featherlb.system.ruleset import Ruleset


class Replies(StrEnum):
    """How the kernel handles a backend's replies, for all instances. TRACKED and UNTRACKED exclude
    each other, as do QUEUED and DROPPED."""

    TRACKED = "tracked"
    """Conntrack must see them."""
    UNTRACKED = "untracked"
    """Rules keep them out of conntrack."""
    QUEUED = "queued"
    """Those to other hosts must reach the kernel, which queues them."""
    DROPPED = "dropped"
    """The kernel drops those to other hosts: workers receive them as frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """The scope of a datapath's part of a plan: its services with VIPs of one address family."""

    services: Sequence[Service]
    family: int
    options: Options
    facts: Facts
    handoff: bool = False
    """The plan is for the time between two processes (see `host.plan.build`)."""
    _parts: dict[str, Parts] = field(default_factory=dict, init=False, repr=False, compare=False)

    def parts(self, label: str = "") -> Parts:
        """The VIPs and backends; `label` distinguishes the sets of datapaths."""
        if label not in self._parts:
            self._parts[label] = Parts.of(self.services, self.family, self._prefix + label)
        return self._parts[label]

    def group(self, name: str, entries: Iterable[ipset.Entry]) -> Group:
        """Endpoints with a set of this name."""
        return Group.of(self._prefix + name, self.family, entries)

    @property
    def _prefix(self) -> str:
        return f"featherlb-{self.options.queue}-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """A datapath's configuration on the host for one scope, except for the queues."""

    sets: tuple[ipset.AnySet, ...] = ()
    """All sets that its rules match, including those of the queues."""
    refusing: tuple[Refusing, ...] = ()
    """Its rules in the table raw that refuse clients."""
    settings: tuple[sysctl.Setting, ...] = ()
    rules: Ruleset = field(default_factory=dict)
    programs: bool = False
    """Programs in the kernel, at the host's links (`system/programs.py`)."""


class Rules(Protocol):
    """The module `rules` of a datapath: its part of the plan."""

    def replies(self, nat: NatMode) -> frozenset[Replies]:
        """How its rules handle the replies of a backend in this NAT mode."""
        ...

    def queued(self, scope: Scope) -> Queued | None:
        """Which packets go to the workers' queues untracked; None if none do."""
        ...

    def needs(self, scope: Scope, queued: Sequence[Queued]) -> Needs:
        """What else it needs. `queued` is what all datapaths queue in this address family."""
        ...


class Requirements(Protocol):
    """The module `requirements` of a datapath: why a host cannot run it."""

    def obstacles(self, services: Sequence[Service]) -> Iterator[str]:
        """Why this host cannot run these services, or any, with it: sentences that name the fix.
        Backends are prepared (`host.prepare`)."""
        ...

    def limits(self, services: Sequence[Service], options: Options, facts: Facts) -> Iterator[str]:
        """Why one instance cannot have all these services with it, as sentences."""
        ...


def rules_of(datapath: Datapath) -> Rules:
    """The module `rules` of the datapath."""
    return cast(Rules, import_module(f"featherlb.datapaths.{datapath}.rules"))


def requirements_of(datapath: Datapath) -> Requirements:
    """The module `requirements` of the datapath."""
    return cast(Requirements, import_module(f"featherlb.datapaths.{datapath}.requirements"))


def by_datapath(services: Sequence[Service]) -> Mapping[Datapath, list[Service]]:
    """The services of each datapath that has any, in the order of `Datapath`."""
    found = {
        datapath: [service for service in services if service.datapath is datapath]
        for datapath in Datapath
    }
    return {datapath: ours for datapath, ours in found.items() if ours}
