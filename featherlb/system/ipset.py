"""Kernel sets of endpoints and of networks (ipset) over netlink: no ipset program needed.

Sets are named `featherlb-<instance>-<role><family>`. A rule that asks for membership costs the same
for one endpoint and for thousands.

Numbers are those of include/uapi/linux/netfilter/ipset/ip_set.h; in attributes, values are in
network order.
"""

import errno
import os
import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
CMD_LIST, CMD_ADD, CMD_DEL, CMD_TYPE = 7, 9, 10, 13
ATTR_PROTOCOL, ATTR_SETNAME, ATTR_TYPENAME, ATTR_REVISION, ATTR_FAMILY = 1, 2, 3, 4, 5
ATTR_SETNAME2 = ATTR_TYPENAME
ATTR_FLAGS, ATTR_DATA, ATTR_ADT, ATTR_LINENO = 6, 7, 8, 9
ATTR_IP, ATTR_CIDR, ATTR_PORT, ATTR_PROTO, ATTR_IP2 = 1, 3, 4, 7, 20
"""Inside an entry."""
ATTR_HASHSIZE, ATTR_MAXELEM, ATTR_ELEMENTS = 18, 19, 24
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
LEAST_HASHED = 1024
"""Buckets of a set: the kernel's default."""
AT_ONCE = 500
"""Entries per message; the length of an attribute is a 16-bit number."""

_SUBNET4 = struct.Struct("=HHHHHH4sHHBxxx")
_SUBNET6 = struct.Struct("=HHHHHH16sHHBxxx")
"""An entry of a set of networks, with its attributes' lengths and types: the address within two
others, the prefix length beside it."""
_HEAD = 12
"""Bytes of it in front of the address. The kernel doesn't say there that it is in network order,
and has to be told."""

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
        return _commands(self, map(str, self.entries))


@dataclass(frozen=True, slots=True)
class Networks:
    """The wanted content of a set of networks: the addresses of one family among these."""

    name: str
    family: int
    addresses: NetworkSet

    type = "hash:net"

    def subnets(self) -> list[tuple[int, int]]:
        """The entries: address and prefix length of each."""
        found = self.addresses.networks(self.family)
        if found and not found[0][1]:  # an entry has one bit at least
            return [(0, 1), (1 << (31 if self.family == 4 else 127), 1)]
        return found

    def commands(self) -> list[str]:
        """As shell commands, for display."""
        kind = IPv4Address if self.family == 4 else IPv6Address
        return _commands(self, (f"{kind(address)}/{prefix}" for address, prefix in self.subnets()))


AnySet = Set | Networks
ENDPOINTS = ("hash:ip,port", "hash:ip,port,ip")
"""The types of sets of endpoints."""


