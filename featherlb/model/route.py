"""Links, addresses, neighbours and routes of this host: one model for all that read them.

A link is named by its interface index, as in the kernel: names change, indexes don't.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface

from featherlb.model.address import Address, Network

LOOPBACK = "lo"
"""The name of the loopback interface, the same in every network namespace."""


@dataclass(frozen=True, slots=True)
class Link:
    """An interface; an Ethernet one that is up, unless more is said.

    Not `ethernet` are those without Ethernet headers, and the loopback interface, whose frames come
    from nowhere else. `up` is the operator's setting; `running` says that there is a carrier as
    well, and doesn't make a link another one, as it changes no next hop. A `member` belongs to a
    bridge, a bond or the like, which receives its packets.
    """

    index: int
    name: str
    mac: bytes
    """Empty if it has no hardware address."""
    mtu: int
    """Bytes."""
    ethernet: bool = True
    up: bool = True
    running: bool = field(default=True, compare=False)
    member: bool = False
    bridge: bool = False

    @property
    def carries_frames(self) -> bool:
        """Whether packet sockets can take frames from it and give frames to it."""
        return self.ethernet and self.up and not self.member


@dataclass(frozen=True, slots=True)
class HostAddress:
    """An address of this host with its subnet, and the name of the interface that has it."""

    interface: str
    address: IPv4Interface | IPv6Interface


NeighbourKey = tuple[int, Address]
"""A link, by its index, and an address on it."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """An address on a link, and the MAC address behind it: None as long as it is not resolved.

    `fixed` neighbours are configured (NUD_PERMANENT) or need no resolution (NUD_NOARP).
    """

    link: int
    address: Address
    mac: bytes | None = None
    fixed: bool = False

    @property
    def key(self) -> NeighbourKey:
        return self.link, self.address


@dataclass(frozen=True, slots=True)
class Route:
    """Out of which link (its index) the kernel sends: to the address `gateway`, or to the
    destination itself where that is None.

    `source` is the address that the kernel sends from, if the route says one; the destination is
    `local` if it is an address of this host.
    """

    link: int
    gateway: Address | None = None
    source: Address | None = None
    local: bool = False


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """A rule of policy routing (ip-rule(8)) that this host has of its own."""

    version: int
    """The IP version, 4 or 6."""
    marked: bool
    """It asks for a packet's mark."""


@dataclass(frozen=True, slots=True)
class NextHop:
    """Where a frame goes: out of which link (its interface index), to which MAC address.

    `mac` is None as long as the neighbour does not answer, or its link is down.
    """

    link: int
    mac: bytes | None


@dataclass(frozen=True, slots=True)
class Topology:
    """Where the frames of the raw datapath go. Each topology is complete, and replaces the last.

    `links` are those that carry frames. `next_hops` are the backends', by address; a backend that
    isn't there has no route. `routes` lead to clients, the longest prefix first: a route counts
    where its link is not the one that the client's packet came in by, and its MAC address is known
    (it isn't where clients are on the link itself). Else a reply goes back by the link, and to the
    MAC address, that the client's packets come from. `addresses` are this host's own: what a
    wildcard VIP stands for. In the address families `by_policy` (4 or 6) the host has routing rules
    of its own: routes count only for clients of which it is not known where their packets come in.
    """

    links: tuple[Link, ...] = ()
    next_hops: Mapping[Address, NextHop] = field(default_factory=dict)
    routes: tuple[tuple[Network, NextHop], ...] = ()
    addresses: frozenset[Address] = frozenset()
    by_policy: frozenset[int] = frozenset()
