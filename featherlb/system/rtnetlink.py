"""rtnetlink(7): links, addresses, routes and neighbours of this host, read, changed and watched.

Everything concerns the network namespace of the calling thread. The kernel answers each request
before the request returns. Where it lacks memory for the moment, or its tables change while it
lists them, the request is repeated; what fails for good is a HostError.

Numbers are in host byte order, addresses in network byte order; constants have the names of
linux/netlink.h, rtnetlink.h, if_link.h, if_addr.h, if_arp.h, if.h neighbour.h and fib_rules.h.
"""

import errno
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from ipaddress import ip_address, ip_interface, ip_network

from featherlb.model import (
    Address,
    HostAddress,
    Link,
    Neighbour,
    NeighbourKey,
    Network,
    Route,
    RoutingRule,
)
from featherlb.model.errors import HostError
from featherlb.net.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    attribute,
    parse_attributes,
    read_text,
    text_attribute,
)
from featherlb.net.protocols import ADDRESS_FAMILIES
from featherlb.system import netlink

RTM_GETLINK = 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_GETROUTE = 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_GETRULE = 34

ARPHRD_ETHER = 1
IFF_UP, IFF_LOOPBACK, IFF_RUNNING = 0x1, 0x8, 0x40
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 10, 18
IFLA_INFO_KIND, IFLA_INFO_SLAVE_KIND = 1, 4

IFA_ADDRESS, IFA_LOCAL = 1, 2
IFA_F_NODAD = 0x02

RTN_UNICAST, RTN_LOCAL = 1, 2
RT_TABLE_DEFAULT, RT_TABLE_MAIN, RT_TABLE_LOCAL = 253, 254, 255
RTNH_F_DEAD = 0x1
RTA_DST, RTA_SRC, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC = 1, 2, 4, 5, 6, 7
RTA_MULTIPATH, RTA_TABLE, RTA_VIA = 9, 15, 18

FR_ACT_TO_TBL = 1
FRA_FWMARK, FRA_TABLE = 10, 15

NTF_USE, NTF_PROXY = 0x01, 0x08
NDA_DST, NDA_LLADDR = 1, 2
NUD_NONE, NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE = 0x00, 0x02, 0x04, 0x08, 0x10
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
NUD_FIXED = NUD_NOARP | NUD_PERMANENT
"""States in which there is nothing to resolve."""
NUD_USABLE = NUD_FIXED | NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE
"""States in which a neighbour's MAC address is used: all but INCOMPLETE and FAILED."""

RTMGRP_LINK, RTMGRP_NEIGH = 0x1, 0x4
RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE = 0x10, 0x40, 0x80
RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE, RTMGRP_IPV6_RULE = 0x100, 0x400, 0x40000

_LINK = struct.Struct("=BxHiII")  # ifinfomsg
_ADDRESS = struct.Struct("=BBBBi")  # ifaddrmsg
_ROUTE = struct.Struct("=BBBBBBBBI")  # rtmsg
_NEXT_HOP = struct.Struct("=HBBi")  # rtnexthop
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # ndmsg

_ALL_ZEROS = {ADDRESS_FAMILIES[4]: bytes(4), ADDRESS_FAMILIES[6]: bytes(16)}


# Requests


class _Answers:
    """What the kernel has said in a block of `asked_once`, over one socket."""

    def __init__(self, kernel: "Connection") -> None:
        self.kernel = kernel
        self.links: dict[int, Link] | None = None
        self.addresses: list[HostAddress] | None = None
        self.rules: list[RoutingRule] | None = None
        self.routes: dict[tuple[Address, Address | None], Route | None] = {}


_answers: ContextVar[_Answers | None] = ContextVar("answers", default=None)


@contextmanager
def asked_once() -> Iterator[None]:
    """In this block, and in threads that it starts by asyncio.to_thread, requests share a socket,
    and the kernel is asked once for links, addresses, routing rules, and the route to each
    destination.

    For one change of the services, which asks for the same routes at every stage. An answer is as
    old as the block at most; a block inside another asks anew.
    """
    with _failing("open a netlink socket"):
        kernel = Connection()
    with kernel:
        token = _answers.set(_Answers(kernel))
        try:
            yield
        finally:
            _answers.reset(token)


@contextmanager
def _connected() -> Iterator["Connection"]:
    """The socket of the block, or one for this request."""
    answers = _answers.get()
    if answers is not None:
        yield answers.kernel
        return
    with Connection() as kernel:
        yield kernel


