"""The control plane: one asyncio process that prepares the host, runs the workers, and cleans up.

Imports configuration, host set-up and messages; not the core's packet path and not the command
line. It never touches a packet. The order matters: queues are bound and services known before
rules send packets there, and rules go before the queues do, so nothing meets a dead end.
"""

import asyncio
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from featherlb import host
from featherlb.config import Config, resolve
from featherlb.errors import FeatherlbError, HostError
from featherlb.messages import (
    Applied,
    Apply,
    Channel,
    Failed,
    FromWorker,
    GetStatistics,
    Log,
    Ready,
    Start,
    ToWorker,
    WorkerStatistics,
)
from featherlb.model import Address, Service

log = logging.getLogger("featherlb")

QUEUE_LENGTH = 8192
"""Packets that wait in the kernel before it drops; a burst of 0.1 s at 80,000 packets/s."""
START_TIMEOUT = 20.0
"""Seconds a worker may take to answer, on a machine that is busy with everything else."""
RESTART_DELAY = 1.0
"""Seconds between the death of a worker and the next try, so that a crash loop costs little."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run; `load` reads the configuration, at the start and at each reload."""

    load: Callable[[], Config]
    assign: bool


class WorkerProcess:
    """One worker as the supervisor sees it."""

    def __init__(self, start: Start) -> None:
        """Start the process; `ask` tells when it is ready."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "featherlb.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self.number = start.worker
        self.gone = asyncio.Event()
        self._channel = Channel(ours)
        self._answers: asyncio.Queue[FromWorker] = asyncio.Queue()
        self._turn = asyncio.Lock()
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._read)

    async def ask(self, message: ToWorker) -> FromWorker:
        """Send a message and wait for its answer; HostError if the worker can't give one."""
        async with self._turn:
            self._channel.send(message)
            try:
                answer = await asyncio.wait_for(self._answers.get(), START_TIMEOUT)
            except TimeoutError:
                answer = Failed(f"worker {self.number} does not answer")
        if isinstance(answer, Failed):
            raise HostError(answer.reason)
        return answer

    def stop(self) -> None:
        """Let the process end: it does when its channel closes."""
        if self._channel.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._channel.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _read(self) -> None:
        try:
            while (message := self._channel.receive()) is not None:
                if isinstance(message, Log):
                    log.log(message.level, message.text)
                elif isinstance(message, Applied | Failed | Ready | WorkerStatistics):
                    self._answers.put_nowait(message)
        except EOFError:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._answers.put_nowait(Failed(f"worker {self.number} died"))
            self.gone.set()


class Supervisor:
    """Runs one instance from start to stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._host = host.Host()
        self._options = host.Options()
        self._services: tuple[Service, ...] = ()
        self._pass_mark = 0
        self._workers: list[WorkerProcess] = []
        self._keepers: list[asyncio.Task[None]] = []

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Balance until SIGINT or SIGTERM; SIGHUP reloads. HostError and ConfigError if it
        can't start, with nothing left on the host."""
        loop = asyncio.get_running_loop()
        for stop_signal in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(stop_signal, self._stop.set)
        config = self._settings.load()
        for line in await asyncio.to_thread(host.remove_leftovers):
            log.warning("%s", line)
        services, plan = await asyncio.to_thread(prepare, config, self._settings.assign)
        self._services, self._options = services, plan.options
        self._pass_mark = plan.pass_mark or 0
        try:
            for number in range(self._options.workers):
                self._workers.append(await self._start_worker(number, config))
            await asyncio.to_thread(self._host.apply, plan)
            loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
            self._keepers = [
                asyncio.create_task(self._keep(worker.number, config)) for worker in self._workers
            ]
            self._announce()
            on_ready()
            await self._stop.wait()
        finally:
            for keeper in self._keepers:
                keeper.cancel()
            for failure in await asyncio.to_thread(self._host.undo):
                log.error("%s", failure)
            for worker in self._workers:
                worker.stop()

    async def reload(self) -> None:
        """Read the configuration again and go over to it; on an error nothing changes."""
        try:
            config = self._settings.load()
            services, plan = await asyncio.to_thread(
                prepare, config, self._settings.assign, self._options
            )
            for worker in self._workers:
                await worker.ask(Apply(services, plan.pass_mark or 0))
            await asyncio.to_thread(self._host.update, plan)
        except FeatherlbError as error:
            log.error("reload refused, everything stays as it was: %s", error)
            for worker in self._workers:
                await worker.ask(Apply(self._services, self._pass_mark))
            return
        self._services, self._pass_mark = services, plan.pass_mark or 0
        log.info("reloaded")
        self._announce()

    async def statistics(self) -> list[WorkerStatistics]:
        """The counts of each worker."""
        answers = [await worker.ask(GetStatistics()) for worker in self._workers]
        return [answer for answer in answers if isinstance(answer, WorkerStatistics)]

    async def _start_worker(self, number: int, config: Config) -> WorkerProcess:
        worker = WorkerProcess(
            start := Start(
                worker=number,
                workers=self._options.workers,
                queue=self._options.queue + number,
                driver=config.driver,
                queue_length=QUEUE_LENGTH,
                fail_open=self._options.fail_open,
                max_flows=config.max_flows,
                timeouts=config.timeouts,
                hash_key=config.hash_key.encode(),
                log_flows=log.isEnabledFor(logging.DEBUG),
            )
        )
        try:
            await worker.ask(start)
            await worker.ask(Apply(self._services, self._pass_mark))
        except BaseException:
            worker.stop()
            raise
        return worker

    async def _keep(self, number: int, config: Config) -> None:
        """Replace a worker whenever it dies."""
        while True:
            worker = self._workers[number]
            await worker.gone.wait()
            worker.stop()
            log.error(
                "worker %d ended with status %s: starting another, its flows are lost",
                number,
                worker.process.returncode,
            )
            while worker.gone.is_set():
                await asyncio.sleep(RESTART_DELAY)
                try:
                    worker = self._workers[number] = await self._start_worker(number, config)
                except HostError as error:
                    log.error("worker %d does not start: %s", number, error)

    def _reload_soon(self) -> None:
        task = asyncio.ensure_future(self.reload())
        # The loop keeps only weak references to tasks.
        self._keepers.append(task)
        task.add_done_callback(self._keepers.remove)

    def _announce(self) -> None:
        for service in self._services:
            log.info(
                "%s: %s on %s, %s, %s to %s",
                service.name,
                service.protocol,
                ", ".join(map(str, service.vips)),
                service.scheduler,
                service.nat,
                ", ".join(map(str, service.backends)) or "no backend",
            )
            if not service.backends:
                log.warning(
                    "%s has no backend and refuses connections: add one with --backend IP:PORT"
                    " or in the configuration file",
                    service.name,
                )


def prepare(
    config: Config, assign: bool, running: host.Options | None = None
) -> tuple[tuple[Service, ...], host.HostPlan]:
    """Resolve names, look at the host, check that it can be done, and plan it; blocking.

    `running` are the options of an instance that reloads; without it a queue is chosen.
    """
    services = host.prepare(resolve(config, look_up))
    options = running or host.Options(
        queue=config.queue if config.queue is not None else host.free_queue(config.workers),
        workers=config.workers,
        fail_open=config.fail_open,
        assign=assign,
    )
    facts = host.survey(services)
    host.check(services, options, facts)
    return tuple(services), host.build(services, options, facts)


def look_up(name: str) -> Sequence[Address]:
    """The addresses of a host name, in the resolver's order; none if it has none."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    addresses = [ip_address(str(entry[4][0])) for entry in found]
    return list(dict.fromkeys(addresses))
