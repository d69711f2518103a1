"""The datapath ebpf: packets that open a flow, and those that the program in the kernel leaves
alone, come through the worker's queue; the program carries the rest.

The supervisor has loaded the program and pinned its maps (`system/programs.py`). A worker shares
the entries of its flows with the program as memory, and inserts and deletes their keys.
"""

import struct
from contextlib import ExitStack

from featherlb.core.path.openings import Tables
from featherlb.datapaths import base
from featherlb.datapaths.base import Context, EngineCounters, ServiceChange
from featherlb.datapaths.ebpf.exchange import Exchange
from featherlb.model.errors import HostError
from featherlb.model.ticks import TICKS_PER_SECOND
from featherlb.system import ebpf, programs
from featherlb.system.elements import Elements
from featherlb.system.ring import Ring


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
                keys4, keys6 = (
                    Elements(opened.enter_context(ebpf.open_map(place / name)))
                    for name in ("flows4", "flows6")
                )
                with ebpf.open_map(place / "entries") as entries:
                    self._entries = memoryview(entries.memory())
                with ebpf.open_map(place / f"ring-{context.shard.worker}") as ring:
                    self._ring = Ring(ring)
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
        self._exchange = Exchange(self._core, self._ring, keys4, keys6)
        self._places: dict[bytes, int] = {}
        self._started = False
        context.queue.attach_program(self._exchange)

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
        self._exchange.execute()
        self._core.openings.update()
        self._serve()

    def tick(self, now: float) -> None:
        self._exchange.execute()
        self._core.carrying.sweep()
        self._core.review_openings()
        self._core.openings.refresh()
        self._serve()

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
        self._exchange.listen(now)  # a command may come next that asks for the flows
        self._exchange.execute()

    def refresh(self, first: int, count: int, now: float) -> None:
        self._core.carrying.catch_up_range(first, count)

    def counters(self) -> EngineCounters:
        carried = self._core.carrying.carried
        return EngineCounters(
            carried=carried.carried, given=carried.given, unplaced=carried.unplaced
        )

    def close(self) -> None:
        self._opened.close()
