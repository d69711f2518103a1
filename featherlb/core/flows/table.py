"""The flow table: every tracked connection, found by either direction, in flat memory.

Theory of operation:

*Records.* A flow is a record (`record.py`) in one mapping, whose zero pages the kernel allocates on
first use, so a large limit costs nothing until it is used. Record 0 means "none".

*Index.* An open-addressing hash table with linear probing holds two entries a flow: the key of
a forward packet (client to VIP) and that of a reply (backend to the address the backend sees).
An entry is a 32-bit hash tag and a 32-bit reference (flow number and direction). Deletion shifts
the following entries back, so there are no tombstones and no rehashing, ever. It is at most half
full. The hash is multilinear (Lemire and Kaser, "Strongly universal string hashing is fast",
2014) over 32-bit words with secret multipliers, so that nobody can craft colliding flows.

*Time.* Flows with the same timeout form a doubly linked queue in the order of their last packet, so
the next one to expire is always a head, and expiry and eviction are O(1). Time is in ticks of 0.1
s. A busy flow moves in its queue at most once a second or once per 16th of the timeout, as moving
it touches its neighbours' memory; it may expire earlier by as much.

*Limits.* Never more than `capacity` flows. `victim()` is the flow to evict for a new one: in the
queues of the lowest rank, the one that was idle for longest.
"""

import mmap
from array import array
from hashlib import blake2b

import cython

from featherlb.core.flows.memory import FlowMemory
from featherlb.core.flows.record import Records
from featherlb.model.ticks import TICKS_PER_SECOND

MASK64 = 0xFFFFFFFFFFFFFFFF

if not cython.compiled:
    from featherlb.core.flows.record import (
        ABANDONED,
        OFFLOADED,
        REPLY_ONLY,
        Record,
        clear,
        direction_of,
        ports_of,
    )
    from featherlb.net.packet import MASK32

    def prefetch(address: object) -> None:
        """Has no equivalent in Python."""


MAX_QUEUES = 255
MAX_GRAIN = TICKS_PER_SECOND
"""Ticks by which a flow's last packet may be later than its record says."""


