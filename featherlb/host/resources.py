"""What an instance changes on the host, as resources: settings, addresses, sets, chains.

A resource goes into the journal as a dict (`encode`) before it is set up, so that any later process
can revert it (`decode`, then `revert`). Two instances may need the same one: theirs then have equal
`name`s, and the last of them to stop reverts it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Any

from featherlb.system import ipset, iptables, nft_chains, programs, rtnetlink, sysctl
from featherlb.system.journal import Record


@dataclass(frozen=True, slots=True)
class Setting:
    """A kernel setting; `restore` has the values before, its own first, then those that changed
    along with it."""

    key: str
    value: str
    restore: tuple[sysctl.Setting, ...]

    @property
    def name(self) -> str:
        return f"setting {sysctl.dotted(self.key)}"

    def revert(self) -> None:
        """Put the old values back, unless somebody has set another value since."""
        if sysctl.read(self.key) != self.value:
            return
        for key, old in self.restore:
            # An interface that has gone took its settings along.
            if sysctl.read(key) not in (None, old):
                sysctl.write(key, old)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A VIP given to an interface."""

    address: str
    interface: str

    @property
    def name(self) -> str:
        return f"address {self.address} on {self.interface}"

    def revert(self) -> None:
        rtnetlink.remove_address(ip_address(self.address), self.interface)


@dataclass(frozen=True, slots=True)
class Sets:
    """All ipsets of an instance."""

    instance: int

    @property
    def name(self) -> str:
        return f"ipsets featherlb-{self.instance}-*"

    def revert(self) -> None:
        ipset.remove(self.instance)


@dataclass(frozen=True, slots=True)
class Rules:
    """All chains of an instance in one address family."""

    instance: int
    family: int

    @property
    def name(self) -> str:
        return f"{iptables.COMMANDS[self.family]} chains FEATHERLB-*-{self.instance}"

    def revert(self) -> None:
        iptables.remove(self.family, self.instance)


@dataclass(frozen=True, slots=True)
class Chains:
    """The built-in chains of a table of iptables' nf_tables variant that were not there before, and
    whether the table was not."""

    family: int
    table: str
    chains: tuple[str, ...]
    table_too: bool

    @property
    def name(self) -> str:
        return f"empty chains of the nftables table {_WORDS[self.family]} {self.table}"

    def revert(self) -> None:
        """Remove what is empty: somebody else may use it by now."""
        nft_chains.remove(self.family, self.table, self.chains, table_too=self.table_too)


@dataclass(frozen=True, slots=True)
class Programs:
    """The programs of an instance in the kernel, with all that they have there. Its `workers` share
    flows and SNAT ports out by this `seed` (`model/shard.py`)."""

    instance: int
    workers: int
    seed: int

    @property
    def name(self) -> str:
        return f"eBPF programs of instance {self.instance}"

    def revert(self) -> None:
        programs.remove(self.instance)


_WORDS = {4: "ip", 6: "ip6"}

Resource = Setting | Assignment | Sets | Rules | Chains | Programs
_KINDS: dict[str, type[Resource]] = {
    kind.__name__: kind for kind in (Setting, Assignment, Sets, Rules, Chains, Programs)
}


def newest_first(resources: Sequence[Resource]) -> list[Resource]:
    """The order in which to revert them: the last one first, but sets when no rule asks for them
    any more, whichever came first, and chains when they are empty."""
    newest = resources[::-1]
    return sorted(newest, key=lambda one: (isinstance(one, Chains), isinstance(one, Sets)))


def encode(resource: Resource) -> dict[str, Any]:
    """The resource as JSON can hold it."""
    return {"kind": type(resource).__name__} | asdict(resource)


def decode(data: Mapping[str, Any]) -> Resource | None:
    """The inverse of `encode`, also after JSON made lists of tuples; None if it is no resource, but
    damaged or one of another version's."""
    fields = {name: value for name, value in data.items() if name != "kind"}
    try:
        if "restore" in fields:
            fields["restore"] = tuple((key, old) for key, old in fields["restore"])
        if "chains" in fields:
            fields["chains"] = tuple(fields["chains"])
        resource = _KINDS[data["kind"]](**fields)
        return resource if _is_whole(resource) else None
    except (KeyError, TypeError, ValueError):
        return None


def changes(record: Record) -> list[Resource]:
    """The resources of a record that can be reverted, in the order they were set up."""
    found = map(decode, record.changes)
    return [resource for resource in found if resource is not None]


def _is_whole(resource: Resource) -> bool:
    """Whether all values have their types. ValueError if an address is none."""
    match resource:
        case Setting(str(), str(), restore):
            return all(isinstance(word, str) for pair in restore for word in pair)
        case Assignment(str(address), str()):
            return bool(ip_address(address))
        case Sets(int()) | Programs(int(), int(), int()):
            return True
        case Rules(int(), family):
            return family in _WORDS
        case Chains(family, str(), names, bool()):
            return family in _WORDS and all(isinstance(name, str) for name in names)
    return False
