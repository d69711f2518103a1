"""Elements of an eBPF map, many with one system call, for what happens with every batch of
packets."""

import cython

from featherlb.system.ebpf import Map


class Elements:
    """The elements of one map."""

    def __init__(self, table: Map) -> None:
        self._table = table
        self.fd = table.fd
        self.key_size = table.shape.key_size

    def update(self, keys: memoryview, values: memoryview, count: int) -> int:
        """Set the values, of 32 bits, of `count` keys. Returns how many were set before one was
        refused: all, unless the map is full."""
        if cython.compiled:
            self.batch.keys = cython.cast("size_t", cython.address(keys[0]))
            self.batch.values = cython.cast("size_t", cython.address(values[0]))
            return self.run(UPDATE_BATCH, count)
        return self._table.update_batch(keys, values, count)

    def delete(self, keys: memoryview, count: int) -> None:
        """Remove `count` keys, as far as they are there."""
        if cython.compiled:
            done = 0
            while done < count:
                self.batch.keys = cython.cast("size_t", cython.address(keys[done * self.key_size]))
                self.batch.values = 0
                # It stops at a key that is missing.
                done += self.run(DELETE_BATCH, count - done) + 1
            return
        self._table.delete_batch(keys, count)
