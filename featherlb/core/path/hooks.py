"""Which hook rewrites which packet: one table, explained in docs/packet-path.md.

A packet passes several netfilter hooks and is rewritten at one of them. Which one depends on its
flow's datapath, its direction and the NAT mode.
"""

from enum import IntEnum

import cython

from featherlb.core.pools.pool import Pool
from featherlb.model import Hook

if not cython.compiled:
    from featherlb.core.flows.record import FULL, OFFLOADED, WIRED


class Action(IntEnum):
    """What to do with a packet at a hook."""

    PASS = 0
    """Accept it unchanged: another hook rewrites it, or it is not ours."""
    REWRITE = 1
    OPEN = 2
    """Open a flow."""
    DROP = 3
    """Drop it: it is the kernel's copy of a frame."""
    VERIFY = 4
    """The kernel translates the flow. Decide whether it gets this packet, which is out of state or
    refuses a connection."""


class Row(IntEnum):
    """Packets that are treated alike. `QUEUED` flows are translated at netfilter hooks, `FRAMED`
    ones on the wire, `KERNEL` ones by the kernel."""

    # Packets of a flow.
    QUEUED = 0
    QUEUED_DNAT_REPLY = 1
    FRAMED = 2
    KERNEL = 3
    # ICMP errors about a packet of a flow, in the same order; a reply goes to the client.
    QUEUED_ERROR = 4
    QUEUED_DNAT_REPLY_ERROR = 5
    FRAMED_ERROR = 6
    KERNEL_ERROR = 7
    # Packets to a VIP without a flow, by the service's datapath.
    NEW_NFQUEUE = 8
    NEW_RAW = 9
    NEW_OFFLOAD = 10


PASS, REWRITE, OPEN, DROP, VERIFY = map(int, Action)

TABLE = {
    # by hook:                   PREROUTING INPUT    FORWARD  OUTPUT   POSTROUTING WIRE
    Row.QUEUED:                  (REWRITE,  PASS,    PASS,    REWRITE, PASS,       PASS),
    Row.QUEUED_DNAT_REPLY:       (PASS,     REWRITE, REWRITE, PASS,    REWRITE,    PASS),
    Row.FRAMED:                  (DROP,     DROP,    DROP,    REWRITE, DROP,       REWRITE),
    Row.KERNEL:                  (VERIFY,   VERIFY,  VERIFY,  VERIFY,  VERIFY,     PASS),
    Row.QUEUED_ERROR:            (REWRITE,  PASS,    PASS,    REWRITE, PASS,       PASS),
    Row.QUEUED_DNAT_REPLY_ERROR: (PASS,     REWRITE, REWRITE, REWRITE, REWRITE,    PASS),
    Row.FRAMED_ERROR:            (DROP,     DROP,    DROP,    PASS,    DROP,       REWRITE),
    Row.KERNEL_ERROR:            (VERIFY,   VERIFY,  VERIFY,  VERIFY,  VERIFY,     PASS),
    Row.NEW_NFQUEUE:             (OPEN,     PASS,    PASS,    OPEN,    PASS,       PASS),
    Row.NEW_RAW:                 (DROP,     PASS,    PASS,    OPEN,    PASS,       OPEN),
    Row.NEW_OFFLOAD:             (OPEN,     OPEN,    OPEN,    OPEN,    OPEN,       PASS),
}  # fmt: skip
"""For each row of packets, an `Action` for each `Hook`."""

# The same as flat bytes, for the compiled build.
HOOKS = len(Hook)
ACTIONS = memoryview(bytearray(action for row in Row for action in TABLE[row]))
QUEUED = int(Row.QUEUED)
QUEUED_DNAT_REPLY = int(Row.QUEUED_DNAT_REPLY)
FRAMED = int(Row.FRAMED)
KERNEL = int(Row.KERNEL)
ERRORS = int(Row.QUEUED_ERROR)
NEW_NFQUEUE = int(Row.NEW_NFQUEUE)
NEW_RAW = int(Row.NEW_RAW)
NEW_OFFLOAD = int(Row.NEW_OFFLOAD)
PREROUTING = int(Hook.PREROUTING)
OUTPUT = int(Hook.OUTPUT)
WIRE = int(Hook.WIRE)


def for_flow(flags: int, reply: int, hook: int) -> int:
    """The action at this hook for a packet of a flow whose record has these `flags`."""
    return ACTIONS[row_of(flags, reply) * HOOKS + hook]


def for_error(flags: int, reply: int, hook: int) -> int:
    """The action for an ICMP error about a packet of the flow; `reply` is 1 if the error goes to
    the client."""
    return ACTIONS[(ERRORS + row_of(flags, reply)) * HOOKS + hook]


def for_new(pool: Pool, hook: int) -> int:
    """The action for a packet to a VIP of this pool that has no flow."""
    row = NEW_RAW if pool.raw else NEW_OFFLOAD if pool.offloaded else NEW_NFQUEUE
    return ACTIONS[row * HOOKS + hook]


def row_of(flags: int, reply: int) -> int:
    """The row of a flow's packets of one direction."""
    if flags & WIRED:
        return FRAMED
    if flags & OFFLOADED:
        return KERNEL
    return QUEUED_DNAT_REPLY if reply and not flags & FULL else QUEUED


def is_after_routing(hook: int) -> bool:
    """Whether this hook comes after the kernel's routing decision: replies in `dnat` mode are
    rewritten there."""
    return hook not in (PREROUTING, OUTPUT, WIRE)
