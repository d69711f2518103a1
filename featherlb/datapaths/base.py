"""The engine of a datapath: it moves packets between the kernel and a worker's core.

A worker drives engines through this interface only. The engine of a datapath is the class `Engine`
of the module `engine` in the datapath's folder, where `open_engine` finds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from featherlb.model import Datapath, Driver, Service, Topology
from featherlb.model.errors import HostError
from featherlb.model.shard import Shard

if TYPE_CHECKING:
    # The supervisor imports this module for its values, and needs no packet path.
    from featherlb.core.path.balancer import Balancer
    from featherlb.datapaths.delayed import Delayed
    from featherlb.datapaths.owners import TupleOwners
    from featherlb.system.raw_socket import RawSender


WAITING_PACKET = 4 << 10
"""Bytes of kernel memory for the copy of a packet that waits in a queue: enough for an Ethernet
frame's. A connection's first segments take a quarter of it."""
SHORTEST_QUEUE, LONGEST_QUEUE = 8 << 10, 64 << 10
"""Packets: 0.1 s at 80,000 packets/s, and 20,000 connections that open and send at once."""


def queue_length(memory: int, workers: int) -> int:
    """The packets that may wait in a worker's queue on a host with so many bytes of memory, of
    which all queues together may take a 64th."""
    affordable = memory // 64 // workers // WAITING_PACKET
    return min(max(affordable, SHORTEST_QUEUE), LONGEST_QUEUE)


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """The NFQUEUE that a worker binds. It holds up to `length` packets; further ones are dropped,
    or accepted unchanged if `fail_open`."""

    number: int
    driver: Driver
    length: int
    fail_open: bool

    @property
    def buffer(self) -> int:
        """Bytes of kernel memory for the copies of these packets."""
        return self.length * WAITING_PACKET


@dataclass(frozen=True, slots=True)
class Context:
    """What the engines of a worker share.

    `core` decides on packets, `owners` answers its questions about tuples; `sender` sends packets
    that featherlb originates, `delayed` keeps those that the core holds back. `queue` is the engine
    of the worker's queue; only that engine itself is opened without one.
    """

    core: "Balancer"
    owners: "TupleOwners"
    sender: "RawSender"
    shard: Shard
    queue_options: QueueOptions
    delayed: "Delayed"
    queue: "PacketQueue | None" = None


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """The services of a worker `before` a change, and the ones `wanted`.

    If `pass_mark` is not 0, packets that are not ours traverse the table again, as they may belong
    to another instance (docs/decisions/shared-backends.md). They get this packet mark, which is
    even, or the next one at the hooks after routing (`model.LATE_HOOKS`): marks persist to later
    hooks.
    """

    before: tuple[Service, ...]
    wanted: tuple[Service, ...]
    pass_mark: int = 0


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Packets or frames since the engine was opened; 0 if it doesn't have the counter.

    The kernel dropped `queue_dropped` because the queue was full, `socket_dropped` because a
    socket's buffer was. `truncated` were received incompletely. `waiting` are in the queue now.
    `unsent` had no egress link, or the kernel refused them or their verdicts. `unresolved` were
    dropped without the MAC address of their next hop; `held` are waiting for it now. A program in
    the kernel carries `carried` flows now; it was given `given`, and had no room for `unplaced`.
    """

    received: int = 0
    truncated: int = 0
    queue_dropped: int = 0
    socket_dropped: int = 0
    waiting: int = 0
    unsent: int = 0
    unresolved: int = 0
    held: int = 0
    carried: int = 0
    given: int = 0
    unplaced: int = 0


class Engine:
    """One datapath in one worker. Nothing in it blocks; times are seconds of a monotonic clock.

    The worker opens it with the first service that needs it and keeps it, as flows outlive
    services. Methods that an engine does not override do nothing.
    """

    def descriptors(self) -> Sequence[int]:
        """Descriptors to poll for reading; may change with `apply` and `set_topology`."""
        return ()

    def process(self, descriptor: int, now: float) -> None:
        """Handle a bounded number of batches from one of the descriptors."""

    def prepare(self, change: ServiceChange, now: float) -> None:
        """Called before the core applies other services."""

    def apply(self, change: ServiceChange, now: float) -> None:
        """Called after the core has applied these services."""

    def set_topology(self, topology: Topology) -> None:
        """Called after the core has applied this topology."""

    def tick(self, now: float) -> None:
        """Do periodic work. Called about every 0.1 s, after the core's timer."""

    def flush(self, now: float) -> None:
        """Send what is queued. Called after packets, changes and commands."""

    def refresh(self, first: int, count: int, now: float) -> None:
        """Update `count` flow records, from number `first` on, from the kernel."""

    def counters(self) -> EngineCounters:
        return EngineCounters()

    def close(self) -> None:
        """Close its sockets."""


class KernelFlows(Protocol):
    """Flows that the kernel forwards, for the queue's engine: packets that open them come through
    the queue, and the kernel must know a flow before its first packet is accepted."""

    @property
    def watching(self) -> bool:
        """Whether ends of flows must be read before packets: they make room for new ones."""
        ...

    def process(self, now: float) -> None:
        """Report the flows that have ended or changed to the core, without blocking."""
        ...

    def execute(self, now: float) -> None:
        """Execute the core's commands (`core/flows/kernel.py`), and those that their events cause,
        until none is left."""
        ...


class Carrier(Protocol):
    """A program that carries flows, for the queue's engine: it must have a flow before the packet
    that opens the flow is accepted."""

    def listen(self, now: float) -> None:
        """Report flows that it has opened or changed to the core. Their packets come later."""
        ...

    def execute(self) -> None:
        """Give it the flows that the core has queued for it."""
        ...


class PacketQueue(Engine, ABC):
    """The engine that every worker has: its NFQUEUE, which other engines may need."""

    @abstractmethod
    def attach(self, kernel_flows: KernelFlows) -> None:
        """Have these flows inserted before the verdicts on the packets that open them."""

    @abstractmethod
    def attach_program(self, carrier: Carrier) -> None:
        """Have flows given to this program before the verdicts on the packets that open them."""

    @abstractmethod
    def cut_segments(self, wanted: bool) -> None:
        """Have the kernel segment GSO packets before it queues them, or no longer."""


def open_engine(datapath: Datapath, context: Context) -> Engine:
    """Load and open the engine of a datapath; HostError if this host refuses it."""
    module = import_module(f"featherlb.datapaths.{datapath}.engine")
    try:
        engine: Engine = module.Engine(context)
    except OSError as error:
        raise HostError(f"the datapath {datapath} is unavailable here: {error.strerror}") from None
    return engine
