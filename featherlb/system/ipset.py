"""Kernel sets of endpoints and of networks (ipset) over netlink: no ipset program needed.

Sets are named `featherlb-<instance>-<role><family>`. A rule that asks for membership costs the same
for one endpoint and for thousands.

Numbers are those of include/uapi/linux/netfilter/ipset/ip_set.h; in attributes, values are in
network order.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address

from featherlb.model import Address, Endpoint, NetworkSet, Protocol
from featherlb.model.errors import HostError
from featherlb.net.netlink import (
    NFGENMSG,
    NFNL_SUBSYS_IPSET,
    NLA_F_NESTED,
    NLA_F_NET_BYTEORDER,
    NLM_F_CREATE,
    NLM_F_EXCL,
    attribute,
    each_attribute,
    nfnl_body,
    parse_attributes,
    text_attribute,
)
from featherlb.net.protocols import ADDRESS_FAMILIES
from featherlb.system.netlink import NETLINK_NETFILTER, Connection

CMD_CREATE, CMD_DESTROY, CMD_RENAME, CMD_SWAP = 2, 3, 5, 6
CMD_LIST, CMD_ADD, CMD_TYPE = 7, 9, 13
ATTR_PROTOCOL, ATTR_SETNAME, ATTR_TYPENAME, ATTR_REVISION, ATTR_FAMILY = 1, 2, 3, 4, 5
ATTR_SETNAME2 = ATTR_TYPENAME
ATTR_FLAGS, ATTR_DATA, ATTR_ADT, ATTR_LINENO = 6, 7, 8, 9
ATTR_IP, ATTR_CIDR, ATTR_PORT, ATTR_PROTO, ATTR_IP2 = 1, 3, 4, 7, 20
"""Inside an entry."""
ATTR_MAXELEM, ATTR_ELEMENTS = 19, 24
"""Inside the data of a set."""
ATTR_IPADDR = {4: 1, 6: 2}
FLAG_LIST_SETNAME, FLAG_LIST_HEADER = 1 << 1, 1 << 2
PROTOCOL_VERSION = 6
"""What every kernel since 2.6.39 accepts (IPSET_PROTOCOL_MIN)."""
BUSY = 4100
ERRORS = {
    4098: "the kernel has no such set type",
    4099: "there are too many sets",
    BUSY: "a rule uses it",
    4352: "it is full",
}
"""Those of its own (IPSET_ERR_*)."""

MAX_ENTRIES = 1 << 20
"""Above any realistic number of entries, which the kernel's default of 65536 is not."""
RELEASE_TIMEOUT = 20.0
"""Seconds until a removed rule has released its set: nf_tables frees rules after a delay."""
AT_ONCE = 500
"""Entries per message; the length of an attribute is a 16-bit number."""

_NAME = re.compile(r"^featherlb-(\d+)-")


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """An endpoint of a protocol; with `peer`, only packets to or from that address. One of several
    ports can't be in a set."""

    endpoint: Endpoint
    protocol: Protocol
    peer: Address | None = None

    def __str__(self) -> str:
        text = f"{self.endpoint.address},{self.protocol}:{self.endpoint.port}"
        if self.endpoint.last_port:
            text += f"-{self.endpoint.last_port}"
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
        return _commands(self)


@dataclass(frozen=True, slots=True)
class Subnet:
    """A network: its address as a number, and the length of its prefix."""

    family: int
    address: int
    prefix: int

    def __str__(self) -> str:
        kind = IPv4Address if self.family == 4 else IPv6Address
        return f"{kind(self.address)}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class Networks:
    """The wanted content of a set of networks: the addresses of one family among these."""

    name: str
    family: int
    addresses: NetworkSet

    type = "hash:net"

    @property
    def entries(self) -> tuple[Subnet, ...]:
        found = []
        for address, prefix in self.addresses.networks(self.family):
            if prefix:
                found.append(Subnet(self.family, address, prefix))
            else:  # an entry has one bit at least
                half = 1 << (31 if self.family == 4 else 127)
                found += [Subnet(self.family, 0, 1), Subnet(self.family, half, 1)]
        return tuple(found)

    def commands(self) -> list[str]:
        """As shell commands, for display."""
        return _commands(self)


AnySet = Set | Networks
AnyEntry = Entry | Subnet
ENDPOINTS = ("hash:ip,port", "hash:ip,port,ip")
"""The types of sets of endpoints."""


