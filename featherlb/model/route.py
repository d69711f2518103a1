"""Links, next hops and routes of this host, as far as the raw datapath forwards by them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from featherlb.model.address import Address, Network


@dataclass(frozen=True, slots=True)
class Link:
    """An Ethernet interface that the raw datapath uses; `mtu` in bytes."""

    index: int
    name: str
    mac: bytes
    mtu: int


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

    `next_hops` are the backends', by address; one that isn't there has no route. `routes` lead to
    clients, the longest prefix first: one counts where its link is not the one that the client's
    packet came in by, and its address is known (it isn't where clients are on the link itself).
    Else a reply goes back by the link, and to the MAC address, that the client's packets come
    from. `addresses` are this host's own: what a wildcard VIP stands for.
    """

    links: tuple[Link, ...] = ()
    next_hops: Mapping[Address, NextHop] = field(default_factory=dict)
    routes: tuple[tuple[Network, NextHop], ...] = ()
    addresses: frozenset[Address] = frozenset()