def links() -> dict[int, Link]:
    """All interfaces, by index."""
    answers = _answers.get()
    if answers is not None and answers.links is not None:
        return answers.links
    with _failing("list the interfaces"), _connected() as kernel:
        parsed = [parse_link(body) for body in kernel.dump(RTM_GETLINK, bytes(_LINK.size))]
    found = {link.index: link for link in parsed}
    if answers is not None:
        answers.links = found
    return found


def addresses() -> list[HostAddress]:
    """All addresses of this host's interfaces."""
    answers = _answers.get()
    if answers is not None and answers.addresses is not None:
        return answers.addresses
    with _failing("list the addresses"), _connected() as kernel:
        bodies = kernel.dump(RTM_GETADDR, bytes(_ADDRESS.size))
    interfaces = links()
    found = []
    for body in bodies:
        family, prefixlen, _, _, index = _ADDRESS.unpack_from(body)
        attributes = parse_attributes(body, _ADDRESS.size)
        packed = attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS)
        # An interface that was removed meanwhile took its addresses along.
        if packed and family in _ALL_ZEROS and index in interfaces:
            name = interfaces[index].name
            found.append(HostAddress(name, ip_interface((packed, prefixlen))))
    if answers is not None:
        answers.addresses = found
    return found


def route(destination: Address, source: Address | None = None) -> Route | None:
    """The kernel's own choice of a route, by its rules and tables, for packets from `source` if
    that is given (an address of this host); None if it has none, or only one that leads nowhere."""
    answers = _answers.get()
    if answers is None:
        return _ask_for_route(destination, source)
    if (destination, source) not in answers.routes:
        answers.routes[destination, source] = _ask_for_route(destination, source)
    return answers.routes[destination, source]


def _ask_for_route(destination: Address, source: Address | None) -> Route | None:
    lengths = destination.max_prefixlen, source.max_prefixlen if source is not None else 0
    body = _ROUTE.pack(ADDRESS_FAMILIES[destination.version], *lengths, *[0] * 6)
    if source is not None:
        body += attribute(RTA_SRC, source.packed)
    with _failing(f"look up the route to {destination}"), _connected() as kernel:
        try:
            answer = kernel.get(RTM_GETROUTE, body + attribute(RTA_DST, destination.packed))
        except OSError as error:
            if error.errno in netlink.TRANSIENT:
                raise
            return None
    kind = _ROUTE.unpack_from(answer)[7]
    return _parse_route(answer) if kind in (RTN_UNICAST, RTN_LOCAL) else None


def routes() -> dict[Network, Route]:
    """The routes in the tables main and default, by prefix: the preferred one where there are
    several, with its first next hop that is alive."""
    best: dict[Network, tuple[int, Route]] = {}
    for family in ADDRESS_FAMILIES.values():
        with _failing("list the routes"), _connected() as kernel:
            bodies = kernel.dump(RTM_GETROUTE, _ROUTE.pack(family, *[0] * 8))
        for body in bodies:
            _, length, _, _, table, _, _, kind, flags = _ROUTE.unpack_from(body)
            attributes = parse_attributes(body, _ROUTE.size)
            if RTA_TABLE in attributes:
                table = _number(attributes[RTA_TABLE])
            if kind != RTN_UNICAST or table not in (RT_TABLE_DEFAULT, RT_TABLE_MAIN):
                continue
            found = _parse_route(body)
            if found is None or flags & RTNH_F_DEAD:
                continue
            network = ip_network((attributes.get(RTA_DST, _ALL_ZEROS[family]), length))
            metric = _number(attributes.get(RTA_PRIORITY, b""))
            if network not in best or metric < best[network][0]:
                best[network] = metric, found
    return {network: found for network, (_, found) in best.items()}


def rules() -> list[RoutingRule]:
    """The rules of policy routing, without those that every host has."""
    answers = _answers.get()
    if answers is not None and answers.rules is not None:
        return answers.rules
    found = []
    for version, family in ADDRESS_FAMILIES.items():
        with _failing("list the routing rules"), _connected() as kernel:
            try:
                bodies = kernel.dump(RTM_GETRULE, _ROUTE.pack(family, *[0] * 8))
            except OSError as error:
                # A kernel without policy routing has none.
                if error.errno in netlink.TRANSIENT:
                    raise
                continue
        for body in bodies:
            # A fib_rule_hdr has the fields of an rtmsg at the same places.
            _, _, _, _, table, _, _, action, _ = _ROUTE.unpack_from(body)
            attributes = parse_attributes(body, _ROUTE.size)
            if FRA_TABLE in attributes:
                table = _number(attributes[FRA_TABLE])
            usual = table in (RT_TABLE_DEFAULT, RT_TABLE_MAIN, RT_TABLE_LOCAL)
            if action != FR_ACT_TO_TBL or not usual:
                found.append(RoutingRule(version, marked=FRA_FWMARK in attributes))
    if answers is not None:
        answers.rules = found
    return found


