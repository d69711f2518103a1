"""The kinds of change that an instance makes to the host, each with its undoing.

A change goes into the journal as a dict (`encode`) before it is made, so that any later process can
undo it (`decode`, then `undo`). Two instances may need the same change: they then have equal
`resource`s, and it is undone when the last of them leaves.
"""

from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Any

from featherlb.system import ipset, iptables, network, sysctl


@dataclass(frozen=True, slots=True)
class Setting:
    """A kernel setting, with what to put back: itself first, then what changed along with it."""

    key: str
    value: str
    restore: tuple[sysctl.Setting, ...]

    @property
    def resource(self) -> str:
        return f"setting {sysctl.dotted(self.key)}"

    def undo(self) -> None:
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
    def resource(self) -> str:
        return f"address {self.address} on {self.interface}"

    def undo(self) -> None:
        network.remove_address(ip_address(self.address), self.interface)


@dataclass(frozen=True, slots=True)
class Sets:
    """All ipsets of an instance."""

    instance: int

    @property
    def resource(self) -> str:
        return f"ipsets featherlb-{self.instance}-*"

    def undo(self) -> None:
        ipset.remove(self.instance)


@dataclass(frozen=True, slots=True)
class Rules:
    """All chains of an instance in one address family."""

    instance: int
    family: int

    @property
    def resource(self) -> str:
        return f"{iptables.COMMANDS[self.family]} chains FEATHERLB-*-{self.instance}"

    def undo(self) -> None:
        iptables.remove(self.family, self.instance)


Change = Setting | Assignment | Sets | Rules
_KINDS: dict[str, type[Change]] = {
    kind.__name__: kind for kind in (Setting, Assignment, Sets, Rules)
}


def encode(change: Change) -> dict[str, Any]:
    """The change as JSON can hold it."""
    return {"kind": type(change).__name__} | asdict(change)


def decode(data: dict[str, Any]) -> Change:
    """The inverse of `encode`, also after JSON made lists of tuples."""
    fields = {name: value for name, value in data.items() if name != "kind"}
    if "restore" in fields:
        fields["restore"] = tuple((key, old) for key, old in fields["restore"])
    return _KINDS[data["kind"]](**fields)
