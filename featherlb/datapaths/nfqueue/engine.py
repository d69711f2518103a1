"""The datapath nfqueue: every packet comes through the worker's NFQUEUE.

Each worker has this engine, whatever the datapaths of its services. Packets that open flows of the
datapath offload come through the queue, too, and so do those of the datapath raw's clients on this
host.
"""

from collections.abc import Sequence
from typing import Protocol

from featherlb.core.path.balancer import Balancer
from featherlb.datapaths import base
from featherlb.datapaths.base import (
    Carrier,
    Context,
    EngineCounters,
    KernelFlows,
    QueueOptions,
    ServiceChange,
)
from featherlb.datapaths.delayed import Delayed
from featherlb.datapaths.owners import TupleOwners
from featherlb.model import Driver
from featherlb.model.errors import HostError
from featherlb.system.nfqueue import Queue, bound_queues


class QueueDriver(Protocol):
    """One NFQUEUE, bound; how its messages are read and answered."""

    pass_mark: int
    """See `ServiceChange.pass_mark`."""
    owners: TupleOwners | None
    """Answers the core's questions."""
    delayed: Delayed | None
    """Keeps the packets that the core holds back."""

    @property
    def received(self) -> int: ...

    @property
    def truncated(self) -> int: ...

    @property
    def refused(self) -> int:
        """Packets dropped because the kernel refused their verdicts."""
        ...

    def fileno(self) -> int:
        """A descriptor that is readable when packets wait."""
        ...

    def process(self, core: Balancer, now: float) -> None:
        """Handle the packets that wait now, without blocking."""
        ...

    def attach(self, kernel_flows: KernelFlows) -> None:
        """See `PacketQueue.attach`."""
        ...

    def attach_program(self, carrier: Carrier) -> None:
        """See `PacketQueue.attach_program`."""
        ...

    def cut_segments(self, wanted: bool) -> None:
        """See `PacketQueue.cut_segments`."""
        ...

    def close(self) -> None:
        """Unbind; the kernel drops what still waits."""
        ...


def open_driver(options: QueueOptions) -> QueueDriver:
    """Bind a queue; HostError if that can't be done."""
    try:
        if options.driver is Driver.NETLINK:
            from featherlb.datapaths.nfqueue.netlink import NetlinkDriver

            return NetlinkDriver(options)
        from featherlb.datapaths.nfqueue.netfilterqueue import NetfilterQueueDriver

        return NetfilterQueueDriver(options)
    except OSError as error:
        raise HostError(
            f"NFQUEUE {options.number} cannot be bound: another program has it, or CAP_NET_ADMIN or"
            f" the kernel's nfnetlink_queue is missing ({error.strerror or error})"
        ) from None


class Engine(base.PacketQueue):
    """A queue and its driver."""

    def __init__(self, context: Context) -> None:
        """Bind the queue; HostError if that can't be done."""
        self._core = context.core
        self._number = context.queue_options.number
        self._driver = open_driver(context.queue_options)
        self._driver.owners = context.owners
        self._driver.delayed = context.delayed
        self._kernel_flows: KernelFlows | None = None

    def descriptors(self) -> Sequence[int]:
        return (self._driver.fileno(),)

    def process(self, descriptor: int, now: float) -> None:
        if self._kernel_flows is not None and self._kernel_flows.watching:
            # Connections that have just ended make room for new ones.
            self._kernel_flows.process(now)
        self._driver.process(self._core, now)

    def apply(self, change: ServiceChange, now: float) -> None:
        self._driver.pass_mark = change.pass_mark

    def attach(self, kernel_flows: KernelFlows) -> None:
        self._kernel_flows = kernel_flows
        self._driver.attach(kernel_flows)

    def attach_program(self, carrier: Carrier) -> None:
        self._driver.attach_program(carrier)

    def cut_segments(self, wanted: bool) -> None:
        self._driver.cut_segments(wanted)

    def counters(self) -> EngineCounters:
        queue = bound_queues().get(self._number, Queue())
        return EngineCounters(
            received=self._driver.received,
            truncated=self._driver.truncated,
            queue_dropped=queue.queue_dropped,
            socket_dropped=queue.socket_dropped,
            waiting=queue.waiting,
            unsent=self._driver.refused,
        )

    def close(self) -> None:
        self._driver.close()
