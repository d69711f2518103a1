"""The control plane: one asyncio process around a controller, with its signals and its API.

It never touches a packet.
"""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from featherlb.api.alarm import Alarm
from featherlb.api.server import Server
from featherlb.control.background import Background
from featherlb.control.controller import Controller
from featherlb.control.events import Events
from featherlb.control.reload import Settings
from featherlb.control.systemd import Notifier
from featherlb.control.tasks import Tasks
from featherlb.control.threads import Threads
from featherlb.model import Datapath
from featherlb.system import kernel_state, privileges, processes, programs
from featherlb.system.failure import explain, log_traceback

log = logging.getLogger("featherlb")


class Supervisor:
    """Runs one instance from start to stop."""

    def __init__(self, settings: Settings) -> None:
        events = Events()
        self._tasks = Tasks(events)
        self._settings = settings
        self._controller = Controller(settings, events, self._tasks)
        self._server = Server(self._controller)
        self._notifier = Notifier()
        self._stop = asyncio.Event()
        self._leaving = False
        """What is on the host stays for the next instance."""
        self._asked: set[asyncio.Task[None]] = set()

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Balance until SIGINT or SIGTERM; until SIGUSR2, after which the host stays as it is for
        the next instance; SIGHUP reloads, SIGUSR1 saves the flight recording. HostError and
        ConfigError if it can't start, with nothing left on the host."""
        # There are no threads yet, each of which has capabilities of its own.
        privileges.drop_capabilities(privileges.SUPERVISOR | self._to_mount())
        kernel_state.raise_descriptor_limit()
        processes.adopt_orphans()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(Threads())
        loop.set_exception_handler(log_callback)
        for stop_signal in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(stop_signal, self._stop_soon, stop_signal)
        try:
            if await self._start():
                on_ready()
                self._notifier.ready()
                await self._keep_running()
        finally:
            self._notifier.stopping()
            await self._server.stop()
            await self._controller.stop(leaving=self._leaving)
            await processes.end_orphans()

    async def _keep_running(self) -> None:
        try:
            await feed_watchdog(self._notifier, self._tasks, self._stop)
        except BaseException:
            # A crash, such as without memory: the next start takes over.
            self._leaving = True
            raise

    def _to_mount(self) -> frozenset[int]:
        """The capability to mount a BPF file system, if one is needed and isn't there."""
        # The file is read for this where there is none: on few hosts.
        if programs.must_mount() and any(
            isinstance(service.datapath, Datapath) and service.datapath.carries
            for service in self._settings.load().services
        ):
            return frozenset({privileges.CAP_SYS_ADMIN})
        return frozenset()

    async def _start(self) -> bool:
        """Balance; False if it is told to stop meanwhile, and doesn't."""
        # It waits for disks, users' code and the resolver, and can be broken off.
        preparing = asyncio.create_task(self._controller.prepare())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait((preparing, stopping), return_when=asyncio.FIRST_COMPLETED)
        if self._stop.is_set():
            preparing.cancel()
            await asyncio.wait([preparing])
            return False
        stopping.cancel()
        await self._controller.start(preparing.result())
        if self._stop.is_set():
            return False
        Background(self._controller).start()
        self._tasks.start("recorder", Alarm(self._controller).run, vital=False)
        await self._server.start()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._soon, self._reload)
        loop.add_signal_handler(signal.SIGUSR1, self._soon, self._save_recording)
        loop.add_signal_handler(signal.SIGUSR2, self._leave_soon)
        return not self._stop.is_set()

    def _stop_soon(self, stop_signal: signal.Signals) -> None:
        log.info("stopping: %s", stop_signal.name)
        self._stop.set()

    def _leave_soon(self) -> None:
        self._leaving = not self._stop.is_set()
        self._stop_soon(signal.SIGUSR2)

    async def _reload(self) -> None:
        # It has been logged, and nothing has changed.
        with suppress(Exception):
            await self._controller.reloader.reload()

    async def _save_recording(self) -> None:
        await self._controller.recordings.save_if_possible("SIGUSR1")

    def _soon(self, what: Callable[[], Coroutine[None, None, None]]) -> None:
        # The loop keeps only weak references to tasks.
        task = asyncio.ensure_future(what())
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)


async def feed_watchdog(notifier: Notifier, tasks: Tasks, stop: asyncio.Event) -> None:
    """Show signs of life to systemd until `stop`, except while a vital task keeps failing or
    hangs."""
    fed = True
    while not stop.is_set():
        healthy = tasks.healthy
        if healthy:
            notifier.alive()
        elif fed:
            log.error("a task keeps failing or hangs: the systemd watchdog is no longer fed")
        fed = healthy
        with suppress(TimeoutError):
            async with asyncio.timeout(notifier.watchdog_interval):
                await stop.wait()


def log_callback(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what went wrong outside of a task, in one line: an exception handler for the loop."""
    error = context.get("exception")
    if error is None:
        log.error("%s", context["message"])
        return
    log.error("%s: %s", context["message"], explain(error))
    log_traceback(error)
