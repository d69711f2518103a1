"""The flow table: every tracked connection, found by either direction, in flat memory.

Theory of operation:

*Records.* A flow is a record of 128 bytes in one mapping that the kernel fills with zero pages as
they are touched, so a large limit costs nothing until it is used. Record 0 means "none". Addresses
are 128 bits in two words; an IPv4 address is held in IPv6's mapped form (RFC 4291 section 2.5.5.2),
so both families share one layout.

*Index.* An open-addressing hash table with linear probing holds two entries a flow: the key of
a forward packet (client to VIP) and that of a reply (backend to the address the backend sees).
An entry is a 32-bit hash tag and a 32-bit reference (flow number and direction). Deletion shifts
the following entries back, so there are no tombstones and no rehashing, ever. It is at most half
full. The hash is multilinear (Lemire and Kaser, "Strongly universal string hashing is fast",
2014) over 32-bit words with secret multipliers: nobody outside can choose colliding flows.

*Time.* Flows of one timeout stand in a doubly linked queue in the order of their last packet, so
the next to expire is always a head, expiry and eviction are O(1), and no timer is ever searched.
Time is kept in ticks of 0.1 s. A busy flow moves in its queue once a second at most, or once in a
16th of the timeout: moving it touches the memory of its neighbours. It may expire so much earlier.

*Limits.* `capacity` flows, never more. `victim()` names whom to give up for a new one: of the
queues of the lowest rank the flow that was idle for longest.
"""

import mmap
from array import array
from hashlib import blake2b

import cython

from featherlb.core.flows.memory import FlowMemory
from featherlb.model.ticks import TICKS_PER_SECOND

MASK32 = 0xFFFFFFFF
MASK64 = 0xFFFFFFFFFFFFFFFF

# Layout of a record, as indices into its view of that width (64, 32, 16 or 8 bits).
FORWARD_KEY = 0  # u64: client high, low, VIP high, low
REPLY_KEY = 4  # u64: backend high, low, source high, low
PORTS = 16  # u32: forward (client << 16 | VIP), reply (backend << 16 | source)
PROTOCOL = 72  # u8
STATE = 73  # u8
QUEUE = 74  # u8
FLAGS = 75  # u8
MEMBER = 38  # u16: index of the pool member
RESPONSES = 39  # u16: datagrams that answer each datagram, of a counted flow
ADDRESS_DELTA = 40  # u16: checksum delta of the addresses, forward
TRANSPORT_DELTA = 41  # u16: of addresses and ports, forward
CREATED = 21  # u32, ticks
PREVIOUS = 22  # u32, flow
NEXT = 23  # u32, flow
SEEN = 24  # u32, ticks of the last packet
EXPECTED = 26  # u32: TCP: next sequence number that the client, the backend expects
AWAITED = 26  # u32: UDP: datagrams that a counted flow still waits for
CARRIED = 26  # u32: of an offloaded flow: packets forward, replies, as they were last looked at
BYTES = 14  # u64: forward, reply
KEY_BYTES = 73  # both keys, ports and protocol, which say which flow it is

# Bits of FLAGS.
IPV6 = 1
FULL = 2
LOCAL_BACKEND = 4
LOCAL_CLIENT = 8
REPLY_ONLY = 16  # the index holds the key of its replies only (one-packet scheduling)
COUNTED = 32  # ends after the expected number of responses
ABANDONED = 32  # of an offloaded flow: conntrack has no entry of it any more
WIRED = 64  # its packets come and go as frames (the raw datapath)
OFFLOADED = 128  # the kernel's conntrack carries its packets

if not cython.compiled:

    def prefetch(address: object) -> None:
        """Only C can ask for it."""


MAX_QUEUES = 255
MAX_GRAIN = TICKS_PER_SECOND
"""Ticks by which a flow's last packet may be later than its record says."""