def _commands(wanted: AnySet) -> list[str]:
    family = "inet" if wanted.family == 4 else "inet6"
    return [
        f"ipset create {wanted.name} {wanted.type} family {family} maxelem {MAX_ENTRIES}",
        *(f"ipset add {wanted.name} {entry}" for entry in wanted.entries),
    ]


def supported(*kinds: str) -> bool:
    """Whether this kernel has these types of sets (it loads their modules on demand)."""
    try:
        with _Kernel() as kernel:
            for kind in kinds:
                kernel.revision(kind, 4)
    except OSError:
        return False
    return True


def replace(wanted: AnySet, instance: int) -> None:
    """Create the set, or swap the standing one's content in one step; HostError if refused."""
    fresh = f"featherlb-{instance}-new"
    with _refusing(wanted.name), _Kernel() as kernel:
        names = kernel.names()
        if fresh in names:
            _until_unlisted(partial(kernel.destroy, fresh))
        kernel.create(fresh, wanted)
        if wanted.name in names:
            _until_unlisted(partial(kernel.exchange, CMD_SWAP, fresh, wanted.name))
            _until_unlisted(partial(kernel.destroy, fresh))
        else:
            _until_unlisted(partial(kernel.exchange, CMD_RENAME, fresh, wanted.name))


def _until_unlisted(change: Callable[[], None]) -> None:
    """Change a set. The kernel refuses that while somebody lists its entries, perhaps another
    thread of this process (net/netfilter/ipset/ip_set_core.c: ref_netlink)."""
    deadline = time.monotonic() + RELEASE_TIMEOUT
    while True:
        try:
            return change()
        except OSError as error:
            if error.errno not in (errno.EBUSY, BUSY) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def remove(instance: int, keep: frozenset[str] = frozenset()) -> None:
    """Destroy the instance's sets but for `keep`; HostError if some rule still uses one."""
    with _refusing(f"featherlb-{instance}-*"), _Kernel() as kernel:
        for name in kernel.names():
            if (owner := _NAME.match(name)) and int(owner[1]) == instance and name not in keep:
                _destroy(kernel, name)


def entries(name: str) -> set[AnyEntry] | None:
    """What is in a set; None if there is no such set. HostError if the kernel doesn't say."""
    with _refusing(name), _Kernel() as kernel:
        try:
            return set(kernel.entries(name))
        except FileNotFoundError:
            return None


def sizes() -> dict[str, int]:
    """The number of entries of every set, by name: cheaper than the entries. HostError if the
    kernel doesn't say."""
    with _refusing("*"), _Kernel() as kernel:
        return kernel.sizes()


def instances() -> set[int]:
    """The instances that have sets; empty where the kernel knows no sets."""
    try:
        with _Kernel() as kernel:
            return {int(owner[1]) for name in kernel.names() if (owner := _NAME.match(name))}
    except OSError:
        return set()


