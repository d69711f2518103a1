"""What the worker needs of a queue driver, and a queue driver of the core. Protocols only.

Imports `model` and nothing else. A further driver (another library, another datapath) is a
module beside the first that satisfies `PacketQueue`.
"""

from dataclasses import dataclass
from typing import Protocol


class PacketHandler(Protocol):
    """The core, as a driver sees it (see `featherlb.core.balancer.Balancer`)."""

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

    def handle_packet(self, offset: int, length: int, hook: int, info: int, now: float) -> int:
        """Decide on the IP packet at `offset` of the attached buffer, rewriting it in place.

        `length` is in bytes (of a truncated packet, before it was cut), `hook` a `model.Hook`,
        `info` a set of `model.PacketInfo`, `now` seconds of a monotonic clock; the answer is a
        `model.Verdict`.
        """
        ...


class NextHops(Protocol):
    """What the core and a driver of frames tell each other of a frame (`featherlb.core.hops`)."""

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

    def process(self, handler: PacketHandler, now: float) -> int:
        """Handle the packets that wait now, without blocking; how many there were."""
        ...

    def counters(self) -> QueueCounters: ...

    def close(self) -> None:
        """Unbind; the kernel drops what still waits."""
        ...