def neighbours() -> dict[NeighbourKey, Neighbour]:
    """All that the kernel knows of its neighbours."""
    with _failing("list the neighbours"), _connected() as kernel:
        bodies = kernel.dump(RTM_GETNEIGH, bytes(_NEIGHBOUR.size))
    parsed = (parse_neighbour(RTM_NEWNEIGH, body) for body in bodies)
    return {one.key: one for one in parsed if one is not None}


def solicit(
    unknown: Iterable[NeighbourKey], known: Iterable[NeighbourKey]
) -> frozenset[NeighbourKey]:
    """Have the kernel resolve `unknown` neighbours by broadcast, and probe `known` ones by unicast.
    Returns those for which its neighbour table has no room.

    Neighbours whose link is down or gone are left out.
    """
    refused = set()
    # As if a packet were to be sent (net/core/neighbour.c: neigh_add).
    requests = [(key, NLM_F_CREATE | NLM_F_REPLACE, NUD_NONE, NTF_USE) for key in unknown]
    requests += [(key, NLM_F_REPLACE, NUD_PROBE, 0) for key in known]
    with _failing("solicit neighbours"), _connected() as kernel:
        for (link, address), mode, state, flags in requests:
            body = _NEIGHBOUR.pack(ADDRESS_FAMILIES[address.version], link, state, flags, 0)
            try:
                kernel.change(RTM_NEWNEIGH, mode, body + attribute(NDA_DST, address.packed))
            except OSError as error:
                if error.errno in (errno.ENOBUFS, errno.ENOMEM):
                    refused.add((link, address))
    return frozenset(refused)


def has_proxy(address: Address, interface: str) -> bool:
    """Whether a proxy entry (`ip neigh add proxy`) makes this host answer for an address on this
    interface."""
    with _failing("look for a proxied neighbour"), _connected() as kernel:
        try:
            index = kernel.index_of(interface)
            body = _NEIGHBOUR.pack(ADDRESS_FAMILIES[address.version], index, 0, NTF_PROXY, 0)
            kernel.get(RTM_GETNEIGH, body + attribute(NDA_DST, address.packed))
        except OSError as error:
            if error.errno in netlink.TRANSIENT:
                raise
            return False
    return True


def add_address(address: Address, interface: str) -> bool:
    """Give this host the address alone, without a subnet; False if it was there already."""
    with _failing(f"add {address} to interface {interface}"):
        try:
            _change_address(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, address, interface)
        except FileExistsError:
            return False
    return True


def remove_address(address: Address, interface: str) -> None:
    """Take the address away; no error if it, or the interface, has gone."""
    with _failing(f"remove {address} from interface {interface}"):
        try:
            _change_address(RTM_DELADDR, 0, address, interface)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                raise


def _change_address(kind: int, mode: int, address: Address, interface: str) -> None:
    flags = IFA_F_NODAD if address.version == 6 else 0
    if (answers := _answers.get()) is not None:
        answers.addresses = None
        answers.routes.pop((address, None), None)
    with _connected() as kernel:
        index = kernel.index_of(interface)
        family = ADDRESS_FAMILIES[address.version]
        body = _ADDRESS.pack(family, address.max_prefixlen, flags, 0, index)
        body += attribute(IFA_LOCAL, address.packed) + attribute(IFA_ADDRESS, address.packed)
        kernel.change(kind, mode, body)


# Changes


RTMGRP_ADDRESSES = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR
RTMGRP_EVERYTHING = (
    RTMGRP_ADDRESSES
    | (RTMGRP_LINK | RTMGRP_NEIGH)
    | (RTMGRP_IPV4_ROUTE | RTMGRP_IPV4_RULE)
    | (RTMGRP_IPV6_ROUTE | RTMGRP_IPV6_RULE)
)


