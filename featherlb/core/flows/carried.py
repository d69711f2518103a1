"""The flows that a program in the kernel carries: the datapath ebpf.

A carried flow has an *entry* (`entry.py`) in memory that the program shares, and a *key* for each
direction in the program's hash tables. The core gives a flow to the program by writing the entry
and queueing the keys, and takes it back by one store into the entry: from then on its packets come
through the queue again. An engine (`datapaths/ebpf/`) inserts and deletes the keys, many at once
(`Keys`). An entry whose key is still there but that isn't live does no harm.

An index belongs to one worker: all that leave its number as the remainder, divided by the number of
workers. That of a flow that has ended rests for a tick or more, as a packet may be in the program.
Times are in ticks of 0.1 s.
"""

import mmap
from array import array

import cython

from featherlb.core.flows.counters import Counters
from featherlb.core.flows.entry import ENTRY_SIZE, Entries
from featherlb.core.flows.table import FlowTable

if not cython.compiled:
    from featherlb.core.flows.counters import COUNTERS, DOUBTFUL
    from featherlb.core.flows.entry import (
        DOUBTFUL_SHIFT,
        ENTRY_BACKEND_SPOKE,
        ENTRY_CLIENT_SPOKE,
        IPV6_ENTRY,
        Entry,
        fence,
        swap16,
        swap64,
    )
    from featherlb.core.flows.record import (
        BACKEND_SPOKE,
        CARRIED,
        CLIENT_SPOKE,
        IPV6,
        direction_of,
    )
    from featherlb.net.packet import MASK32

    def copy_bytes(to: memoryview, at: int, source: memoryview, first: int, length: int) -> None:
        """Copy bytes from one buffer to another."""
        to[at : at + length] = source[first : first + length]


NO_MEMBER = -1
NOT_NUMBERED = (1 << 16) - 1
"""A member in an entry whose own number is too high."""
KEY4, KEY6 = 16, 40
"""Bytes of a key: source and destination address, their ports, the protocol, zeros."""


class Keys:
    """Keys of one address family, to insert and to delete: `inserts` with the `refs` that they lead
    to (index << 1 | direction), `count` of them; `deletes`, `gone` of them. What is deleted comes
    first."""

    def __init__(self, size: int) -> None:
        """`size` is that of a key in bytes."""
        self.size = size
        self.count = 0
        self.gone = 0
        self.inserts = memoryview(bytearray(64 * size))
        self.refs = memoryview(array("I", bytes(64 * 4)))
        self.deletes = memoryview(bytearray(64 * size))

    def insert(self, entries: Entries, index: int, reply: int) -> None:
        """Queue the key of one direction of an entry."""
        if self.count == len(self.refs):
            self.inserts = memoryview(bytearray(2 * bytes(self.inserts)))
            self.refs = memoryview(array("I", 2 * bytes(self.refs)))
        self.write(self.inserts, self.count, entries, index, reply)
        self.refs[self.count] = index << 1 | reply
        self.count += 1

    def delete(self, entries: Entries, index: int, reply: int) -> None:
        """Queue the deletion of one."""
        if (self.gone + 1) * self.size > len(self.deletes):
            self.deletes = memoryview(bytearray(2 * bytes(self.deletes)))
        self.write(self.deletes, self.gone, entries, index, reply)
        self.gone += 1

    def forget(self, index: int) -> bool:
        """Whether the keys of this entry were still to be inserted, which they are no longer."""
        found = False
        at = 0
        while at < self.count:
            if self.refs[at] >> 1 != index:
                at += 1
                continue
            found = True
            self.count -= 1
            self.refs[at] = self.refs[self.count]
            copy_bytes(
                self.inserts, at * self.size, self.inserts, self.count * self.size, self.size
            )
        return found

    def write(self, to: memoryview, number: int, entries: Entries, index: int, reply: int) -> None:
        """Write the key at this number in a buffer: the tuple of a packet as it arrives."""
        at = number * self.size
        length = 4 if self.size == KEY4 else 16
        # Client and VIP stand first in an entry, then backend and source.
        first = index * ENTRY_SIZE + 32 * reply + 16 - length
        memory = entries.memory
        copy_bytes(to, at, memory, first, length)
        copy_bytes(to, at + length, memory, first + 16, length)
        copy_bytes(to, at + 2 * length, memory, index * ENTRY_SIZE + 64 + 4 * reply, 4)
        to[at + 2 * length + 4] = entries.at(index).protocol
        to[at + 2 * length + 5] = 0
        to[at + 2 * length + 6] = 0
        to[at + 2 * length + 7] = 0