def _commands(wanted: AnySet, entries: Iterable[str]) -> list[str]:
    family = "inet" if wanted.family == 4 else "inet6"
    return [
        f"ipset create {wanted.name} {wanted.type} family {family} maxelem {MAX_ENTRIES}",
        *(f"ipset add {wanted.name} {entry}" for entry in entries),
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


def put(wanted: AnySet, instance: int) -> None:
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


def update(before: Networks, wanted: Networks) -> None:
    """Change a set that has the content `before`, by the differences: of hundreds of thousands of
    networks, few change at a time. New ones are added first. HostError if it has another content
    by now, or the kernel refuses."""
    old, new = before.addresses, wanted.addresses
    leaving = Networks(wanted.name, wanted.family, old.without(new)).subnets()
    coming = Networks(wanted.name, wanted.family, new.without(old)).subnets()
    staying = set(leaving).intersection(coming)
    with _refusing(wanted.name), _Kernel() as kernel:
        for command, found in ((CMD_ADD, coming), (CMD_DEL, leaving)):
            changing = [one for one in found if one not in staying]
            kernel.change_entries(command, wanted, _subnets(wanted.family, changing))


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


def has(wanted: AnySet) -> bool:
    """Whether there is this set, with this content. HostError if the kernel doesn't say."""
    with _refusing(wanted.name), _Kernel() as kernel:
        try:
            if isinstance(wanted, Set):
                return set(kernel.entries(wanted.name)) == set(wanted.entries)
            expected = _subnets(wanted.family, wanted.subnets())
            found = kernel.subnets(wanted.name, wanted.family)
            return found == {entry[_HEAD:] for entry in expected}
        except FileNotFoundError:
            return False


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

    def entries(self, name: str) -> Iterator[Entry]:
        for part in self._parts(name):
            for _, data in each_attribute(part):
                yield _entry(parse_attributes(data))

    def subnets(self, name: str, family: int) -> set[bytes]:
        """The entries of a set of networks, as `_subnets` writes them, without their heads."""
        size = (_SUBNET4 if family == 4 else _SUBNET6).size
        return {
            part[at + _HEAD : at + size]
            for part in self._parts(name)
            for at in range(0, len(part), size)
        }

    def _parts(self, name: str) -> Iterator[bytes]:
        """The entries of a set as attributes; a long list comes in several parts."""
        for body in self._list(text_attribute(ATTR_SETNAME, name)):
            yield parse_attributes(body, NFGENMSG).get(ATTR_ADT, b"")

    def create(self, name: str, wanted: AnySet) -> None:
        """A set with this name and the wanted entries."""
        version = ADDRESS_FAMILIES[wanted.family]
        content = (
            text_attribute(ATTR_SETNAME, name)
            + text_attribute(ATTR_TYPENAME, wanted.type)
            + attribute(ATTR_REVISION, bytes([self.revision(wanted.type, wanted.family)]))
            + attribute(ATTR_FAMILY, bytes([version]))
        )
        if isinstance(wanted, Set):
            entries = list(map(_data, wanted.entries))
        else:
            entries = _subnets(wanted.family, wanted.subnets())
        # With room for all of them at once, the kernel needn't move them time and again.
        shape = _number32(ATTR_MAXELEM, MAX_ENTRIES)
        shape += _number32(ATTR_HASHSIZE, min(max(len(entries), LEAST_HASHED), MAX_ENTRIES))
        content += _nested(ATTR_DATA, shape)
        self._change(CMD_CREATE, NLM_F_CREATE | NLM_F_EXCL, _body(content, version))
        self.change_entries(CMD_ADD, replace(wanted, name=name), entries)

    def change_entries(self, command: int, one: AnySet, entries: Sequence[bytes]) -> None:
        """Add these to a set, or delete them from it; each must be new there, or be there."""
        named = text_attribute(ATTR_SETNAME, one.name)
        for first in range(0, len(entries), AT_ONCE):
            some = _nested(ATTR_ADT, b"".join(entries[first : first + AT_ONCE]))
            content = named + some + _number32(ATTR_LINENO, 0)
            self._change(command, NLM_F_EXCL, _body(content, ADDRESS_FAMILIES[one.family]))

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


def _subnets(family: int, subnets: Iterable[tuple[int, int]]) -> list[bytes]:
    """Entries with these addresses and prefix lengths."""
    form, size = (_SUBNET4, 4) if family == 4 else (_SUBNET6, 16)
    head = (
        *(form.size, ATTR_DATA | NLA_F_NESTED),
        *(size + 8, ATTR_IP | NLA_F_NESTED),
        *(size + 4, ATTR_IPADDR[family] | NLA_F_NET_BYTEORDER),
    )
    return [
        form.pack(*head, address.to_bytes(size), 5, ATTR_CIDR, prefix)
        for address, prefix in subnets
    ]


def _data(entry: Entry) -> bytes:
    content = (
        _address(ATTR_IP, entry.endpoint.address)
        + attribute(ATTR_PORT | NLA_F_NET_BYTEORDER, entry.endpoint.port.to_bytes(2, "big"))
        + attribute(ATTR_PROTO, bytes([entry.protocol]))
    )
    if entry.peer is not None:
        content += _address(ATTR_IP2, entry.peer)
    return _nested(ATTR_DATA, content)


def _entry(data: dict[int, bytes]) -> Entry:
    def address(payload: bytes) -> Address:
        ((_, packed),) = each_attribute(payload)
        return ip_address(packed)

    return Entry(
        Endpoint(address(data[ATTR_IP]), int.from_bytes(data[ATTR_PORT], "big")),
        Protocol(data[ATTR_PROTO][0]),
        address(data[ATTR_IP2]) if ATTR_IP2 in data else None,
    )


def _name(body: bytes) -> str:
    return parse_attributes(body, NFGENMSG)[ATTR_SETNAME].rstrip(b"\0").decode()
