"""Next hops: out of which link the frames of a flow leave, and to which MAC address.

A *hop* is 64 bits: the MAC address in the low 48, above it 8 bits of the link's id, a bit that says
that the host's routes have decided (`ROUTED`), and 7 bits that number the routes by which it was
decided (`epoch`). A link id is a small number that stands for an interface; 0 is none. A hop
without a MAC address is not resolved yet.

Towards backends the hop is a pool member's. Towards clients it is the flow's: a reply leaves by the
link, and to the MAC address, that the client's packets came from last, unless the host's route to
the client leads through another link. Each flow is looked up in the routes when it is opened, and
again when they have changed; 8 bytes a flow remember the outcome.
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
    """The next hops of all flows and members; `set_topology` says what they are made of.

    `came` (the link's id and the sender's MAC address), `gso_size` (bytes; 0 for a packet that
    is none) are of the frame that is being handled: its driver sets them. `goes` is the answer.
    """

    def __init__(self, memory: FlowMemory, members: int) -> None:
        """For the flows in this memory, and so many members. Memory is used as it is needed."""
        self.clients = memory.hops
        self._links = memory.links
        self.members = memoryview(mmap.mmap(-1, members * 8)).cast("Q")
        self.mtu = memoryview(mmap.mmap(-1, MAX_LINKS * 4)).cast("I")
        self.came = 0
        self.goes = 0
        self.gso_size = 0
        self.epoch = 0
        self.addresses: frozenset[tuple[int, int]] = frozenset()
        self.link_ids: dict[int, int] = {}
        self._next_hops: dict[tuple[int, int], int] = {}
        self._routes: dict[bool, dict[int, dict[int, int]]] = {}

    def set_topology(self, topology: Topology) -> None:
        """Replace the topology. Links keep their ids; `link_ids` has them by interface index."""
        present = {link.index for link in topology.links}
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
        if routes != self._routes:
            self._routes = routes
            self.epoch = (self.epoch + 1) % EPOCHS

    def link_id_of(self, index: int) -> int:
        """The link id of an interface that may be among the links of the next topology; 0 for index
        0, or if there is none left."""
        if index and index not in self.link_ids and len(self.link_ids) < MAX_LINKS - 1:
            self._add(index, self._free_id(self.link_ids.keys()))
        return self.link_ids.get(index, 0)

    def recall(self, flow: int, hop: int, link_ids: Sequence[int]) -> None:
        """The flow's client was reached by this hop, of a memory whose links have these ids
        here. The next packet asks the routes."""
        link_id = link_ids[hop >> LINK_SHIFT & LINK_MASK]
        if link_id and not hop & ROUTED:
            epoch = (self.epoch - 1) % EPOCHS
            self.clients[flow] = hop & MAC | link_id << LINK_SHIFT | epoch << EPOCH_SHIFT

    def _add(self, index: int, link_id: int) -> None:
        self.link_ids[index] = link_id
        self._links[link_id] = index

    def update_member(self, member: int, high: int, low: int) -> None:
        """Take the next hop of the member, whose address this is, from the topology. A member that
        is no longer in it keeps the one it had, for its last flows."""
        hop = self._next_hops.get((high, low))
        if hop is not None:
            self.members[member] = hop

    def forget(self, member: int) -> None:
        """The member's number is another's from now on."""
        self.members[member] = 0

    def came_from(self, flow: int, high: int, low: int) -> None:
        """A packet of the flow came from its client, whose address this is."""
        hop = self.clients[flow]
        if hop >> EPOCH_SHIFT != self.epoch or not hop:
            self.decide(flow, high, low, self.came)
        elif not hop & ROUTED:
            self.clients[flow] = self.came | self.epoch << EPOCH_SHIFT

    def back(self, flow: int, high: int, low: int) -> int:
        """The hop towards the flow's client, whose address this is; 0 if it is not known."""
        hop = self.clients[flow]
        if hop >> EPOCH_SHIFT != self.epoch or not hop:
            came = 0 if hop & ROUTED else hop & (ROUTED - 1)
            self.decide(flow, high, low, came)
            hop = self.clients[flow]
        return hop & (ROUTED - 1)

    def decide(self, flow: int, high: int, low: int, came: int) -> None:
        """Look the client up in the routes; its packets came from the hop `came`, or 0."""
        goes = came
        address = _join(high, low)
        for shift, prefixes in self._routes.get(address >> 32 == 0xFFFF, {}).items():
            prefix = address >> shift
            if prefix in prefixes:
                hop = prefixes[prefix]
                if hop & MAC and hop >> LINK_SHIFT != came >> LINK_SHIFT:
                    goes = hop | ROUTED
                break
        self.clients[flow] = goes | self.epoch << EPOCH_SHIFT

    def _pack(self, hop: NextHop) -> int:
        link_id = self.link_ids.get(hop.link, 0)
        return link_id << LINK_SHIFT | int.from_bytes(hop.mac or b"", "big")

    def _free_id(self, present: Set[int]) -> int:
        taken = set(self.link_ids.values())
        for link_id in range(1, MAX_LINKS):
            if link_id not in taken:
                return link_id
        # Those of interfaces that are gone are used again, the longest known ones first.
        for index, link_id in self.link_ids.items():
            if index not in present:
                del self.link_ids[index]
                return link_id
        raise ValueError(f"more than {MAX_LINKS - 1} links")


def _join(high: int, low: int) -> int:
    return high << 64 | low
