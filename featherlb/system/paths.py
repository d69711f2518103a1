"""Links, routes and neighbours of this host: where a frame has to go, and word of every change.

Everything concerns the network namespace of the calling process. pyroute2's synchronous calls don't
work inside a running asyncio loop: call from a thread there. `Changes` is a plain socket, and may
be read anywhere.
"""

import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from featherlb.model import Address, Network

_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
# linux/if_arp.h, linux/if.h
_ARPHRD_ETHER = 1
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
# linux/rtnetlink.h
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_RT_TABLES = (253, 254)  # default, main
_RTNH_F_DEAD = 0x1
_GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000
"""RTMGRP_ of links, neighbours, and of each family's addresses, routes and rules."""
_RTM_NEWNEIGH, _RTM_DELNEIGH = 28, 29
# linux/neighbour.h
_NTF_USE, _NTF_PROXY = 0x01, 0x08
_NDA_DST, _NDA_LLADDR = 1, 2
_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
"""NUD_ states in which a neighbour's MAC address is used: all but INCOMPLETE and FAILED."""
_FIXED = 0x40 | 0x80
"""NUD_NOARP, NUD_PERMANENT: nobody has to be asked."""
# linux/if_packet.h
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_NLMSG = struct.Struct("=IHHII")
_NDMSG = struct.Struct("=BxxxiHBB")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface. `member` says that it belongs to a bridge, a bond or the like, which gets its
    packets; `ethernet`, that frames have Ethernet headers and come from elsewhere."""

    index: int
    name: str
    address: bytes
    mtu: int
    ethernet: bool
    up: bool
    member: bool

    @property
    def carries_frames(self) -> bool:
        """Whether frames can be taken from it and given to it."""
        return self.ethernet and self.up and not self.member


@dataclass(frozen=True, slots=True)
class Way:
    """Out of which interface (its index) something is reached: by way of `gateway`, or of None
    where it is on the link itself."""

    link: int
    gateway: Address | None


Neighbour = tuple[int, Address]
"""An interface's index, and an address on its link."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the kernel knows of a neighbour: its MAC address, if it has one that it uses, and
    whether it stands `fixed`, so that there is nothing to ask."""

    address: bytes | None
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class NetworkState:
    """This host's interfaces, addresses and routes, and the ways to the destinations asked for.

    Where several routes have one prefix, the preferred one is there; of several next hops, one.
    """

    interfaces: dict[int, Interface]
    addresses: frozenset[Address]
    routes: dict[Network, Way]
    ways: dict[Address, Way]


def has_packet_sockets() -> bool:
    """Whether this process can have packet sockets that keep the kernel's offloads (packet(7))."""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
            link.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    except OSError:
        return False
    return True


def read_interfaces() -> dict[int, Interface]:
    """All interfaces, by index."""
    with IPRoute() as ipr:
        return _interfaces(ipr)


