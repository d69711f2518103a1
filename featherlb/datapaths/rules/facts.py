"""What a plan depends on: how the instance runs, and what only the host can tell."""

import secrets
from dataclasses import dataclass, field

from featherlb.model import Address, HostAddress
from featherlb.model.shard import Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How an instance runs. Its first queue number is also its identity on this host."""

    queue: int = 0
    workers: int = 1
    fail_open: bool = False
    """Let packets pass, unbalanced, while no worker is bound to its queue."""
    assign: bool = True
    """Give the host the VIPs that it doesn't have."""
    hash_seed: int = field(default_factory=lambda: secrets.randbits(32))
    """Seed of the hash that spreads flows over several workers. Nobody outside knows it, or he
    could send all his flows to one of them."""

    def shard(self, worker: int) -> Shard:
        """What belongs to this one of the workers."""
        return Shard(worker, self.workers, self.hash_seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a plan depends on and only the host can tell (see `survey`)."""

    addresses: tuple[HostAddress, ...] = ()
    """Without those that featherlb instances have assigned."""
    local_vips: frozenset[Address] = frozenset()
    """VIPs that belong to this host without featherlb, by an address or by a route."""
    backend_interfaces: tuple[str, ...] = ()
    """Interfaces through which backends of other hosts are reached."""
    advertised: tuple[str, ...] = ()
    """Interfaces that take their IPv6 routes from router advertisements."""
    routers: frozenset[int] = frozenset()
    """The address families, 4 or 6, in which this host forwards packets already."""
    sets: bool = True
    """Whether rules can ask for membership in an ipset."""
    conntrack: bool = True
    """Whether rules can ask for the connection tracking state."""
    socket: bool = True
    """Whether rules can ask for the socket that a packet is for."""
    order: int = 0
    """Greater than that of each instance that ran when this one started."""
    earlier: tuple[int, ...] = ()
    """The orders of those instances."""
