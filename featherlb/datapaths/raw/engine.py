"""The datapath raw: whole frames over packet sockets, past the kernel's routing and netfilter.

The kernel also receives a copy of each frame; rules drop it (`rules.py`). Packets of clients on
this host are never frames: they come through the worker's queue.
"""

from collections.abc import Sequence

from featherlb.datapaths import base
from featherlb.datapaths.base import Context, EngineCounters, ServiceChange
from featherlb.datapaths.raw.frames import FrameSockets
from featherlb.datapaths.raw.interest import Interest
from featherlb.model import Address, Service, Topology


class Engine(base.Engine):
    """A worker's packet sockets: one for each link and address family."""

    def __init__(self, context: Context) -> None:
        """No socket is open yet."""
        self._core = context.core
        self._interest = Interest(context.shard)
        self._sockets = FrameSockets(self._interest, context.owners, context.delayed)
        self._services: Sequence[Service] = ()
        self._addresses: frozenset[Address] = frozenset()

    def descriptors(self) -> Sequence[int]:
        return self._sockets.descriptors()

    def process(self, descriptor: int, now: float) -> None:
        self._sockets.process(descriptor, self._core, now)

    def apply(self, change: ServiceChange, now: float) -> None:
        self._services = change.wanted
        self._let_in()

    def set_topology(self, topology: Topology) -> None:
        self._addresses = topology.addresses
        self._let_in()
        self._sockets.set_topology(topology, self._core.next_hops.link_ids)

    def _let_in(self) -> None:
        """Receive only frames of the services."""
        interest = self._interest.extended(self._services, self._addresses)
        if interest != self._interest:
            self._interest = interest
            self._sockets.set_interest(interest)

    def tick(self, now: float) -> None:
        self._sockets.expire(now)

    def counters(self) -> EngineCounters:
        return self._sockets.counters()

    def close(self) -> None:
        self._sockets.close()
