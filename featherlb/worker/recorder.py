"""Records packets for a supervisor that keeps asking for them: those that pass the worker, and of
flows that the kernel translates, those that a tap sees."""

import time
from collections.abc import Sequence

from featherlb.core.path.balancer import Balancer
from featherlb.core.path.recording import Wanted, pack
from featherlb.model import Address, Service
from featherlb.system.tap import Tap, Tapped
from featherlb.worker.protocol import RecordedPackets

PATIENCE = 10.0
"""Seconds without a question after which nothing more is recorded."""


class Recorder:
    """The worker's part of a capture."""

    def __init__(self, core: Balancer) -> None:
        self._core = core
        self._recording = core.recording
        self._addresses: frozenset[Address] = frozenset()
        self._tap: Tap | None = None
        self._tapped: list[Tapped] = []
        self._unread = 0
        self._asked = 0.0

    def ask(
        self, wanted: Wanted | None, services: Sequence[Service], now: float
    ) -> RecordedPackets:
        """Record these packets, and none if they are None; returns those so far. OSError if there
        can't be a tap."""
        self._asked = now
        if wanted is None:
            self.stop()
            return RecordedPackets(b"", 0, 0.0)
        if not self._recording.active or wanted != self._recording.wanted:
            self.stop()
            self._recording.start(wanted)
        self._watch(services, wanted.length)
        records, missed = self._recording.take()
        missed, self._unread = missed + self._unread, 0
        return RecordedPackets(pack(records), missed, time.time() - now)

    def tick(self, now: float) -> None:
        """Look at what the tap has seen since the last tick."""
        if not self._recording.active:
            return
        if now - self._asked > PATIENCE:
            self.stop()
            return
        if self._tap is None:
            return
        # A tick later the core knows the flow that a packet has opened: it met the tap before the
        # queue.
        tapped, self._tapped = self._tapped, list(self._tap.read())
        self._unread += self._tap.missed()
        epoch = time.time() - now
        for one in tapped:
            self._recording.see(one.time - epoch, one.leaving, one.length, one.data)

    def stop(self) -> None:
        """Record nothing more."""
        self._recording.stop()
        self._addresses = frozenset()
        self._unread = 0
        self._close_tap()

    def _watch(self, services: Sequence[Service], length: int) -> None:
        """Tap the packets of the services whose flows are translated in the kernel."""
        carried = [one for one in services if one.datapath.outlives_workers]
        vips = {vip.address for one in carried for vip in one.vips}
        backends = {backend.endpoint.address for one in carried for backend in one.backends}
        addresses = frozenset(vips | backends)
        if addresses != self._addresses:
            self._close_tap()
            self._addresses = addresses
            if addresses:
                self._tap = Tap(addresses, length)

    def _close_tap(self) -> None:
        if self._tap is not None:
            self._tap.close()
            self._tap = None
        self._tapped = []
