"""The datapath offload: the packet that opens a flow comes through the worker's queue, conntrack
translates the rest."""

from collections.abc import Sequence

from featherlb.core.pools.schedulers import within_weights
from featherlb.datapaths import base
from featherlb.datapaths.base import Context, ServiceChange
from featherlb.datapaths.offload.ctnetlink import Conntrack
from featherlb.datapaths.rules.steering import UNTRACKED_MARK
from featherlb.model import Datapath, Protocol, Service
from featherlb.model.ticks import TICKS_PER_SECOND
from featherlb.system import conntrack


class Engine(base.Engine):
    """A worker's access to conntrack, synchronised with its queue."""

    def __init__(self, context: Context) -> None:
        """OSError if the kernel has no conntrack netlink."""
        assert context.queue is not None
        self._queue = context.queue
        self._flows = context.core.offload
        self._sender = context.sender
        self._shard = context.shard
        self._conntrack = Conntrack(self._flows)
        self._queue.attach(self._conntrack)

    def descriptors(self) -> Sequence[int]:
        return (self._conntrack.fileno(),)

    def process(self, descriptor: int, now: float) -> None:
        self._conntrack.process(now)

    def prepare(self, change: ServiceChange, now: float) -> None:
        """Update the flows if a service is removed: a connection that opened or closed within the
        last second would otherwise look half-open."""
        if names(change.before) - names(change.wanted):
            self._flows.look_up_all()
            self._conntrack.execute(now)

    def apply(self, change: ServiceChange, now: float) -> None:
        """Adopt flows that the kernel already forwards for services that are new to this worker.
        Flows of other services may be another worker's."""
        new = names(change.wanted) - {service.name for service in change.before}
        if new:
            self._conntrack.execute(now)
            for entry, _ in conntrack.dump():
                self._flows.found(entry, new, self._shard, int(now * TICKS_PER_SECOND))
        offloaded = offloaded_of(change.wanted)
        # The first datagrams of a flow are copied and sent again, one by one.
        self._queue.cut_segments(any(one.protocol is Protocol.UDP for one in offloaded))
        self._conntrack.watch(any(one.measured or is_limited(one) for one in offloaded))

    def tick(self, now: float) -> None:
        self._flows.sweep()
        self._conntrack.execute(now)

    def flush(self, now: float) -> None:
        self._conntrack.execute(now)
        for packet in self._flows.take_reinjected():
            self._sender.send_translated(packet)
        for packet in self._flows.take_untracked():
            self._sender.send(packet, UNTRACKED_MARK)
        for to_vip, from_backend in self._flows.take_completed():
            self._sender.send_translated(to_vip)
            self._sender.send(from_backend)

    def refresh(self, first: int, count: int, now: float) -> None:
        self._flows.look_up_range(first, count)
        self._conntrack.execute(now)

    def close(self) -> None:
        self._conntrack.close()


def offloaded_of(services: Sequence[Service]) -> list[Service]:
    """The services with this datapath."""
    return [service for service in services if service.datapath is Datapath.OFFLOAD]


def names(services: Sequence[Service]) -> set[str]:
    """The names of the services with this datapath."""
    return {service.name for service in offloaded_of(services)}


def is_limited(service: Service) -> bool:
    """Whether the end of a connection can make room for another."""
    backends = within_weights(service).backends
    return any(backend.max_connections is not None for backend in backends)
