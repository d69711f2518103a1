"""The reader's end of a ring that an eBPF program writes records to
(Documentation/bpf/ringbuf.rst)."""

import mmap

import cython

from featherlb.system.ebpf import Map

if not cython.compiled:
    from featherlb.core.flows.entry import fence

BUSY, DISCARDED = 1 << 31, 1 << 30
"""Flags in a record's length: it is being written; it is to be skipped."""
HEADER = 8
"""Bytes in front of a record."""
PAGE = mmap.PAGESIZE


class Ring:
    """`memory` has the records, twice in a row, so that none wraps; `length` is that of the record
    found last, in bytes."""

    def __init__(self, ring: Map) -> None:
        self.size = ring.shape.max_entries
        self.length = 0
        # The reader's position may be written; the writers' and the data may not.
        self._consumer = mmap.mmap(ring.fd, PAGE)
        self._producer = mmap.mmap(ring.fd, PAGE + 2 * self.size, prot=mmap.PROT_READ, offset=PAGE)
        self._position = memoryview(self._consumer)[:8].cast("Q")
        self._end = memoryview(self._producer)[:8].cast("Q")
        self.memory = memoryview(self._producer)[PAGE:]
        self._headers = self.memory.cast("I")
        self._next = self._position[0]

    def next(self) -> int:
        """Where the next record is in `memory`, -1 if there is none."""
        while self._next != self._end[0]:
            at = self._next & (self.size - 1)
            header = self._headers[at >> 2]
            if header & BUSY:
                break
            fence()
            self.length = header & ~(BUSY | DISCARDED)
            self._next += (self.length + HEADER + 7) & ~7
            if not header & DISCARDED:
                return at + HEADER
        return -1

    def free(self) -> None:
        """Make room for the writers: the records found so far are no longer needed."""
        self._position[0] = self._next

    def read(self) -> list[bytes]:
        """All records that have come, copied."""
        records = []
        while (at := self.next()) >= 0:
            records.append(bytes(self.memory[at : at + self.length]))
        self.free()
        return records