def read_state(destinations: Iterable[Address]) -> NetworkState:
    """How things are now."""
    with IPRoute() as ipr:
        return NetworkState(
            interfaces=_interfaces(ipr),
            addresses=frozenset(
                ip_address(text)
                for entry in ipr.get_addr()
                if (text := entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS"))
            ),
            routes=_routes(ipr),
            ways={
                destination: way
                for destination in destinations
                if (way := _way(ipr, destination)) is not None
            },
        )


def read_neighbours() -> dict[Neighbour, Entry]:
    """All that the kernel knows of its neighbours."""
    found = {}
    with IPRoute() as ipr:
        for message in ipr.get_neighbours():
            text = message.get_attr("NDA_DST")
            if text is not None:
                mac = message.get_attr("NDA_LLADDR") or ""
                entry = _entry(message["state"], bytes.fromhex(mac.replace(":", "")))
                found[message["ifindex"], ip_address(text)] = entry
    return found


def solicit(unknown: Iterable[Neighbour], known: Iterable[Neighbour]) -> None:
    """Let the kernel ask for neighbours: for unknown ones by broadcast; known ones, whether they
    are still where they were.

    What can't be asked, because its link is down or gone, is left out.
    """
    with IPRoute() as ipr:
        for link, address in unknown:
            # As if a packet were to be sent (net/core/neighbour.c: neigh_add).
            with suppress(NetlinkError):
                ipr.neigh("replace", dst=str(address), ifindex=link, flags=_NTF_USE, state="none")
        for link, address in known:
            with suppress(NetlinkError):
                ipr.neigh("change", dst=str(address), ifindex=link, state="probe")


class Changes:
    """A socket that hears of every change of links, addresses, routes and neighbours."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self._socket.bind((0, _GROUPS))

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> tuple[bool, dict[Neighbour, Entry]]:
        """What has happened since the last call: whether anything but neighbours may be
        different now, and the neighbours that are. Doesn't block.

        OverflowError if news were lost: everything may be different.
        """
        other = False
        neighbours: dict[Neighbour, Entry] = {}
        while True:
            try:
                messages = self._socket.recv(_BUFFER)
            except BlockingIOError:
                return other, neighbours
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                raise OverflowError from None
            for kind, content in _split(messages):
                if kind not in (_RTM_NEWNEIGH, _RTM_DELNEIGH):
                    other = True
                elif (news := parse_neighbour(kind, content)) is not None:
                    neighbours[news[0]] = news[1]

    def close(self) -> None:
        self._socket.close()


def parse_neighbour(kind: int, content: bytes) -> tuple[Neighbour, Entry] | None:
    """The neighbour of an RTM_NEWNEIGH or RTM_DELNEIGH message (rtnetlink(7)), without its header;
    None if it is about a bridge's table or a proxied address."""
    family, link, state, flags, _ = _NDMSG.unpack_from(content)
    if family not in _FAMILIES.values() or flags & _NTF_PROXY:
        return None
    attributes = dict(_attributes(content[_NDMSG.size :]))
    if _NDA_DST not in attributes:
        return None
    if kind == _RTM_DELNEIGH:
        state = 0
    entry = _entry(state, attributes.get(_NDA_LLADDR, b""))
    return (link, ip_address(attributes[_NDA_DST])), entry


def _split(messages: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _NLMSG.size <= len(messages):
        length, kind, *_ = _NLMSG.unpack_from(messages, at)
        yield kind, messages[at + _NLMSG.size : at + length]
        at += max(_NLMSG.size, (length + 3) & ~3)


def _attributes(content: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(content):
        length, kind = _ATTRIBUTE.unpack_from(content, at)
        yield kind, content[at + _ATTRIBUTE.size : at + length]
        at += max(_ATTRIBUTE.size, (length + 3) & ~3)


def _entry(state: int, mac: bytes) -> Entry:
    usable = state & _USABLE and len(mac) == 6
    return Entry(mac if usable else None, bool(state & _FIXED))


def _interfaces(ipr: Any) -> dict[int, Interface]:
    found = {}
    for link in ipr.get_links():
        address = bytes.fromhex((link.get_attr("IFLA_ADDRESS") or "").replace(":", ""))
        flags = link["flags"]
        found[link["index"]] = Interface(
            index=link["index"],
            name=link.get_attr("IFLA_IFNAME"),
            address=address,
            mtu=link.get_attr("IFLA_MTU"),
            ethernet=link["ifi_type"] == _ARPHRD_ETHER
            and not flags & _IFF_LOOPBACK
            and len(address) == 6,
            up=bool(flags & _IFF_UP),
            # Whoever is in a VRF keeps its packets (Documentation/networking/vrf.rst).
            member=link.get_attr("IFLA_MASTER") is not None
            and link.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_KIND") != "vrf",
        )
    return found


def _routes(ipr: Any) -> dict[Network, Way]:
    best: dict[Network, tuple[int, Way]] = {}
    for version, family in _FAMILIES.items():
        for route in ipr.get_routes(family=family):
            if route["type"] != _RTN_UNICAST or route.get_attr("RTA_TABLE") not in _RT_TABLES:
                continue
            if route["flags"] & _RTNH_F_DEAD:
                continue
            default = "0.0.0.0" if version == 4 else "::"
            prefix = f"{route.get_attr('RTA_DST') or default}/{route['dst_len']}"
            network = ip_network(prefix, strict=False)
            metric = route.get_attr("RTA_PRIORITY") or 0
            way = _route_way(route)
            if way is not None and (network not in best or metric < best[network][0]):
                best[network] = metric, way
    return {network: way for network, (_, way) in best.items()}


def _way(ipr: Any, destination: Address) -> Way | None:
    """The kernel's own choice; None without a route, and for an address of this host."""
    family = _FAMILIES[destination.version]
    try:
        route = next(iter(ipr.route("get", dst=str(destination), family=family)))
    except NetlinkError:
        return None
    return _route_way(route) if route["type"] == _RTN_UNICAST else None


def _route_way(route: Any) -> Way | None:
    """Of a route with several next hops, the first one that lives."""
    link, hop = route.get_attr("RTA_OIF"), route
    for one in route.get_attr("RTA_MULTIPATH") or ():
        if not one["flags"] & _RTNH_F_DEAD:
            link, hop = one["oif"], one
            break
    if link is None:
        return None
    via = hop.get_attr("RTA_VIA")
    gateway = via["addr"] if via else hop.get_attr("RTA_GATEWAY")
    return Way(link, ip_address(gateway) if gateway else None)
