"""The inputs of a plan: the instance's options, and facts about the host."""

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
    """Accept packets, unbalanced, while no worker is bound to its queue."""
    assign: bool = True
    """Give the host the VIPs that it doesn't have."""
    hash_seed: int = field(default_factory=lambda: secrets.randbits(32))
    """Seed of the hash that distributes flows to workers. It is secret: a client that knew it could
    send all its flows to one worker."""
    prefix4: int = 0
    prefix6: int = 0
    """How many bits of a client's address select its worker (see `Shard`)."""

    def shard(self, worker: int) -> Shard:
        """The shard of this worker."""
        return Shard(worker, self.workers, self.hash_seed, self.prefix4, self.prefix6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts about the host that a plan depends on (see `host.survey`)."""

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
    bridge_filter: frozenset[int] = frozenset()
    """The address families, 4 or 6, in which frames that arrive through a bridge pass iptables
    before the bridge's own packet sockets get them (br_netfilter)."""
    sets: bool = True
    """Whether rules can match ipsets."""
    networks: bool = True
    """Whether rules can match ipsets of networks."""
    hashlimit: bool = True
    """Whether rules can match a rate of packets by source address."""
    reverse_path: frozenset[int] = frozenset({4, 6})
    """The address families, 4 or 6, in which rules can ask for the route to a packet's source: with
    policy routing, it may depend on more than they know."""
    strict: tuple[str, ...] = ()
    """Interfaces at which the kernel drops IPv4 packets if the route to their source doesn't lead
    back there (`rp_filter` 1)."""
    conntrack: bool = True
    """Whether rules can match the conntrack state."""
    socket: bool = True
    """Whether rules can match a packet's socket."""
    order: int = 0
    """Greater than that of each instance that ran when this one started."""
    earlier: tuple[int, ...] = ()
    """The orders of those instances."""
