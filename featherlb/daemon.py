"""The control plane: one asyncio process around an instance, with its signals and its API.

It never touches a packet.
"""

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress

from featherlb.api.server import Server
from featherlb.control.controller import Instance, Settings
from featherlb.control.events import Events
from featherlb.control.systemd import Notifier
from featherlb.model.errors import FeatherlbError


class Supervisor:
    """Runs one instance from start to stop."""

    def __init__(self, settings: Settings) -> None:
        self._instance = Instance(settings, Events())
        self._server = Server(self._instance)
        self._notifier = Notifier()
        self._stop = asyncio.Event()
        self._reloads: set[asyncio.Task[None]] = set()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Balance until SIGINT or SIGTERM; SIGHUP reloads. HostError and ConfigError if it
        can't start, with nothing left on the host."""
        loop = asyncio.get_running_loop()
        for stop_signal in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(stop_signal, self._stop.set)
        try:
            await self._instance.start()
            await self._server.start()
            loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
            on_ready()
            self._notifier.ready()
            await self._wait_for_stop()
        finally:
            self._notifier.stopping()
            await self._server.stop()
            await self._instance.stop()

    async def _wait_for_stop(self) -> None:
        while not self._stop.is_set():
            self._notifier.alive()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._notifier.watchdog_interval)

    async def _reload(self) -> None:
        # Told already, and nothing has changed.
        with suppress(FeatherlbError):
            await self._instance.reload()

    def _reload_soon(self) -> None:
        # The loop keeps only weak references to tasks.
        task = asyncio.ensure_future(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)
