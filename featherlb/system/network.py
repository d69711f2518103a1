"""Addresses, routes and proxy neighbours of this host, through pyroute2.

Everything concerns the network namespace of the calling process. pyroute2's synchronous calls don't
work inside a running asyncio loop: call from a thread there.
"""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from featherlb.model import Address
from featherlb.model.errors import HostError

LOOPBACK = "lo"
_RTN_LOCAL = 2  # linux/rtnetlink.h
_IFA_F_NODAD = 0x02  # linux/if_addr.h
_NTF_PROXY = 0x08  # linux/neighbour.h
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Route:
    """How the kernel would send to an address: through `interface`, from `source`.

    `local` says that the address belongs to this host.
    """

    interface: str
    source: Address
    local: bool


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address of this host with its subnet, and the interface that has it."""

    interface: str
    address: IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True)
class Link:
    """An interface; `mtu` in bytes."""

    name: str
    mtu: int
    up: bool
    bridge: bool


def links() -> list[Link]:
    """All interfaces."""
    with _open() as ipr:
        found = []
        for link in ipr.get_links():
            info = link.get_attr("IFLA_LINKINFO")
            found.append(
                Link(
                    name=link.get_attr("IFLA_IFNAME"),
                    mtu=link.get_attr("IFLA_MTU"),
                    up=link.get_attr("IFLA_OPERSTATE") in ("UP", "UNKNOWN"),
                    bridge=info is not None and info.get_attr("IFLA_INFO_KIND") == "bridge",
                )
            )
        return found


def interfaces() -> list[str]:
    """The names of all interfaces."""
    with _open() as ipr:
        return sorted(_names(ipr).values())


def addresses() -> list[HostAddress]:
    """All addresses of this host's interfaces."""
    with _open() as ipr:
        names = _names(ipr)
        return [
            HostAddress(names[entry["index"]], ip_interface(f"{text}/{entry['prefixlen']}"))
            for entry in ipr.get_addr()
            if (text := entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS"))
        ]


def route(destination: Address) -> Route | None:
    """The kernel's route to an address, None if it has none."""
    with _open() as ipr:
        try:
            answer = next(
                iter(ipr.route("get", dst=str(destination), family=_FAMILIES[destination.version]))
            )
        except NetlinkError:
            return None
        source = answer.get_attr("RTA_PREFSRC")
        if source is None:
            return None
        return Route(
            interface=_names(ipr)[answer.get_attr("RTA_OIF")],
            source=ip_address(source),
            local=answer["type"] == _RTN_LOCAL,
        )


def add_address(address: Address, interface: str) -> bool:
    """Give this host the address alone, without a subnet; False if it was there already."""
    options = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
    try:
        with _open() as ipr:
            ipr.addr(
                "add",
                index=_index(ipr, interface),
                address=str(address),
                prefixlen=address.max_prefixlen,
                **options,
            )
    except NetlinkError as error:
        if error.code == errno.EEXIST:
            return False
        raise HostError(
            f"cannot add {address} to interface {interface}: {error.args[-1]}"
        ) from None
    return True


def remove_address(address: Address, interface: str) -> None:
    """Take the address away; no error if it, or the interface, has gone."""
    try:
        with _open() as ipr:
            ipr.addr(
                "del",
                index=_index(ipr, interface),
                address=str(address),
                prefixlen=address.max_prefixlen,
            )
    except NetlinkError as error:
        if error.code not in (errno.EADDRNOTAVAIL, errno.ENODEV):
            raise HostError(
                f"cannot remove {address} from interface {interface}: {error.args[-1]}"
            ) from None


def has_proxy(address: Address, interface: str) -> bool:
    """Whether this host answers the neighbours' questions for an address that it hasn't got, by
    an entry of its own (`ip neigh add proxy`)."""
    try:
        with _open() as ipr:
            ipr.neigh("get", dst=str(address), ifindex=_index(ipr, interface), flags=_NTF_PROXY)
    except NetlinkError:
        return False
    return True


@contextmanager
def _open() -> Iterator[Any]:
    with IPRoute() as ipr:
        yield ipr


def _names(ipr: Any) -> dict[int, str]:
    return {link["index"]: link.get_attr("IFLA_IFNAME") for link in ipr.get_links()}


def _index(ipr: Any, interface: str) -> int:
    for index, name in _names(ipr).items():
        if name == interface:
            return index
    raise NetlinkError(errno.ENODEV, f"no interface {interface}")