class FlowTable:
    """At most `capacity` flows. References are `flow << 1 | direction`, 0 for none."""

    def __init__(self, memory: FlowMemory, secret: bytes) -> None:
        """`memory`, all zeros, determines the capacity. `secret` keys the hash: 16 random bytes or
        more."""
        capacity = self.capacity = memory.capacity
        self.count = 0
        self.records = Records(memory.records)
        self.used = memory.used
        self.created = memory.created
        self.splices = memory.splices
        slots = 1 << (4 * capacity - 1).bit_length()
        self.mask = slots - 1
        self.index = memoryview(mmap.mmap(-1, slots * 8)).cast("Q")
        self.unused = 1  # records from here on were never used
        self.free = 0  # head of the list of used and freed records, linked by `next`
        self.queues = 0
        self.head = memoryview(array("I", bytes(4 * MAX_QUEUES)))
        self.tail = memoryview(array("I", bytes(4 * MAX_QUEUES)))
        self.length = memoryview(array("I", bytes(4 * MAX_QUEUES)))
        self.timeout = memoryview(array("I", bytes(4 * MAX_QUEUES)))
        self.rank = memoryview(array("I", bytes(4 * MAX_QUEUES)))
        self.grain = memoryview(array("I", bytes(4 * MAX_QUEUES)))
        keys = b"".join(
            blake2b(bytes([i]), key=secret[:64], digest_size=8).digest() for i in range(11)
        )
        (
            self.k0,
            self.k1,
            self.k2,
            self.k3,
            self.k4,
            self.k5,
            self.k6,
            self.k7,
            self.k8,
            self.k9,
            self.k10,
        ) = memoryview(keys).cast("Q")

    if not cython.compiled:

        def at(self, flow: int) -> Record:
            """The record of a flow, by its number."""
            return self.records.at(flow)

    def add_queue(self, rank: int, timeout: float) -> int:
        """Add a queue with this timeout in seconds; a full table evicts low ranks first."""
        queue = self.queues
        if queue >= MAX_QUEUES:
            raise ValueError(f"more than {MAX_QUEUES} different timeouts")
        self.rank[queue] = rank
        self.timeout[queue] = max(1, round(timeout * TICKS_PER_SECOND))
        self.grain[queue] = max(1, min(MAX_GRAIN, self.timeout[queue] // 16))
        self.queues = queue + 1
        return queue

    # Finding

    def tag(
        self, src_high: int, src_low: int, dst_high: int, dst_low: int, ports: int, protocol: int
    ) -> int:
        """The 32-bit keyed hash of a packet's addresses, ports (source << 16 | destination)
        and protocol."""
        total = (
            self.k0
            + self.k1 * (src_low & MASK32)
            + self.k2 * (dst_low & MASK32)
            + self.k3 * ports
            + self.k4 * protocol
        )
        if src_high or dst_high:
            total += (
                self.k5 * (src_low >> 32)
                + self.k6 * (src_high & MASK32)
                + self.k7 * (src_high >> 32)
                + self.k8 * (dst_low >> 32)
                + self.k9 * (dst_high & MASK32)
                + self.k10 * (dst_high >> 32)
            )
        return (total & MASK64) >> 32

    def find(
        self, src_high: int, src_low: int, dst_high: int, dst_low: int, ports: int, protocol: int
    ) -> int:
        """The reference of a packet's flow and direction, 0 for none."""
        tag = self.tag(src_high, src_low, dst_high, dst_low, ports, protocol)
        slot = tag & self.mask
        entry = self.index[slot]
        while entry:
            if entry >> 32 == tag:
                ref = entry & MASK32
                record = self.at(ref >> 1)
                direction = direction_of(record, ref & 1)
                if (
                    direction.src_low == src_low
                    and direction.dst_low == dst_low
                    and direction.src_port == ports >> 16
                    and direction.dst_port == ports & 0xFFFF
                    and direction.src_high == src_high
                    and direction.dst_high == dst_high
                    and record.protocol == protocol
                ):
                    return ref
            slot = (slot + 1) & self.mask
            entry = self.index[slot]
        return 0

    def fetch_entry(self, tag: int) -> None:
        """Prefetch the index entry of a key whose packet comes soon (compiled only). In a large
        table this load is the slowest part of a look-up."""
        if cython.compiled:
            prefetch(cython.address(self.index[tag & self.mask]))

    def fetch_record(self, tag: int) -> None:
        """Prefetch the record, once the entry has been loaded."""
        if cython.compiled:
            record = self.at((self.index[tag & self.mask] & MASK32) >> 1)
            prefetch(record)
            prefetch(cython.address(record.protocol))  # the second cache line

    # Changing

    def insert(
        self,
        protocol: int,
        client_high: int,
        client_low: int,
        vip_high: int,
        vip_low: int,
        forward_ports: int,
        backend_high: int,
        backend_low: int,
        source_high: int,
        source_low: int,
        reply_ports: int,
        queue: int,
        ticks: int,
    ) -> int:
        """Add a flow at the end of `queue`; 0 if the table is full.

        The caller ensures that neither key is in the table, and sets the other fields.
        """
        flow = self.free
        record = self.at(flow)
        if flow:
            self.free = record.next
        elif self.unused <= self.capacity:
            flow = self.unused
            record = self.at(flow)
            self.unused = flow + 1
            self.used[0] = flow
        else:
            return 0
        clear(record)
        record.client_high = client_high
        record.client_low = client_low
        record.vip_high = vip_high
        record.vip_low = vip_low
        record.client_port = forward_ports >> 16
        record.vip_port = forward_ports & 0xFFFF
        record.backend_high = backend_high
        record.backend_low = backend_low
        record.source_high = source_high
        record.source_low = source_low
        record.backend_port = reply_ports >> 16
        record.source_port = reply_ports & 0xFFFF
        self.created[flow] = ticks
        record.seen = ticks
        record.protocol = protocol
        record.queue = queue
        self.append(flow, queue)
        self.link(flow << 1)
        self.link(flow << 1 | 1)
        self.count += 1
        return flow

    def hide(self, flow: int) -> None:
        """Remove the forward key from the index: several flows may share it."""
        self.unlink(flow << 1)
        self.at(flow).flags |= REPLY_ONLY

    def remove(self, flow: int) -> None:
        """Remove a flow; its record is reused."""
        record = self.at(flow)
        if not record.flags & REPLY_ONLY:
            self.unlink(flow << 1)
        self.unlink(flow << 1 | 1)
        self.take(flow)
        record.protocol = 0
        record.next = self.free
        self.free = flow
        self.count -= 1

    def set_source_port(self, flow: int, port: int) -> bool:
        """Change the port that replies come to; False if another flow has that reply key."""
        record = self.at(flow)
        found = self.find(
            record.backend_high,
            record.backend_low,
            record.source_high,
            record.source_low,
            record.backend_port << 16 | port,
            record.protocol,
        )
        if found:
            return found == flow << 1 | 1
        self.unlink(flow << 1 | 1)
        record.source_port = port
        self.link(flow << 1 | 1)
        return True

    def move(self, flow: int, queue: int, ticks: int) -> None:
        """Move a flow to the end of a queue, which has another timeout."""
        record = self.at(flow)
        self.take(flow)
        record.queue = queue
        record.seen = ticks
        self.append(flow, queue)

    def touch(self, flow: int, ticks: int) -> None:
        """Restart the flow's timeout after a packet."""
        record = self.at(flow)
        if ticks - record.seen >= self.grain[record.queue]:
            self.take(flow)
            record.seen = ticks
            self.append(flow, record.queue)

    # Ending

    def expired(self, ticks: int) -> int:
        """A flow whose timeout has passed, 0 if there is none. It stays until it is removed."""
        for queue in range(self.queues):
            flow = self.head[queue]
            if flow and ticks - self.at(flow).seen >= self.timeout[queue]:
                return flow
        return 0

    def victim(self) -> int:
        """The flow to evict from a full table: lowest rank, then least recently used."""
        best = best_queue = 0
        for queue in range(self.queues):
            flow = self.head[queue]
            if flow and (
                not best
                or self.rank[queue] < self.rank[best_queue]
                or (
                    self.rank[queue] == self.rank[best_queue]
                    and self.at(flow).seen < self.at(best).seen
                )
            ):
                best, best_queue = flow, queue
        return best

    def last_record(self) -> int:
        """The highest record number ever used; records are listed by counting up to it."""
        return self.unused - 1

    def is_offloaded(self, flow: int) -> bool:
        """Whether the kernel translates this flow."""
        record = self.at(flow)
        return bool(record.protocol and record.flags & (OFFLOADED | ABANDONED) == OFFLOADED)

    # The index

    def key_tag(self, ref: int) -> int:
        """The hash of a stored key."""
        record = self.at(ref >> 1)
        direction = direction_of(record, ref & 1)
        return self.tag(
            direction.src_high,
            direction.src_low,
            direction.dst_high,
            direction.dst_low,
            ports_of(direction),
            record.protocol,
        )

    def link(self, ref: int) -> None:
        """Add a key to the index."""
        tag = self.key_tag(ref)
        slot = tag & self.mask
        while self.index[slot]:
            slot = (slot + 1) & self.mask
        self.index[slot] = tag << 32 | ref

    def unlink(self, ref: int) -> None:
        """Remove a key from the index and close the gap (Knuth, TAOCP 3, 6.4 algorithm R)."""
        wanted = self.key_tag(ref) << 32 | ref
        mask = self.mask
        gap = (wanted >> 32) & mask
        while self.index[gap] != wanted:
            gap = (gap + 1) & mask
        slot = (gap + 1) & mask
        entry = self.index[slot]
        while entry:
            home = (entry >> 32) & mask
            # The entry may fill the gap unless its home lies cyclically after the gap.
            if ((slot - home) & mask) >= ((slot - gap) & mask):
                self.index[gap] = entry
                gap = slot
            slot = (slot + 1) & mask
            entry = self.index[slot]
        self.index[gap] = 0

    # The queues

    def append(self, flow: int, queue: int) -> None:
        """Link a flow to the end of a queue."""
        last = self.tail[queue]
        record = self.at(flow)
        record.previous = last
        record.next = 0
        if last:
            self.at(last).next = flow
        else:
            self.head[queue] = flow
        self.tail[queue] = flow
        self.length[queue] += 1

    def take(self, flow: int) -> None:
        """Unlink a flow from its queue."""
        record = self.at(flow)
        queue = record.queue
        if record.previous:
            self.at(record.previous).next = record.next
        else:
            self.head[queue] = record.next
        if record.next:
            self.at(record.next).previous = record.previous
        else:
            self.tail[queue] = record.previous
        self.length[queue] -= 1
