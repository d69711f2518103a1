"""What is said about a packet: the hook where it is met, its kernel metadata, the verdict."""

from enum import IntEnum, IntFlag


class Hook(IntEnum):
    """Where a packet is met: at one of the netfilter hooks, numbered as in
    include/uapi/linux/netfilter.h (enum nf_inet_hooks), or on the wire."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4
    WIRE = 5
    """In a frame, in front of everything that the kernel does with it (the raw datapath)."""


LATE_HOOKS = frozenset({Hook.INPUT, Hook.FORWARD, Hook.POSTROUTING})
"""Those behind the routing decision."""


class PacketInfo(IntFlag):
    """What the kernel says of a packet (NFQA_SKB_INFO in nfnetlink_queue.h)."""

    NONE = 0
    CHECKSUM_NOT_READY = 1
    """The transport checksum field holds only the pseudo-header's sum (CHECKSUM_PARTIAL)."""
    GSO = 2
    """A super-packet: the kernel cuts it into segments when it leaves."""
    TRUNCATED = 256
    """featherlb's own bit: the copy is shorter than the packet, so it cannot be rewritten."""
    COMPLETED_LATER = 512
    """featherlb's own bit, beside CHECKSUM_NOT_READY: the field goes on as it is, whoever sends
    the packet out completes it."""


class Verdict(IntEnum):
    """What the queue driver does with a packet that the core has looked at. None is 0: in the core
    that says that there is no verdict yet."""

    PASS = 1
    """Let it go on, untouched."""
    REWRITTEN = 2
    """Let it go on with the buffer's new content."""
    DROP = 3
    OFFLOAD = 4
    """Let it go on, untouched: the kernel translates it."""
    LOOK_UP = 5
    """Execute the core's commands for flows in the kernel, then hand the packet in again."""
    FIND_OWNER = 6
    """Answer the core's question about a tuple (`core/path/claims.py`), then hand the packet in
    again."""
    ANSWERED = 7
    """Send the buffer's new content back to where the frame came from. Frames only."""
    HOLD = 8
    """Keep the packet for a while, then hand it in again (`core/path/faults.py`)."""
