"""The memory of a worker's flows: one block, which can outlive the worker or be saved.

In the machine's byte order: for each flow a record (`record.py`), its client's next hop
(`next_hops.py`), the tick at which it was opened and its splice (`core/path/splice.py`), the
interface of each link id, and the highest record number ever used. Record 0 and link id 0 mean
"none".
"""

import mmap
from collections.abc import Sequence

from featherlb.core.flows.record import RECORD_SIZE

LAYOUT = 5
"""Version of the layout: memory with another version is not read."""
HOP_SIZE, TICK_SIZE, SPLICE_SIZE, MAX_LINKS = 8, 4, 8, 256
"""Bytes of a next hop, a time and a splice; number of link ids."""
FLOW_SIZE = RECORD_SIZE + HOP_SIZE + TICK_SIZE + SPLICE_SIZE
"""Bytes that a flow takes here."""
REST = (MAX_LINKS + 1) * 4


def size_of(capacity: int) -> int:
    """Bytes of memory for this many flows."""
    return (capacity + 1) * FLOW_SIZE + REST


class FlowMemory:
    """`records` are bytes; `hops` and `splices` are by flow (64 bits each), `created` too (ticks,
    32 bits each); `links` are by link id (interface indexes of 32 bits); `used` holds the highest
    number of a flow that there ever was."""

    def __init__(self, block: bytearray | mmap.mmap) -> None:
        """`block` has `size_of` bytes: zeros, or the flows of a predecessor."""
        view = memoryview(block)
        self.capacity = (len(view) - REST) // FLOW_SIZE - 1
        hops = (self.capacity + 1) * RECORD_SIZE
        splices = hops + (self.capacity + 1) * HOP_SIZE
        created = splices + (self.capacity + 1) * SPLICE_SIZE
        links = created + (self.capacity + 1) * TICK_SIZE
        self.records = view[:hops]
        self.hops = view[hops:splices].cast("Q")
        self.splices = view[splices:created].cast("Q")
        self.created = view[created:links].cast("I")
        self.links = view[links : links + MAX_LINKS * 4].cast("I")
        self.used = view[links + MAX_LINKS * 4 : links + REST].cast("I")

    def parts(self) -> Sequence[memoryview]:
        """The bytes of a smaller memory with the same flows."""
        count = self.used[0] + 1
        return (
            self.records[: count * RECORD_SIZE],
            self.hops[:count].cast("B"),
            self.splices[:count].cast("B"),
            self.created[:count].cast("B"),
            self.links,
            self.used,
        )


def anonymous(capacity: int) -> FlowMemory:
    """Memory that is allocated on use and ends with the process."""
    return FlowMemory(mmap.mmap(-1, size_of(capacity)))
