"""Next hops: the egress link and the destination MAC address of a flow's frames.

A *hop* is 64 bits: the MAC address in the low 48, then 8 bits of link id, a bit set if the hop is
from the host's routes (`ROUTED`), and 7 bits of the routing table's version (`epoch`). A link id is
a small number for an interface; 0 is none. A hop without a MAC address is not resolved yet.

Towards backends, each pool member has a hop. Towards clients, each flow has one: replies leave by
the link and to the MAC address that the client's last packet came from, unless the host's route to
the client is through another link. Where the host routes by rules of its own (ip-rule(8)), which
are not followed here, the client's link counts as long as it is there. A flow is looked up in the
routes when it opens and again when they have changed; the result takes 8 bytes a flow.
"""

import mmap
from collections.abc import Sequence, Set

from featherlb.core.flows.memory import MAX_LINKS, FlowMemory
from featherlb.model import NextHop, Topology
from featherlb.net.addresses import words_of

LINK_SHIFT = 48
MAC = 0xFFFF_FFFF_FFFF
LINK_MASK = 0xFF
ROUTED = 0x0100_0000_0000_0000
EPOCH_SHIFT = 57
EPOCHS = 128


class NextHops:
    """The next hops of all flows and members, from the topology.

    The driver sets `ingress` (link id and the sender's MAC address) and `gso_size` (bytes; 0
    without GSO) for each frame. `egress` is the result.
    """

    def __init__(self, memory: FlowMemory, members: int) -> None:
        """For the flows in this memory and this many members. Memory is allocated on use."""
        self.clients = memory.hops
        self._links = memory.links
        self.members = memoryview(mmap.mmap(-1, members * 8)).cast("Q")
        self.mtu = memoryview(mmap.mmap(-1, MAX_LINKS * 4)).cast("I")
        self.ingress = 0
        self.egress = 0
        self.gso_size = 0
        self.epoch = 0
        self.addresses: frozenset[tuple[int, int]] = frozenset()
        self.link_ids: dict[int, int] = {}
        self._next_hops: dict[tuple[int, int], int] = {}
        self._routes: dict[bool, dict[int, dict[int, int]]] = {}
        self._by_policy: frozenset[int] = frozenset()

    def set_topology(self, topology: Topology) -> None:
        """Replace the topology. Links keep their ids; `link_ids` maps interface indexes to them."""
        present = {link.index for link in topology.links}
        before = bytes(self.mtu)
        for index in present - self.link_ids.keys():
            self._add(index, self._free_id(present))
        for link_id in range(MAX_LINKS):
            self.mtu[link_id] = 0
        for link in topology.links:
            self.mtu[self.link_ids[link.index]] = link.mtu
        self.addresses = frozenset(words_of(address) for address in topology.addresses)
        self._next_hops = {
            words_of(address): self._pack(hop) for address, hop in topology.next_hops.items()
        }
        # By prefix length, so that a look-up costs the same with thousands of routes.
        routes: dict[bool, dict[int, dict[int, int]]] = {True: {}, False: {}}
        for network, hop in topology.routes:
            high, low = words_of(network.network_address)
            shift = network.max_prefixlen - network.prefixlen
            mapped = network.version == 4
            prefixes = routes[mapped].setdefault(shift, {})
            prefixes.setdefault(_join(high, low) >> shift, self._pack(hop))
        paths_before, self._routes = (self._routes, self._by_policy, before), routes
        self._by_policy = topology.by_policy
        if (self._routes, self._by_policy, bytes(self.mtu)) != paths_before:
            self.epoch = (self.epoch + 1) % EPOCHS

    def link_id_of(self, index: int) -> int:
        """The link id of an interface that a later topology may have; 0 for index 0, or if no id is
        free."""
        if index and index not in self.link_ids and len(self.link_ids) < MAX_LINKS - 1:
            self._add(index, self._free_id(self.link_ids.keys()))
        return self.link_ids.get(index, 0)

    def recall(self, flow: int, hop: int, link_ids: Sequence[int]) -> None:
        """Restore the hop towards a flow's client from a memory whose link ids are `link_ids` here.
        The next packet looks up the route."""
        link_id = link_ids[hop >> LINK_SHIFT & LINK_MASK]
        if link_id and not hop & ROUTED:
            epoch = (self.epoch - 1) % EPOCHS
            self.clients[flow] = hop & MAC | link_id << LINK_SHIFT | epoch << EPOCH_SHIFT

    def _add(self, index: int, link_id: int) -> None:
        self.link_ids[index] = link_id
        self._links[link_id] = index

    def update_member(self, member: int, high: int, low: int) -> None:
        """Update the next hop of a member with this address. A member that the topology no longer
        has keeps its hop for its last flows."""
        hop = self._next_hops.get((high, low))
        if hop is not None:
            self.members[member] = hop

    def forget(self, member: int) -> None:
        """Reset the hop of a member's number, which is reused."""
        self.members[member] = 0

    def learn(self, flow: int, high: int, low: int) -> None:
        """Learn the hop towards the client with this address from a packet of its flow."""
        hop = self.clients[flow]
        if hop >> EPOCH_SHIFT != self.epoch or not hop or (hop & ROUTED and self._by_policy):
            self.decide(flow, high, low, self.ingress)
        elif not hop & ROUTED:
            self.clients[flow] = self.ingress | self.epoch << EPOCH_SHIFT

    def comes_from(self, member: int) -> bool:
        """Whether the frame in hand can be of the backend: it has come by the link to it, or one of
        the two is unknown."""
        hop = self.members[member] >> LINK_SHIFT & LINK_MASK
        came = self.ingress >> LINK_SHIFT & LINK_MASK
        return not hop or not came or hop == came

    def towards_client(self, flow: int, high: int, low: int) -> int:
        """The hop towards the flow's client with this address; 0 if unknown."""
        hop = self.clients[flow]
        if hop >> EPOCH_SHIFT != self.epoch or not hop:
            ingress = 0 if hop & ROUTED else hop & (ROUTED - 1)
            self.decide(flow, high, low, ingress)
            hop = self.clients[flow]
        return hop & (ROUTED - 1)

    def decide(self, flow: int, high: int, low: int, ingress: int) -> None:
        """Choose the client's hop: its route, or `ingress`, where its packets came from (or 0)."""
        egress = ingress
        address = _join(high, low)
        version = 4 if address >> 32 == 0xFFFF else 6
        known = self.mtu[ingress >> LINK_SHIFT & LINK_MASK] != 0
        if known and version in self._by_policy:
            self.clients[flow] = egress | self.epoch << EPOCH_SHIFT
            return
        for shift, prefixes in self._routes.get(address >> 32 == 0xFFFF, {}).items():
            prefix = address >> shift
            if prefix in prefixes:
                hop = prefixes[prefix]
                if hop & MAC and hop >> LINK_SHIFT != ingress >> LINK_SHIFT:
                    egress = hop | ROUTED
                break
        self.clients[flow] = egress | self.epoch << EPOCH_SHIFT

    def _pack(self, hop: NextHop) -> int:
        link_id = self.link_ids.get(hop.link, 0)
        return link_id << LINK_SHIFT | int.from_bytes(hop.mac or b"", "big")

    def _free_id(self, present: Set[int]) -> int:
        taken = set(self.link_ids.values())
        for link_id in range(1, MAX_LINKS):
            if link_id not in taken:
                return link_id
        # Reuse the id of an interface that is gone, the oldest first.
        for index, link_id in self.link_ids.items():
            if index not in present:
                del self.link_ids[index]
                return link_id
        raise ValueError(f"more than {MAX_LINKS - 1} links")


def _join(high: int, low: int) -> int:
    return high << 64 | low
