"""What the worker needs of a queue driver, and a queue driver of the core. Protocols only.

A further driver (another library, another datapath) is a module beside the first that satisfies
`PacketQueue`.
"""

from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol

from featherlb.core.flows.conntrack import Entry, Requests
from featherlb.model.shard import Shard


class PacketHandler(Protocol):
    """The core, as a driver sees it (see `featherlb.core.path.balancer.Balancer`)."""

    @property
    def buffer(self) -> bytearray:
        """Where packets stand now."""
        ...

    def attach(self, buffer: bytearray) -> None:
        """Packets stand in this buffer from now on."""
        ...

    def expect_packets(self, offsets: memoryview, lengths: memoryview, count: int) -> None:
        """Hear of the packets that come next, so that their flows can be loaded into the
        processor's cache; a driver that has packets one by one need not say so."""
        ...

    def ask_ahead(self, offsets: memoryview, lengths: memoryview, count: int) -> None:
        """Gather what has to be known from conntrack before these expected packets come."""
        ...

    def handle_packet(self, offset: int, length: int, hook: int, info: int, now: float) -> int:
        """Decide on the IP packet at `offset` of the attached buffer, rewriting it in place.

        `length` is in bytes (of a truncated packet, before it was cut), `hook` a `model.Hook`,
        `info` a set of `model.PacketInfo`, `now` seconds of a monotonic clock; the answer is a
        `model.Verdict`.
        """
        ...


class NextHops(Protocol):
    """What core and engine say to each other about a frame (`core/flows/next_hops.py`)."""

    came: int
    """The slot of the link that it came in by, and the MAC address of its sender."""
    goes: int
    """Likewise where it goes, if it was rewritten; without a MAC address, that isn't known yet."""
    gso_size: int
    """Of a super-packet, the bytes of payload in each segment; else 0."""


class FrameHandler(PacketHandler, Protocol):
    """The core, as a driver of frames sees it."""

    @property
    def hops(self) -> NextHops: ...


class ConntrackHandler(Protocol):
    """The core, as conntrack's driver sees it (see `featherlb.core.path.offloaded.Offload`)."""

    asked: int
    """With the verdict ASK: the flow of which conntrack is to be asked."""
    created: int
    """Not 0 after a packet that has opened a flow for conntrack to carry: that flow."""

    @property
    def requests(self) -> Requests: ...

    @property
    def answer(self) -> Entry:
        """For what conntrack answers."""
        ...

    @property
    def event(self) -> Entry:
        """For what it tells by itself."""
        ...

    def fail(self, flow: int) -> None: ...

    def clash(self, flow: int, entry: Entry) -> bool: ...

    def replace(self, flow: int) -> None: ...

    def give_port(self, flow: int) -> bool: ...

    def inquire(self, flow: int) -> None: ...

    def observe(self, flow: int, entry: Entry, ticks: int) -> None: ...

    def advance(self, entry: Entry, ticks: int) -> None: ...

    def disown(self, flow: int) -> None: ...

    def end(self, entry: Entry, certain: bool, ticks: int) -> int: ...

    def is_offloaded(self, flow: int) -> bool: ...

    def last_record(self) -> int: ...

    def adopt(self, entry: Entry, services: Set[str], shard: Shard, ticks: int) -> bool: ...


class QueueHandler(PacketHandler, Protocol):
    """The core, as a queue driver sees it."""

    @property
    def offload(self) -> ConntrackHandler: ...


class FlowCarrier(Protocol):
    """Where flows are entered that the kernel is to carry (see `drivers.conntrack.Conntrack`)."""

    failed: list[int]

    def flush(self, handler: ConntrackHandler) -> None: ...

    def learn(self, handler: ConntrackHandler, flow: int, now: float) -> None: ...

    def consult(self, handler: ConntrackHandler, now: float) -> None: ...


@dataclass(frozen=True, slots=True)
class QueueCounters:
    """Counts since the queue was opened, in packets.

    `queue_dropped` and `socket_dropped` are the kernel's (queue full; socket buffer full),
    from /proc/net/netfilter/nfnetlink_queue.
    """

    received: int
    truncated: int
    queue_dropped: int
    socket_dropped: int
    waiting: int


@dataclass(frozen=True, slots=True)
class FrameCounters:
    """Counts of the raw datapath since the start, in frames.

    `dropped` are the kernel's drops at a full socket buffer. `unsent` had no link to leave by, or
    were refused by the kernel. `unresolved` waited in vain for the MAC address of their next hop;
    `held` are waiting now.
    """

    received: int
    dropped: int
    unsent: int
    unresolved: int
    held: int


class PacketQueue(Protocol):
    """One NFQUEUE, owned by one worker."""

    pass_mark: int
    """If not 0, packets that are not ours meet the table again: another instance may know them
    (docs/decisions/shared-backends.md). They carry this packet mark, which is even, or at the
    hooks INPUT and POSTROUTING the next one: a mark stays when the packet gets to a later hook."""

    def fileno(self) -> int:
        """A descriptor that is readable when packets wait."""
        ...

    def process(self, handler: QueueHandler, now: float) -> int:
        """Handle the packets that wait now, without blocking; how many there were."""
        ...

    def carry_with(self, carrier: FlowCarrier) -> None:
        """Let the kernel carry flows from now on that the core wants it to."""
        ...

    def cut_segments(self, wanted: bool) -> None:
        """Have the kernel cut super-packets before it queues them, or no more. Where they are to be
        cut, a queued one doesn't tell, so none of them can begin again from a raw socket."""
        ...

    def counters(self) -> QueueCounters: ...

    def close(self) -> None:
        """Unbind; the kernel drops what still waits."""
        ...
