"""Injected faults: put in force for a while, at an operator's request. They always end."""

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from featherlb.config.types import BackendKey
from featherlb.config.values import few, quote
from featherlb.control.events import Events
from featherlb.control.overrides import find_service
from featherlb.control.serving import Serving
from featherlb.model.counted import counted
from featherlb.model.errors import ConfigError
from featherlb.model.fault import Fault
from featherlb.worker.protocol import WorkerStatistics

MAX_FAULTS = 16
"""In force at once."""
MAX_DURATION = 3600
"""Seconds: nobody's forgotten experiment lasts longer."""
MAX_DELAY = 60
"""Seconds."""


@dataclass(frozen=True, slots=True)
class FaultView:
    """A fault in force, with the flows that it has chosen and the packets that it has met."""

    fault: Fault
    flows: int
    packets: int


class Faults:
    """The faults in force. `changed` is set whenever they change."""

    def __init__(self, serving: Serving, events: Events) -> None:
        self._serving = serving
        self._data = serving.data
        self._events = events
        self._numbers = 0
        self._in_force: tuple[Fault, ...] = ()
        self._changing = asyncio.Lock()
        self.changed = asyncio.Event()

    async def add(self, wanted: Fault, backend: BackendKey | None, seed: int | None) -> Fault:
        """Put a fault in force, for flows to one backend or to all; it gets its number here, and a
        seed if none is given. ConfigError if that makes no sense."""
        async with self._changing:
            wanted = self._checked(wanted, backend)
            self._numbers += 1
            seed = random.getrandbits(32) if seed is None else seed
            fault = replace(wanted, number=self._numbers, seed=seed)
            await self._use((*self._in_force, fault))
        left = fault.until - time.monotonic()
        text = f"fault {fault.number} is injected for {left:.0f} s: {fault}, seed {seed}"
        self._events.emit("fault-injected", text, logging.WARNING, fault=fault.number)
        return fault

    async def remove(self, number: int) -> FaultView:
        """End a fault. ConfigError if there is none of this number."""
        for fault in self._in_force:
            if fault.number == number:
                return await self._end(fault)
        raise ConfigError([f"no fault {number} is in force"])

    def next_expiry(self) -> float | None:
        """When the next one ends, on the monotonic clock."""
        return min((fault.until for fault in self._in_force), default=None)

    async def expire(self, now: float) -> None:
        """End those whose time is over: the workers have done so by themselves."""
        for fault in self._in_force:
            if fault.until <= now:
                await self._end(fault)

    def views(self, statistics: Mapping[int, WorkerStatistics]) -> tuple[FaultView, ...]:
        """Those in force, with what the workers have counted."""
        return tuple(_view(fault, statistics) for fault in self._in_force)

    def _checked(self, wanted: Fault, key: BackendKey | None) -> Fault:
        """The fault with the addresses of its backend."""
        if len(self._in_force) >= MAX_FAULTS:
            raise ConfigError([f"{MAX_FAULTS} faults are in force: remove one first"])
        state = self._serving.state
        name = wanted.service
        served = next((one for one in state.services if one.name == name), None)
        if served is not None and served.datapath.kernel_forwards:
            text = f"'{name}' is served by the datapath {served.datapath}: the kernel forwards its"
            raise ConfigError([f"{text} packets past featherlb. Use nfqueue or raw meanwhile"])
        if key is None:
            return wanted
        configured = find_service(state.running, name)
        if all(backend.key != key for backend in configured.backends):
            known = few(map(str, configured.backends))
            host, port, _ = key
            text = f"'{name}' has no backend {quote(f'{host}:{port}')}"
            raise ConfigError([f"{text} (its backends: {known})"])
        endpoints = state.endpoints_of(name, key)
        if not endpoints:
            raise ConfigError([f"the backend {key[0]} has no address now"])
        return replace(wanted, backends=endpoints)

    async def _end(self, fault: Fault) -> FaultView:
        async with self._changing:
            last = _view(fault, await self._data.workers.statistics(backends=False))
            await self._use(tuple(one for one in self._in_force if one is not fault))
        met = f"{counted(last.flows, 'flow')}, {counted(last.packets, 'packet')}"
        text = f"fault {fault.number} has ended: {fault} ({met})"
        self._events.emit("fault-ended", text, fault=fault.number, flows=last.flows)
        return last

    async def _use(self, faults: tuple[Fault, ...]) -> None:
        self._in_force = faults
        self.changed.set()
        await self._data.inject(faults)


def _view(fault: Fault, statistics: Mapping[int, WorkerStatistics]) -> FaultView:
    counts = [one.faults.get(fault.number, (0, 0)) for one in statistics.values()]
    return FaultView(fault, *(sum(each) for each in zip((0, 0), *counts, strict=True)))