class Carried:
    """The carried flows of one worker.

    `active` says whether there is a program. `carried` counts its flows now, `given` those that it
    got, `unplaced` those that it did not get, for lack of room.
    """

    def __init__(self, flows: FlowTable, counters: Counters) -> None:
        """Without a program."""
        self.active = False
        self.carried = 0
        self.given = 0
        self.unplaced = 0
        self.keys4 = Keys(KEY4)
        self.keys6 = Keys(KEY6)
        self.entries = Entries(memoryview(bytearray(ENTRY_SIZE)))
        self.worker = 0
        self.workers = 1
        self._flows = flows
        self._counters = counters
        self._ended: list[tuple[int, int]] = []
        self._resting: list[tuple[int, int]] = []
        self._word = 0
        self.attach_nothing()

    def attach_nothing(self) -> None:
        """Have no entries."""
        none = memoryview(array("I", bytes(4)))
        self.entry_of = self.flow_of = self.free = none
        self.free_count = 0
        self.known_packets = memoryview(array("I", bytes(8)))
        self.known_bytes = memoryview(array("Q", bytes(16)))
        self.known_doubtful = memoryview(array("H", bytes(2)))

    def attach(self, memory: memoryview, worker: int, workers: int) -> None:
        """Use the entries in this memory, of which this worker has one in `workers`. None is free
        until `release_rest`."""
        entries = self.entries = Entries(memory)
        count = entries.count
        self.worker = worker
        self.workers = workers
        # By flow and by entry; memory is allocated on use.
        self.entry_of = _zeros((self._flows.capacity + 1) * 4).cast("I")
        self.flow_of = _zeros(count * 4).cast("I")
        self.free = _zeros(count * 4).cast("I")
        self.free_count = 0
        # What was counted of an entry so far.
        self.known_packets = _zeros(count * 8).cast("I")
        self.known_bytes = _zeros(2 * 8 * count).cast("Q")
        self.known_doubtful = _zeros(count * 2).cast("H")
        self.active = True

    def pending(self) -> bool:
        """Whether there are keys to insert or to delete."""
        return bool(self.keys4.count or self.keys6.count or self.keys4.gone or self.keys6.gone)

    # Entries for flows that the program opens itself

    def attach_spare(self, queue: memoryview, spare: memoryview) -> None:
        """Hand entries to the program by this memory: head and tail of a `queue`, and its slots.
        What a predecessor had handed out is taken back."""
        self._ends = queue.cast("I")
        self._spare = spare.cast("Q")
        self._ends[0] = self._ends[1]

    def spare(self) -> None:
        """Hand out entries, half of the free ones at most."""
        ends = self._ends
        slots = self._spare
        size = len(slots)
        head = ends[0]
        room = size - ((head - ends[1]) & MASK32)
        for _ in range(min(room, self.free_count // 2)):
            self.free_count -= 1
            slots[head & (size - 1)] = self.free[self.free_count]
            head = (head + 1) & MASK32
        fence()
        ends[0] = head

    def bind_opened(self, flow: int, index: int) -> None:
        """Note that the program has opened this flow with this entry: all it has counted counts."""
        self.bind(flow, index)
        for reply in (0, 1):
            self.known_packets[2 * index + reply] = 0
            self.known_bytes[2 * index + reply] = 0
        self.known_doubtful[index] = 0
        self.given += 1

    def reject(self, index: int) -> None:
        """Take back an entry with which the program has opened a flow that there must not be, or
        has opened none."""
        entry = self.entries.at(index)
        if entry.live:
            entry.live = 0
            self._delete_keys(index)
        self._ended.append((index, NO_MEMBER))

    def _delete_keys(self, index: int) -> None:
        """Delete the keys of an entry without a flow, unless they are those of another flow."""
        entry = self.entries.at(index)
        keys = self.keys6 if entry.options & IPV6_ENTRY else self.keys4
        if not self.find(entry, 0):
            keys.delete(self.entries, index, 0)
        if not self.find(entry, 1):
            keys.delete(self.entries, index, 1)

    # Flows

    def give(self, flow: int, options: int, ticks: int) -> bool:
        """Have the program carry a flow from the next packet on; False if there is no room."""
        if not self.free_count:
            self.unplaced += 1
            return False
        record = self._flows.at(flow)
        self.free_count -= 1
        index = self.free[self.free_count]
        entry = self.entries.at(index)
        entry.client[0] = swap64(record.client_high)
        entry.client[1] = swap64(record.client_low)
        entry.vip[0] = swap64(record.vip_high)
        entry.vip[1] = swap64(record.vip_low)
        entry.backend[0] = swap64(record.backend_high)
        entry.backend[1] = swap64(record.backend_low)
        entry.source[0] = swap64(record.source_high)
        entry.source[1] = swap64(record.source_low)
        entry.client_port = swap16(record.client_port)
        entry.vip_port = swap16(record.vip_port)
        entry.backend_port = swap16(record.backend_port)
        entry.source_port = swap16(record.source_port)
        entry.options = options | (IPV6_ENTRY if record.flags & IPV6 else 0)
        entry.protocol = record.protocol
        entry.state = self._word = 0
        for reply in (0, 1):
            entry.packets[reply] = 0
            entry.bytes[reply] = 0
        self.bind(flow, index)
        self.given += 1
        self.resume(flow, ticks)
        keys = self.keys6 if record.flags & IPV6 else self.keys4
        keys.insert(self.entries, index, 0)
        keys.insert(self.entries, index, 1)
        return True

    def bind(self, flow: int, index: int) -> None:
        """Note that this flow has this entry. What the program counted before is not counted."""
        entry = self.entries.at(index)
        self.entry_of[flow] = index
        self.flow_of[index] = flow
        for reply in (0, 1):
            self.known_packets[2 * index + reply] = entry.packets[reply]
            self.known_bytes[2 * index + reply] = entry.bytes[reply]
        self.known_doubtful[index] = entry.state >> DOUBTFUL_SHIFT
        record = self._flows.at(flow)
        entry.worker = self.worker
        entry.member = min(record.member_id, NOT_NUMBERED)
        record.flags |= CARRIED
        self.carried += 1

    def take(self, flow: int) -> None:
        """Have the program leave the flow's packets alone, until `resume`. What it knows is to be
        read then (`Lifecycle.catch_up`)."""
        entry = self.entries.at(self.entry_of[flow])
        entry.live = 0
        fence()
        self._word = entry.state

    def resume(self, flow: int, ticks: int) -> None:
        """Let the program carry the flow that was taken last on, as the record has it. A packet
        that was in the program at that moment may have changed the state: that counts."""
        record = self._flows.at(flow)
        entry = self.entries.at(self.entry_of[flow])
        entry.expected[0] = record.client_expects
        entry.expected[1] = record.backend_expects
        entry.ends[0] = record.ends[0]
        entry.ends[1] = record.ends[1]
        entry.scales = record.scales
        entry.seen = ticks
        entry.quiet = 0
        state = entry.state
        if state == self._word:
            state = state >> DOUBTFUL_SHIFT << DOUBTFUL_SHIFT | record.state
            if record.flags & CLIENT_SPOKE:
                state |= ENTRY_CLIENT_SPOKE
            if record.flags & BACKEND_SPOKE:
                state |= ENTRY_BACKEND_SPOKE
            entry.state = state
        fence()
        entry.live = 1

    def quieten(self, flow: int) -> None:
        """Have a bare ACK of the backend not count as a sign of life: it answers a probe."""
        self.entries.at(self.entry_of[flow]).quiet = 1

    def end(self, flow: int) -> None:
        """Take a flow from the program for good."""
        index = self.entry_of[flow]
        record = self._flows.at(flow)
        self.entries.at(index).live = 0
        record.flags &= ~CARRIED
        self.entry_of[flow] = 0
        self.flow_of[index] = 0
        self.carried -= 1
        keys = self.keys6 if record.flags & IPV6 else self.keys4
        if not keys.count or not keys.forget(index):
            keys.delete(self.entries, index, 0)
            keys.delete(self.entries, index, 1)
        self._ended.append((index, record.member_id))

    def refuse(self, index: int) -> None:
        """The kernel has no room for a key of this entry."""
        flow = self.flow_of[index]
        if flow:
            self.unplaced += 1
            self.end(flow)

    # Entries

    if not cython.compiled:

        def of(self, flow: int) -> "Entry":
            """The entry of a carried flow."""
            return self.entries.at(self.entry_of[flow])

    def count(self, index: int, member_id: int, flow: int) -> None:
        """Count the packets and bytes that the program has carried since the last time: for a
        member, and for a flow, unless it is 0."""
        entry = self.entries.at(index)
        members = self._counters.members
        at = member_id * COUNTERS
        for reply in (0, 1):
            known = 2 * index + reply
            packets = entry.packets[reply]
            total = entry.bytes[reply]
            more = total - self.known_bytes[known]
            members[at + 2 * reply] += (packets - self.known_packets[known]) & MASK32
            members[at + 2 * reply + 1] += more
            if flow:
                direction_of(self._flows.at(flow), reply).bytes += more
            self.known_packets[known] = packets
            self.known_bytes[known] = total
        doubtful = entry.state >> DOUBTFUL_SHIFT
        if doubtful != self.known_doubtful[index]:
            members[at + DOUBTFUL] += (doubtful - self.known_doubtful[index]) & 0xFFFF
            self.known_doubtful[index] = doubtful

    def reclaim(self) -> None:
        """Make free the entries that have rested since the last call; their last packets are
        counted. Call it once per tick, when the keys that were queued before are deleted."""
        for index, member_id in self._resting:
            if member_id != NO_MEMBER:
                self.count(index, member_id, 0)
            self.discard(index)
        self._resting, self._ended = self._ended, []

    def discard(self, index: int) -> None:
        """Make an entry free, if it is this worker's."""
        self.entries.at(index).protocol = 0
        if index % self.workers == self.worker:
            self.free[self.free_count] = index
            self.free_count += 1

    def release_rest(self) -> None:
        """Make free what is this worker's and has no flow. The keys of entries that a predecessor
        left are deleted, unless they are those of another flow by now."""
        entries = self.entries
        for index in range(entries.count - 1, 0, -1):
            entry = entries.at(index)
            if self.flow_of[index] or index % self.workers != self.worker:
                continue
            if entry.protocol:
                if entry.live or entry.worker != self.worker:
                    continue  # another worker's
                self._delete_keys(index)
            self.discard(index)

    def find(self, entry: "Entry", reply: int) -> int:
        """The reference of the flow of this direction's packets, 0 if there is none."""
        if reply:
            return self._flows.find(
                swap64(entry.backend[0]),
                swap64(entry.backend[1]),
                swap64(entry.source[0]),
                swap64(entry.source[1]),
                swap16(entry.backend_port) << 16 | swap16(entry.source_port),
                entry.protocol,
            )
        return self._flows.find(
            swap64(entry.client[0]),
            swap64(entry.client[1]),
            swap64(entry.vip[0]),
            swap64(entry.vip[1]),
            swap16(entry.client_port) << 16 | swap16(entry.vip_port),
            entry.protocol,
        )


def _zeros(size: int) -> memoryview:
    """Memory that is allocated on use."""
    return memoryview(mmap.mmap(-1, max(size, mmap.PAGESIZE)))