class FlowTable:
    """At most `capacity` flows. References are `flow << 1 | direction`, 0 for none."""

    def __init__(self, memory: FlowMemory, secret: bytes) -> None:
        """As many flows as fit into this memory, which is all zeros. `secret` keys the hash: 16
        bytes or more of randomness."""
        capacity = self.capacity = memory.capacity
        self.count = 0
        self.u64 = memory.records.cast("Q")
        self.u32 = memory.records.cast("I")
        self.u16 = memory.records.cast("H")
        self.u8 = memory.records
        self.used = memory.used
        slots = 1 << (4 * capacity - 1).bit_length()
        self.mask = slots - 1
        self.index = memoryview(mmap.mmap(-1, slots * 8)).cast("Q")
        self.unused = 1  # records from here on were never used
        self.free = 0  # head of the list of used and freed records, linked by NEXT
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

    def add_queue(self, rank: int, timeout: float) -> int:
        """A queue of flows with this timeout in seconds; a full table evicts low ranks first."""
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
        """The reference of the flow and direction that a packet belongs to, 0 for none."""
        tag = self.tag(src_high, src_low, dst_high, dst_low, ports, protocol)
        slot = tag & self.mask
        entry = self.index[slot]
        while entry:
            if entry >> 32 == tag:
                ref = entry & MASK32
                base = (ref >> 1) * 16 + (ref & 1) * 4
                if (
                    self.u64[base + 1] == src_low
                    and self.u64[base + 3] == dst_low
                    and self.u32[(ref >> 1) * 32 + PORTS + (ref & 1)] == ports
                    and self.u64[base] == src_high
                    and self.u64[base + 2] == dst_high
                    and self.u8[(ref >> 1) * 128 + PROTOCOL] == protocol
                ):
                    return ref
            slot = (slot + 1) & self.mask
            entry = self.index[slot]
        return 0

    def fetch_entry(self, tag: int) -> None:
        """Have the processor load the index entry of a key, if there is a processor to ask: a
        packet of that key comes soon. In a large table this load is what finding takes longest
        for."""
        if cython.compiled:
            prefetch(cython.address(self.index[tag & self.mask]))

    def fetch_record(self, tag: int) -> None:
        """The same for the record, when the entry is there."""
        if cython.compiled:
            flow = (self.index[tag & self.mask] & MASK32) >> 1
            prefetch(cython.address(self.u64[flow * 16]))
            prefetch(cython.address(self.u64[flow * 16 + 8]))

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
        """A new flow at the end of `queue`; 0 if the table is full.

        The caller makes sure that neither key is in the table, and fills in the other fields.
        """
        flow = self.free
        if flow:
            self.free = self.u32[flow * 32 + NEXT]
        elif self.unused <= self.capacity:
            flow = self.unused
            self.unused = flow + 1
            self.used[0] = flow
        else:
            return 0
        base = flow * 16
        self.u64[base] = client_high
        self.u64[base + 1] = client_low
        self.u64[base + 2] = vip_high
        self.u64[base + 3] = vip_low
        self.u64[base + 4] = backend_high
        self.u64[base + 5] = backend_low
        self.u64[base + 6] = source_high
        self.u64[base + 7] = source_low
        for i in range(8, 16):
            self.u64[base + i] = 0
        base = flow * 32
        self.u32[base + PORTS] = forward_ports
        self.u32[base + PORTS + 1] = reply_ports
        self.u32[base + CREATED] = ticks
        self.u32[base + SEEN] = ticks
        self.u8[flow * 128 + PROTOCOL] = protocol
        self.u8[flow * 128 + QUEUE] = queue
        self.append(flow, queue)
        self.link(flow << 1)
        self.link(flow << 1 | 1)
        self.count += 1
        return flow

    def hide(self, flow: int) -> None:
        """Find this flow by its replies only from now on: many may have one forward key."""
        self.unlink(flow << 1)
        self.u8[flow * 128 + FLAGS] |= REPLY_ONLY

    def remove(self, flow: int) -> None:
        """Forget a flow; its record is used again."""
        if not self.u8[flow * 128 + FLAGS] & REPLY_ONLY:
            self.unlink(flow << 1)
        self.unlink(flow << 1 | 1)
        self.take(flow)
        self.u8[flow * 128 + PROTOCOL] = 0
        self.u32[flow * 32 + NEXT] = self.free
        self.free = flow
        self.count -= 1

    def turn_replies(self, flow: int, ports: int) -> None:
        """Find this flow by replies with these ports (backend << 16 | source) from now on, unless
        they belong to another one."""
        base = flow * 16 + REPLY_KEY
        if self.find(
            self.u64[base],
            self.u64[base + 1],
            self.u64[base + 2],
            self.u64[base + 3],
            ports,
            self.u8[flow * 128 + PROTOCOL],
        ):
            return
        self.unlink(flow << 1 | 1)
        self.u32[flow * 32 + PORTS + 1] = ports
        self.link(flow << 1 | 1)

    def move(self, flow: int, queue: int, ticks: int) -> None:
        """Put a flow at the end of a queue: it has another timeout from now on."""
        self.take(flow)
        self.u8[flow * 128 + QUEUE] = queue
        self.u32[flow * 32 + SEEN] = ticks
        self.append(flow, queue)

    def touch(self, flow: int, ticks: int) -> None:
        """A packet was seen: the flow's timeout starts anew."""
        queue = self.u8[flow * 128 + QUEUE]
        if ticks - self.u32[flow * 32 + SEEN] >= self.grain[queue]:
            self.take(flow)
            self.u32[flow * 32 + SEEN] = ticks
            self.append(flow, queue)

    # Ending

    def expired(self, ticks: int) -> int:
        """A flow whose timeout has passed, 0 if there is none. It stays until it is removed."""
        for queue in range(self.queues):
            flow = self.head[queue]
            if flow and ticks - self.u32[flow * 32 + SEEN] >= self.timeout[queue]:
                return flow
        return 0

    def victim(self) -> int:
        """The flow to give up when the table is full: lowest rank, then least recently used."""
        best = 0
        for queue in range(self.queues):
            flow = self.head[queue]
            if flow and (
                not best
                or self.rank[queue] < self.rank[self.u8[best * 128 + QUEUE]]
                or (
                    self.rank[queue] == self.rank[self.u8[best * 128 + QUEUE]]
                    and self.u32[flow * 32 + SEEN] < self.u32[best * 32 + SEEN]
                )
            ):
                best = flow
        return best

    def last_record(self) -> int:
        """The highest record number ever used; records are listed by counting up to it."""
        return self.unused - 1

    def is_carried(self, flow: int) -> bool:
        """Whether the record is of a flow that the kernel's conntrack carries."""
        return (
            self.u8[flow * 128 + PROTOCOL] != 0
            and self.u8[flow * 128 + FLAGS] & (OFFLOADED | ABANDONED) == OFFLOADED
        )

    # The index

    def key_tag(self, ref: int) -> int:
        """The hash of a stored key."""
        flow = ref >> 1
        base = flow * 16 + (ref & 1) * 4
        return self.tag(
            self.u64[base],
            self.u64[base + 1],
            self.u64[base + 2],
            self.u64[base + 3],
            self.u32[flow * 32 + PORTS + (ref & 1)],
            self.u8[flow * 128 + PROTOCOL],
        )

    def link(self, ref: int) -> None:
        """Enter a key into the index."""
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
        self.u32[flow * 32 + PREVIOUS] = last
        self.u32[flow * 32 + NEXT] = 0
        if last:
            self.u32[last * 32 + NEXT] = flow
        else:
            self.head[queue] = flow
        self.tail[queue] = flow
        self.length[queue] += 1

    def take(self, flow: int) -> None:
        """Unlink a flow from its queue."""
        queue = self.u8[flow * 128 + QUEUE]
        before = self.u32[flow * 32 + PREVIOUS]
        after = self.u32[flow * 32 + NEXT]
        if before:
            self.u32[before * 32 + NEXT] = after
        else:
            self.head[queue] = after
        if after:
            self.u32[after * 32 + PREVIOUS] = before
        else:
            self.tail[queue] = before
        self.length[queue] -= 1
