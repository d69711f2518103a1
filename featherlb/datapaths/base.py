"""The engine of a datapath: what a worker moves the packets of its services with.

A worker drives engines without knowing them. The engine of a datapath is the class `Engine` of the
module `engine` in the folder that has the datapath's name; `open_engine` finds it there. A new
datapath is one more such folder.
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
    from featherlb.system.raw_socket import RawSender


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """Which NFQUEUE a worker binds, and how: up to `length` packets wait in it; what comes on top
    is dropped, or passed on untouched if `fail_open`."""

    number: int
    driver: Driver
    length: int
    fail_open: bool


@dataclass(frozen=True, slots=True)
class Context:
    """What a worker lends to its engines.

    `core` decides on packets; `sender` sends packets of featherlb's own. `queue` is the engine of
    the worker's queue; only that engine itself is opened without one.
    """

    core: "Balancer"
    sender: "RawSender"
    shard: Shard
    queue_options: QueueOptions
    queue: "PacketQueue | None" = None


@dataclass(frozen=True, slots=True)
class ServiceChange:
    """The services that a worker has served until now, and those that it serves from now on.

    If `pass_mark` is not 0, packets that are not ours meet the table again, as another instance may
    know them (docs/decisions/shared-backends.md). They carry this packet mark, which is even, or at
    the hooks INPUT and POSTROUTING the next one: a mark stays when the packet gets to a later hook.
    """

    before: tuple[Service, ...]
    wanted: tuple[Service, ...]
    pass_mark: int = 0


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """Counts since the engine was opened, in packets or frames; 0 for what it does not have.

    The kernel dropped `queue_dropped` as the queue was full, and `socket_dropped` as a socket's
    buffer was. `truncated` were received, but not whole. `waiting` are in the queue now. `unsent`
    had no link to leave by, or were refused by the kernel. `unresolved` waited in vain for the MAC
    address of their next hop; `held` are waiting for it now.
    """

    received: int = 0
    truncated: int = 0
    queue_dropped: int = 0
    socket_dropped: int = 0
    waiting: int = 0
    unsent: int = 0
    unresolved: int = 0
    held: int = 0


class Engine:
    """One datapath in one worker. Nothing in it blocks; times are seconds of a monotonic clock.

    The worker opens it with the first service that needs it, and keeps it: flows outlive services.
    A method that an engine does not have does nothing.
    """

    def descriptors(self) -> Sequence[int]:
        """What to poll for reading; asked again after `apply` and `set_topology`."""
        return ()

    def process(self, descriptor: int, now: float) -> None:
        """Handle what waits at one of the descriptors: a bounded number of batches of it."""

    def prepare(self, change: ServiceChange, now: float) -> None:
        """The core is about to serve other services."""

    def apply(self, change: ServiceChange, now: float) -> None:
        """The core serves these services now."""

    def set_topology(self, topology: Topology) -> None:
        """The core routes frames by this topology now."""

    def tick(self, now: float) -> None:
        """Do what is due. Called every 0.1 s or so, after the core's timer."""

    def flush(self, now: float) -> None:
        """Send what has gathered. Called after packets, changes and commands."""

    def refresh(self, first: int, count: int, now: float) -> None:
        """Bring `count` flow records, from number `first` on, up to date with the kernel's."""

    def counters(self) -> EngineCounters:
        return EngineCounters()

    def close(self) -> None:
        """Close its sockets."""


class KernelFlows(Protocol):
    """Flows that the kernel forwards, as the queue's engine sees them: packets that open them come
    through the queue, and the kernel has to know a flow before it meets the flow's first packet."""

    @property
    def watching(self) -> bool:
        """Whether flows that have ended make room for those that packets in the queue open."""
        ...

    def process(self, now: float) -> None:
        """Report the flows that have ended or changed to the core, without blocking."""
        ...

    def execute(self, now: float) -> None:
        """Execute the core's commands (`core/flows/kernel.py`), and those that their events cause;
        afterwards there are none."""
        ...


class PacketQueue(Engine, ABC):
    """The engine that every worker has: its NFQUEUE, which other engines may need."""

    @abstractmethod
    def attach(self, kernel_flows: KernelFlows) -> None:
        """Keep these flows in step with the queue from now on."""

    @abstractmethod
    def cut_segments(self, wanted: bool) -> None:
        """Have the kernel cut super-packets before it queues them, or no more."""


def open_engine(datapath: Datapath, context: Context) -> Engine:
    """Load and open the engine of a datapath; HostError if this host refuses it."""
    module = import_module(f"featherlb.datapaths.{datapath}.engine")
    try:
        engine: Engine = module.Engine(context)
    except OSError as error:
        raise HostError(f"the datapath {datapath} is unavailable here: {error.strerror}") from None
    return engine
