"""What a worker and the program tell each other with every batch of packets: which flows the
program has opened or changed, and the keys of those that it gets or loses."""

import cython

from featherlb.core.flows.carried import Keys
from featherlb.core.path.balancer import Balancer
from featherlb.system.elements import Elements
from featherlb.system.ring import Ring

if not cython.compiled:

    def copy_bytes(to: memoryview, source: memoryview, at: int, length: int) -> None:
        """Copy bytes to the beginning of a buffer."""
        to[:length] = source[at : at + length]


NANOSECONDS = 1_000_000_000
HEADERS = 112
"""Bytes of headers in `struct opening`, at most."""
OPENING = 16
"""Bytes of `struct event`, with which it begins."""


class Exchange:
    """The program's end is a ring of `struct event` and `struct opening` (featherlb/bpf/flows.c),
    and the maps of its keys."""

    def __init__(self, core: Balancer, ring: Ring, keys4: Elements, keys6: Elements) -> None:
        self._core = core
        self._ring = ring
        self._keys4 = keys4
        self._keys6 = keys6
        self._buffer = bytearray(HEADERS)
        self._headers = memoryview(self._buffer)
        self._bytes = ring.memory
        self._halves = ring.memory.cast("H")
        self._words = ring.memory.cast("I")
        self._longs = ring.memory.cast("Q")

    def listen(self, now: float) -> None:
        """Report to the core what has happened: a connection that has just ended makes room for a
        new one."""
        core = self._core
        at = self._ring.next()
        if at < 0:
            return
        while at >= 0:
            index = self._words[at >> 2]
            before = self._bytes[at + 4]
            after = self._bytes[at + 5]
            time = self._longs[(at >> 3) + 1] / NANOSECONDS
            if before:
                core.carrying.noticed(index, before, after, time)
            elif not after:
                core.carrying.carried.reject(index)
            else:
                self.take_opened(index, at + OPENING, self._halves[(at >> 1) + 3], time)
            at = self._ring.next()
        self._ring.free()

    def take_opened(self, index: int, at: int, length: int, time: float) -> None:
        """Report a flow that the program has opened, by these headers of its first packet."""
        core = self._core
        headers = self._headers
        copy_bytes(headers, self._bytes, at, min(length, HEADERS))
        if core.buffer is not self._buffer:
            core.attach(self._buffer)
        if headers[0] >> 4 == 4:
            total = headers[2] << 8 | headers[3]
        else:
            total = 40 + (headers[4] << 8 | headers[5])
        core.opened(index, total, time)

    def execute(self) -> None:
        """Delete and insert the keys that the core has queued. Flows whose keys find no room stay
        with the worker."""
        carried = self._core.carrying.carried
        while carried.pending():
            self.change(carried.keys4, self._keys4)
            self.change(carried.keys6, self._keys6)

    def change(self, keys: Keys, table: Elements) -> None:
        """The same, of one address family."""
        if keys.gone:
            count = keys.gone
            keys.gone = 0
            table.delete(keys.deletes, count)
        if keys.count:
            count = keys.count
            keys.count = 0
            done = table.update(keys.inserts, keys.refs, count)
            if done < count:
                for index in {keys.refs[at] >> 1 for at in range(done, count)}:
                    self._core.carrying.carried.refuse(index)
