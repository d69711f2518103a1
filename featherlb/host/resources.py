"""What an instance changes on the host, as resources: settings, addresses, sets, chains.

A resource goes into the journal as a dict (`encode`) before it is set up, so that any later process
can revert it (`decode`, then `revert`). Two instances may need the same one: theirs then have equal
`name`s, and the last of them to stop reverts it.
"""

from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Any

from featherlb.system import ipset, iptables, rtnetlink, sysctl


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


Resource = Setting | Assignment | Sets | Rules
_KINDS: dict[str, type[Resource]] = {
    kind.__name__: kind for kind in (Setting, Assignment, Sets, Rules)
}


def encode(resource: Resource) -> dict[str, Any]:
    """The resource as JSON can hold it."""
    return {"kind": type(resource).__name__} | asdict(resource)


def decode(data: dict[str, Any]) -> Resource:
    """The inverse of `encode`, also after JSON made lists of tuples."""
    fields = {name: value for name, value in data.items() if name != "kind"}
    if "restore" in fields:
        fields["restore"] = tuple((key, old) for key, old in fields["restore"])
    return _KINDS[data["kind"]](**fields)
