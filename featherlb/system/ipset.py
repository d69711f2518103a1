"""Kernel sets of endpoints (ipset), through pyroute2's netlink code: no ipset program needed.

Sets are named `featherlb-<instance>-<role><family>`. A rule that asks for membership costs the same
for one endpoint and for thousands.
"""

import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from pyroute2 import IPSet
from pyroute2.ipset import PortEntry
from pyroute2.netlink.exceptions import IPSetError, NetlinkError

from featherlb.model import Address, Endpoint, Protocol
from featherlb.model.errors import HostError
from featherlb.net.protocols import ADDRESS_FAMILIES

MAX_ENTRIES = 1 << 20
"""Above any realistic number of endpoints, which the kernel's default of 65536 is not."""
RELEASE_TIMEOUT = 20.0
"""Seconds until a removed rule has released its set: nf_tables frees rules after a delay."""

_NAME = re.compile(r"^featherlb-(\d+)-")


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """An endpoint of a protocol; with `peer`, only packets to or from that address."""

    endpoint: Endpoint
    protocol: Protocol
    peer: Address | None = None

    def __str__(self) -> str:
        text = f"{self.endpoint.address},{self.protocol}:{self.endpoint.port}"
        return text if self.peer is None else f"{text},{self.peer}"


@dataclass(frozen=True, slots=True)
class Set:
    """The wanted content of a set: either all entries have a `peer`, or none has."""

    name: str
    family: int
    entries: tuple[Entry, ...]

    @property
    def type(self) -> str:
        return "hash:ip,port" if self.entries[0].peer is None else "hash:ip,port,ip"

    def commands(self) -> list[str]:
        """As shell commands, for display."""
        family = "inet" if self.family == 4 else "inet6"
        return [
            f"ipset create {self.name} {self.type} family {family} maxelem {MAX_ENTRIES}",
            *(f"ipset add {self.name} {entry}" for entry in self.entries),
        ]


def supported() -> bool:
    """Whether this kernel has the set types (it loads their modules on demand)."""
    try:
        with _open() as ipset:
            for kind in ("hash:ip,port", "hash:ip,port,ip"):
                ipset.get_supported_revisions(kind)
    except (IPSetError, NetlinkError, OSError):
        return False
    return True


def replace(wanted: Set, instance: int) -> None:
    """Create the set, or swap the standing one's content in one step; HostError if refused."""
    fresh = f"featherlb-{instance}-new"
    try:
        with _open() as ipset:
            names = _names(ipset)
            if fresh in names:
                ipset.destroy(fresh)
            _fill(ipset, fresh, wanted)
            if wanted.name in names:
                ipset.swap(fresh, wanted.name)
                ipset.destroy(fresh)
            else:
                ipset.rename(fresh, wanted.name)
    except (IPSetError, NetlinkError) as error:
        raise HostError(f"the kernel refused the ipset '{wanted.name}': {error}") from None


def remove(instance: int, keep: frozenset[str] = frozenset()) -> None:
    """Destroy the instance's sets but for `keep`; HostError if some rule still uses one."""
    with _open() as ipset:
        for name in _names(ipset):
            if (owner := _NAME.match(name)) and int(owner[1]) == instance and name not in keep:
                _destroy(ipset, name)


def entries(name: str) -> set[Entry] | None:
    """What is in a set; None if there is no such set."""
    try:
        with _open() as ipset:
            return {
                _entry(data)
                for answer in ipset.list(name)
                for data in answer.get_attr("IPSET_ATTR_ADT").get_attrs("IPSET_ATTR_DATA")
            }
    except (IPSetError, NetlinkError):
        return None


def instances() -> set[int]:
    """The instances that have sets; empty where the kernel knows no sets."""
    try:
        with _open() as ipset:
            return {int(owner[1]) for name in _names(ipset) if (owner := _NAME.match(name))}
    except (IPSetError, NetlinkError, OSError):
        return set()


@contextmanager
def _open() -> Iterator[Any]:
    with closing(IPSet()) as ipset:
        yield ipset


def _names(ipset: Any) -> list[str]:
    return [name for header in ipset.list() if (name := header.get_attr("IPSET_ATTR_SETNAME"))]


def _fill(ipset: Any, name: str, wanted: Set) -> None:
    family = ADDRESS_FAMILIES[wanted.family]
    ipset.create(name, stype=wanted.type, family=family, maxelem=MAX_ENTRIES)
    for entry in wanted.entries:
        port = PortEntry(entry.endpoint.port, protocol=int(entry.protocol))
        parts = [str(entry.endpoint.address), port]
        if entry.peer is not None:
            parts.append(str(entry.peer))
        ipset.add(name, tuple(parts), family=family, etype=wanted.type.removeprefix("hash:"))


def _entry(data: Any) -> Entry:
    peer = data.get_attr("IPSET_ATTR_IP2")
    return Entry(
        Endpoint(
            _address(data.get_attr("IPSET_ATTR_IP_FROM")), data.get_attr("IPSET_ATTR_PORT_FROM")
        ),
        Protocol(data.get_attr("IPSET_ATTR_PROTO")),
        None if peer is None else _address(peer),
    )


def _address(value: Any) -> Address:
    text = value.get_attr("IPSET_ATTR_IPADDR_IPV4") or value.get_attr("IPSET_ATTR_IPADDR_IPV6")
    return ip_address(text)


def _destroy(ipset: Any, name: str) -> None:
    deadline = time.monotonic() + RELEASE_TIMEOUT
    while True:
        try:
            ipset.destroy(name)
            return
        except IPSetError as error:
            if time.monotonic() > deadline:
                raise HostError(
                    f"the ipset '{name}' could not be removed ({error}): another rule uses it;"
                    " remove that rule, then run `featherlb down`"
                ) from None
        time.sleep(0.01)