class Monitor(netlink.Monitor):
    """A socket that receives every change of links, addresses, routes, rules and neighbours, or
    only those of these `groups`."""

    def __init__(self, groups: int = RTMGRP_EVERYTHING) -> None:
        """HostError if this host can't have it."""
        with _failing("watch links and routes"):
            super().__init__(netlink.NETLINK_ROUTE, groups)

    def read(self) -> tuple[bool, dict[NeighbourKey, Neighbour]]:
        """What has changed since the last call, as of `messages`: whether anything but neighbours
        may have, and the neighbours that have."""
        other = False
        changed: dict[NeighbourKey, Neighbour] = {}
        for message in self.messages():
            if message.kind not in (RTM_NEWNEIGH, RTM_DELNEIGH):
                other = True
            elif (one := parse_neighbour(message.kind, message.body)) is not None:
                changed[one.key] = one
        return other, changed


class Connection(netlink.Connection):
    """A socket for requests, one after the other."""

    def __init__(self) -> None:
        super().__init__(netlink.NETLINK_ROUTE)

    def index_of(self, interface: str) -> int:
        """The index of the interface with this name; OSError ENODEV if there is none."""
        name = text_attribute(IFLA_IFNAME, interface)
        return parse_link(self.get(RTM_GETLINK, bytes(_LINK.size) + name)).index


@contextmanager
def _failing(task: str) -> Iterator[None]:
    """HostError for whatever the kernel refuses."""
    try:
        yield
    except OSError as error:
        raise HostError(f"cannot {task}: {os.strerror(error.errno or 0)}") from None


# Messages


def _number(payload: bytes) -> int:
    return int.from_bytes(payload, sys.byteorder)


def parse_link(body: bytes) -> Link:
    _, kind, index, flags, _ = _LINK.unpack_from(body)
    attributes = parse_attributes(body, _LINK.size)
    info = parse_attributes(attributes.get(IFLA_LINKINFO, b""), 0)
    kind_of_master = read_text(info.get(IFLA_INFO_SLAVE_KIND, b""))
    mac = attributes.get(IFLA_ADDRESS, b"")
    return Link(
        index=index,
        name=read_text(attributes[IFLA_IFNAME]),
        mac=mac,
        mtu=_number(attributes[IFLA_MTU]),
        ethernet=kind == ARPHRD_ETHER and not flags & IFF_LOOPBACK and len(mac) == 6,
        up=bool(flags & IFF_UP),
        running=bool(flags & IFF_RUNNING),
        # A member of a VRF keeps its packets (Documentation/networking/vrf.rst).
        member=IFLA_MASTER in attributes and kind_of_master != "vrf",
        bridge=read_text(info.get(IFLA_INFO_KIND, b"")) == "bridge",
    )


def _parse_route(body: bytes) -> Route | None:
    """None where no link is left to send to."""
    attributes = parse_attributes(body, _ROUTE.size)
    local = _ROUTE.unpack_from(body)[7] == RTN_LOCAL
    link = _number(attributes.get(RTA_OIF, b""))
    hop = attributes
    for dead, index, one in _next_hops(attributes.get(RTA_MULTIPATH, b"")):
        if not dead:
            link, hop = index, one
            break
    if not link:
        return None
    gateway = None
    if RTA_VIA in hop:
        gateway = ip_address(hop[RTA_VIA][2:])  # behind the address family
    elif RTA_GATEWAY in hop:
        gateway = ip_address(hop[RTA_GATEWAY])
    source = attributes.get(RTA_PREFSRC)
    return Route(link, gateway, ip_address(source) if source else None, local)


def _next_hops(payload: bytes) -> Iterator[tuple[bool, int, dict[int, bytes]]]:
    """Those of a route with several: whether it is dead, its link, its attributes."""
    at = 0
    while at + _NEXT_HOP.size <= len(payload):
        length, flags, _, index = _NEXT_HOP.unpack_from(payload, at)
        end = at + max(_NEXT_HOP.size, length)
        yield bool(flags & RTNH_F_DEAD), index, parse_attributes(payload[:end], at + _NEXT_HOP.size)
        at = (end + 3) & ~3


def parse_neighbour(kind: int, body: bytes) -> Neighbour | None:
    """The neighbour of an RTM_NEWNEIGH or RTM_DELNEIGH message, without its header; None if it is
    about a bridge's table or a proxied address."""
    family, link, state, flags, _ = _NEIGHBOUR.unpack_from(body)
    attributes = parse_attributes(body, _NEIGHBOUR.size)
    if family not in _ALL_ZEROS or flags & NTF_PROXY or NDA_DST not in attributes:
        return None
    if kind == RTM_DELNEIGH:
        state = NUD_NONE
    mac = attributes.get(NDA_LLADDR, b"")
    return Neighbour(
        link,
        ip_address(attributes[NDA_DST]),
        mac if state & NUD_USABLE and len(mac) == 6 else None,
        bool(state & NUD_FIXED),
    )
