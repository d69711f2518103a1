"""The datapath ebpf: packets that open a flow, and those that the program in the kernel leaves
alone, come through the worker's queue; the program carries the rest.

The supervisor has loaded the program and pinned its maps (`system/programs.py`). A worker shares
the entries of its flows with the program as memory, and inserts and deletes their keys.
"""

import struct
from contextlib import ExitStack

from featherlb.core.flows.carried import Keys
from featherlb.core.path.openings import Tables
from featherlb.datapaths import base
from featherlb.datapaths.base import Context, EngineCounters, ServiceChange
from featherlb.model.errors import HostError
from featherlb.model.ticks import TICKS_PER_SECOND
from featherlb.system import ebpf, programs

_EVENT = struct.Struct("=IBBHQ")
"""`struct event` in featherlb/bpf/flows.c: index, states before and after, bytes of the headers
that follow, ns of the monotonic clock."""
NANOSECONDS = 1_000_000_000
HEADERS = 112
"""Bytes of headers in an event, at most."""


class Engine(base.Engine):
    """A worker's share of the program's maps."""

    def __init__(self, context: Context) -> None:
        """HostError if the maps are not there."""
        assert context.queue is not None
        self._core = context.core
        self._shard = context.shard
        place = programs.directory(context.queue_options.number - context.shard.worker)
        with ExitStack() as opened:
            try:
                self._tables = [
                    (keys, opened.enter_context(ebpf.open_map(place / name)))
                    for keys, name in (
                        (self._core.carrying.carried.keys4, "flows4"),
                        (self._core.carrying.carried.keys6, "flows6"),
                    )
                ]
                with ebpf.open_map(place / "entries") as entries:
                    self._entries = memoryview(entries.memory())
                with ebpf.open_map(place / f"ring-{context.shard.worker}") as ring:
                    self._ring = ebpf.Ring(ring)
                self._place_map = opened.enter_context(ebpf.open_map(place / "places"))
                self._part = {
                    name: self._part_of(opened.enter_context(ebpf.open_map(place / name)))
                    for name in programs.OF_WORKERS
                }
                with ebpf.open_map(place / "control") as control:
                    self._control = memoryview(control.memory())
            except OSError as error:
                raise HostError(
                    f"the maps of the eBPF program in {place} can't be used: {error.strerror}"
                ) from None
            self._opened = opened.pop_all()
        self._headers = bytearray(HEADERS)
        self._places: dict[bytes, int] = {}
        self._started = False
        context.queue.attach_program(self)

    def apply(self, change: ServiceChange, now: float) -> None:
        """Adopt what the program carries already; take back what it must not carry any longer."""
        if not self._started:
            self._started = True
            # First of all, it opens no more flows than those that are adopted.
            self._core.openings.attach(Tables(**self._part, control=self._control))
            ours = filter(lambda key: key[-1] == self._shard.worker, self._place_map.keys())
            self._places = dict.fromkeys(ours, -1)
            self._ring.read()
            self._core.carrying.start(self._entries, self._shard, int(now * TICKS_PER_SECOND))
        else:
            self._core.carrying.recall()
        self.execute()
        self._core.openings.update()
        self._serve()

    def tick(self, now: float) -> None:
        self.execute()
        self._core.carrying.sweep()
        self._core.review_openings()
        self._core.openings.refresh()
        self._serve()

    def listen(self, now: float) -> None:
        """Report to the core what has happened: a connection that has just ended makes room for a
        new one."""
        core = self._core
        for record in self._ring.read():
            index, before, after, length, time = _EVENT.unpack_from(record)
            if before:
                core.carrying.noticed(index, before, after, time / NANOSECONDS)
            elif not after:
                core.carrying.carried.reject(index)
            else:
                headers = self._headers
                headers[:length] = record[_EVENT.size : _EVENT.size + length]
                if core.buffer is not headers:
                    core.attach(headers)
                core.opened(index, _length(headers), time / NANOSECONDS)

    def _part_of(self, table: ebpf.Map) -> memoryview:
        """This worker's part of a map."""
        memory = memoryview(table.memory())
        size = table.shape.max_entries // self._shard.workers * table.shape.stride
        return memory[self._shard.worker * size : (self._shard.worker + 1) * size]

    def _serve(self) -> None:
        """Have the program know the places that it must know for this worker, and no others."""
        wanted = self._core.openings.places
        if wanted is self._places:
            return
        for key in self._places.keys() - wanted.keys():
            self._place_map.delete(key)
        for key, number in wanted.items():
            if self._places.get(key) != number:
                self._place_map.update(key, struct.pack("=I", number))
        self._places = wanted

    def flush(self, now: float) -> None:
        self.listen(now)  # a command may come next that asks for the flows
        self.execute()

    def refresh(self, first: int, count: int, now: float) -> None:
        self._core.carrying.catch_up_range(first, count)

    def counters(self) -> EngineCounters:
        carried = self._core.carrying.carried
        return EngineCounters(
            carried=carried.carried, given=carried.given, unplaced=carried.unplaced
        )

    def execute(self) -> None:
        """Delete and insert the keys that the core has queued. Flows whose keys find no room stay
        with the worker."""
        carried = self._core.carrying.carried
        while carried.pending():
            for keys, table in self._tables:
                if keys.gone:
                    gone, keys.gone = keys.gone, 0
                    table.delete_batch(keys.deletes, gone)
                if keys.count:
                    for index in self._insert(keys, table):
                        carried.refuse(index)

    def _insert(self, keys: Keys, table: ebpf.Map) -> set[int]:
        """Insert keys; the indexes of those that find no room."""
        count, keys.count = keys.count, 0
        done = table.update_batch(keys.inserts, keys.refs, count)
        return {keys.refs[at] >> 1 for at in range(done, count)}

    def close(self) -> None:
        self._ring.close()
        self._opened.close()


def _length(headers: bytearray) -> int:
    """The length of the IP packet with these headers."""
    if headers[0] >> 4 == 4:
        return int.from_bytes(headers[2:4], "big")
    return 40 + int.from_bytes(headers[4:6], "big")