class _Kernel(Connection):
    """Requests to ipset; OSError with the kernel's error."""

    def __init__(self) -> None:
        super().__init__(NETLINK_NETFILTER)

    def revision(self, kind: str, family: int) -> int:
        """The newest revision of a set type that the kernel has."""
        version = ADDRESS_FAMILIES[family]
        content = text_attribute(ATTR_TYPENAME, kind) + attribute(ATTR_FAMILY, bytes([version]))
        answer = self.get(_kind(CMD_TYPE), _body(content, version))
        return parse_attributes(answer, NFGENMSG)[ATTR_REVISION][0]

    def names(self) -> list[str]:
        return [_name(body) for body in self._list(_number32(ATTR_FLAGS, FLAG_LIST_SETNAME))]

    def sizes(self) -> dict[str, int]:
        found = {}
        for body in self._list(_number32(ATTR_FLAGS, FLAG_LIST_HEADER)):
            data = parse_attributes(parse_attributes(body, NFGENMSG)[ATTR_DATA])
            found[_name(body)] = int.from_bytes(data.get(ATTR_ELEMENTS, b""), "big")
        return found

    def entries(self, name: str) -> Iterator[AnyEntry]:
        # A long list comes in several parts.
        for body in self._list(text_attribute(ATTR_SETNAME, name)):
            for _, data in each_attribute(parse_attributes(body, NFGENMSG).get(ATTR_ADT, b"")):
                yield _entry(parse_attributes(data))

    def create(self, name: str, wanted: AnySet) -> None:
        """A set with this name and the wanted entries."""
        version = ADDRESS_FAMILIES[wanted.family]
        content = (
            text_attribute(ATTR_SETNAME, name)
            + text_attribute(ATTR_TYPENAME, wanted.type)
            + attribute(ATTR_REVISION, bytes([self.revision(wanted.type, wanted.family)]))
            + attribute(ATTR_FAMILY, bytes([version]))
            + _nested(ATTR_DATA, _number32(ATTR_MAXELEM, MAX_ENTRIES))
        )
        self._change(CMD_CREATE, NLM_F_CREATE | NLM_F_EXCL, _body(content, version))
        entries = wanted.entries
        for first in range(0, len(entries), AT_ONCE):
            some = entries[first : first + AT_ONCE]
            content = text_attribute(ATTR_SETNAME, name)
            content += _nested(ATTR_ADT, b"".join(map(_data, some))) + _number32(ATTR_LINENO, 0)
            self._change(CMD_ADD, NLM_F_EXCL, _body(content, version))

    def destroy(self, name: str) -> None:
        self._change(CMD_DESTROY, 0, _body(text_attribute(ATTR_SETNAME, name)))

    def exchange(self, command: int, name: str, other: str) -> None:
        """Rename a set, or swap two."""
        content = text_attribute(ATTR_SETNAME, name) + text_attribute(ATTR_SETNAME2, other)
        self._change(command, 0, _body(content))

    def _list(self, content: bytes) -> list[bytes]:
        return self.dump(_kind(CMD_LIST), _body(content))

    def _change(self, command: int, mode: int, body: bytes) -> None:
        self.change(_kind(command), mode, body)


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """HostError for whatever the kernel refuses."""
    try:
        yield
    except OSError as error:
        raise HostError(f"the kernel refused the ipset '{name}': {_reason(error)}") from None


def _reason(error: OSError) -> str:
    number = error.errno or 0
    return ERRORS.get(number, os.strerror(number).lower())


def _destroy(kernel: _Kernel, name: str) -> None:
    deadline = time.monotonic() + RELEASE_TIMEOUT
    while True:
        try:
            kernel.destroy(name)
            return
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            if time.monotonic() > deadline:
                raise HostError(
                    f"the ipset '{name}' could not be removed ({_reason(error)}): another rule uses"
                    " it; remove that rule, then run `featherlb down`"
                ) from None
        time.sleep(0.01)


# Messages


def _kind(command: int) -> int:
    return NFNL_SUBSYS_IPSET << 8 | command


def _body(content: bytes, version: int = 0) -> bytes:
    return nfnl_body(version, 0, attribute(ATTR_PROTOCOL, bytes([PROTOCOL_VERSION])) + content)


def _number32(kind: int, number: int) -> bytes:
    return attribute(kind | NLA_F_NET_BYTEORDER, number.to_bytes(4, "big"))


def _nested(kind: int, content: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, content)


def _address(kind: int, address: Address) -> bytes:
    packed = attribute(ATTR_IPADDR[address.version] | NLA_F_NET_BYTEORDER, address.packed)
    return _nested(kind, packed)


def _data(entry: AnyEntry) -> bytes:
    if isinstance(entry, Subnet):
        kind = IPv4Address if entry.family == 4 else IPv6Address
        network = _address(ATTR_IP, kind(entry.address))
        return _nested(ATTR_DATA, network + attribute(ATTR_CIDR, bytes([entry.prefix])))
    content = (
        _address(ATTR_IP, entry.endpoint.address)
        + attribute(ATTR_PORT | NLA_F_NET_BYTEORDER, entry.endpoint.port.to_bytes(2, "big"))
        + attribute(ATTR_PROTO, bytes([entry.protocol]))
    )
    if entry.peer is not None:
        content += _address(ATTR_IP2, entry.peer)
    return _nested(ATTR_DATA, content)


def _entry(data: dict[int, bytes]) -> AnyEntry:
    def address(payload: bytes) -> Address:
        ((_, packed),) = each_attribute(payload)
        return ip_address(packed)

    if ATTR_PORT not in data:
        network = address(data[ATTR_IP])
        return Subnet(network.version, int(network), data[ATTR_CIDR][0])
    return Entry(
        Endpoint(address(data[ATTR_IP]), int.from_bytes(data[ATTR_PORT], "big")),
        Protocol(data[ATTR_PROTO][0]),
        address(data[ATTR_IP2]) if ATTR_IP2 in data else None,
    )


def _name(body: bytes) -> str:
    return parse_attributes(body, NFGENMSG)[ATTR_SETNAME].rstrip(b"\0").decode()
