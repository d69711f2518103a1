"""The worker processes, as the supervisor sees them: started, asked, and replaced when they die.

A worker that does not answer is killed: its successor balances new connections, which is better
than a queue that fills up.
"""

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Network, IPv6Network

from featherlb.cluster import links
from featherlb.control.dialogue import Dialogue
from featherlb.control.events import Events
from featherlb.control.tasks import Tasks
from featherlb.core.flows.flight_recorder import bytes_for
from featherlb.core.flows.memory import size_of
from featherlb.core.flows.tcp_state import State
from featherlb.core.path.export import (
    Explanation,
    FlowRecords,
    FlowView,
    Offender,
    read_flows,
)
from featherlb.core.path.recording import Recorded, Wanted, unpack
from featherlb.model import Endpoint, Protocol, Vip
from featherlb.model.errors import HostError
from featherlb.net.addresses import words_of
from featherlb.worker.protocol import (
    Channel,
    Command,
    Ended,
    EndFlows,
    Explain,
    Explained,
    FlowKey,
    FlowPage,
    FromWorker,
    GetFlows,
    GetOffenders,
    GetOutcomes,
    GetStatistics,
    Offenders,
    Outcomes,
    RecordedPackets,
    RecordPackets,
    Start,
    ToWorker,
    WorkerStatistics,
)

log = logging.getLogger("featherlb")

RESTART_DELAY = 1.0
"""Seconds before the next try, where the one before was in vain, so that a crash loop costs little.
"""
PROVEN = 10.0
"""Seconds after which a worker that dies doesn't die of the flows that it has restored."""
MAX_SUCCESSORS = 3
"""Workers in a row that restore the same flows and die of them, at most."""
RECORDS_AT_ONCE = 512
"""Flow records that a worker copies per turn of its loop: 64 KiB, a few microseconds."""
ENDED_AT_ONCE = 32
"""Flows that a worker ends per turn: each costs it two packets, some microseconds."""


Greeting = Callable[[], Sequence[Command]]
"""What a new worker has to be sent, as things are now."""


class WorkerDiedError(HostError):
    """A worker died, or had to be killed, before it was at work."""


class WorkerProcess:
    """One worker."""

    def __init__(
        self,
        start: Start,
        on_alarm: Callable[[], None],
        predecessor: "WorkerProcess | None" = None,
    ) -> None:
        """Start the process; `ask` says when it is ready. OSError if that can't be done.

        It restores the flows of its `predecessor`, which has ended.
        """
        self.number = start.shard.worker
        self._born = time.monotonic()
        self._generation = 0 if predecessor is None else predecessor.generation + 1
        with ExitStack() as on_failure:
            self.memory = os.memfd_create("featherlb")
            on_failure.callback(os.close, self.memory)
            os.ftruncate(self.memory, size_of(start.max_flows))
            shared = [self.memory]
            self.start = replace(start, memory=self.memory)
            if predecessor is not None:
                shared.append(predecessor.memory)
                self.start = replace(self.start, predecessor=predecessor.memory)
            if start.recorder is not None:
                shared.append(start.recorder)
            self.sync: socket.socket | None = None
            """The synchroniser's end of a socket that the worker has."""
            worker_end = None
            if start.node:
                self.sync, worker_end = links.pair()
                on_failure.enter_context(self.sync)
                on_failure.enter_context(worker_end)
                shared.append(worker_end.fileno())
                self.start = replace(self.start, sync=worker_end.fileno())
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            on_failure.enter_context(ours)
            # Without either, a module in the working directory would run in place of Python's own.
            isolation = "-I" if sys.flags.isolated else "-P"
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, isolation, "-m", "featherlb.worker", str(theirs.fileno())],
                    pass_fds=[theirs.fileno(), *shared],
                    stdin=subprocess.DEVNULL,
                )
            on_failure.pop_all()
        if worker_end is not None:
            worker_end.close()
        channel = Channel(ours, of_worker=False)
        name = f"worker {self.number}"
        self._dialogue = Dialogue(channel, name, self.process.kill, on_alarm)
        self.gone = self._dialogue.ended

    async def ask(self, message: ToWorker) -> FromWorker:
        """Send a message and wait for its answer; HostError if the worker can't give one."""
        return await self._dialogue.ask(message)

    @property
    def generation(self) -> int:
        """How many before it had these flows and died soon."""
        return self._generation if time.monotonic() - self._born < PROVEN else 0

    def forget(self) -> None:
        """Give up the flows of the process, which has ended."""
        os.close(self.memory)
        if self.sync is not None:
            self.sync.close()

    def stop(self) -> None:
        """Let the process end: it does when its channel closes."""
        self._dialogue.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """Which flows; None matches all. `client` is a network, `older` an age in seconds. Flows to the
    VIPs that are `spared` don't match."""

    service: str | None = None
    client: IPv4Network | IPv6Network | None = None
    backend: Endpoint | None = None
    state: State | None = None
    older: float | None = None
    spared: tuple[tuple[Protocol, Vip], ...] = ()

    def matches(self, flow: FlowView) -> bool:
        return (
            (self.service is None or flow.service == self.service)
            and (self.backend is None or self.backend.covers(flow.backend))
            and (self.state is None or flow.state is self.state)
            and (self.older is None or flow.age >= self.older)
            and (self.client is None or flow.client.address in self.client)
            and not any(
                protocol is flow.protocol and vip.covers(flow.vip) for protocol, vip in self.spared
            )
        )


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the flow tables: the next record to read, and its worker."""

    worker: int = 0
    record: int = 1


class Workers:
    """All workers of the instance."""

    def __init__(self, events: Events, tasks: Tasks) -> None:
        self._events = events
        self._tasks = tasks
        self._processes: list[WorkerProcess] = []
        self._recorders: dict[int, int] = {}
        """Descriptors of the memory of the workers' flight recorders, which their successors
        continue."""
        self.restarts = 0
        self.alarmed = asyncio.Event()
        """Some worker sees the beginning of a flood."""
        self.on_death: Callable[[int], Awaitable[None]] | None = None
        """Is told the number of a worker that has died."""
        self.replaced = asyncio.Event()
        """Set when there is another worker."""

    async def start(self, starts: Sequence[Start], greeting: Greeting, records: int = 0) -> None:
        """Start one for each message, with a flight recorder of so many records; one that dies is
        replaced. HostError if one doesn't start."""
        if records:
            starts = [self._with_recorder(start, records) for start in starts]
        begun = await asyncio.gather(
            *(self._begin(start, greeting) for start in starts), return_exceptions=True
        )
        self._processes = [one for one in begun if isinstance(one, WorkerProcess)]
        for failure in begun:
            if isinstance(failure, BaseException):
                raise failure
        for start in starts:
            # Saved flows have been restored by now.
            later = replace(start, saved=())
            self._tasks.start(
                "replace-workers",
                partial(self._keep, later, greeting),
                subject=f"worker {start.shard.worker}",
            )

    def _with_recorder(self, start: Start, records: int) -> Start:
        try:
            descriptor = os.memfd_create("featherlb-recorder")
            self._recorders[start.shard.worker] = descriptor
            os.ftruncate(descriptor, bytes_for(records))
        except OSError as error:
            raise HostError(f"cannot make a flight recorder: {error.strerror}") from None
        return replace(start, recorder=descriptor)

    def recordings(self, worker: int | None = None) -> dict[int, bytes]:
        """Copies of the memory of all workers' flight recorders, or of this worker's."""
        return {
            number: os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            for number, descriptor in self._recorders.items()
            if worker in (None, number)
        }

    def stop(self) -> None:
        """End all processes. Stop the tasks before, which would replace them."""
        for worker in self._processes:
            worker.stop()
        for descriptor in self._recorders.values():
            os.close(descriptor)
        self._recorders = {}

    @property
    def syncs(self) -> dict[int, socket.socket]:
        """The ends for the synchroniser, by worker."""
        return {one.number: one.sync for one in self._processes if one.sync is not None}

    @property
    def processes(self) -> list[tuple[int, bool]]:
        """The processes' ids by their numbers, and whether each is alive."""
        return [(worker.process.pid, not worker.gone.is_set()) for worker in self._processes]

    async def apply(self, message: Command) -> None:
        """All have done it when this returns; HostError if one can't, and the others have."""
        answers = await asyncio.gather(
            *(worker.ask(message) for worker in self._processes), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    async def outcomes(self, services: tuple[str, ...]) -> list[Outcomes]:
        """How flows of these services ended at their beginning, of each worker; a dead one's are
        left out."""
        found = []
        for worker in list(self._processes):
            try:
                answer = await worker.ask(GetOutcomes(services))
            except HostError:
                continue
            assert isinstance(answer, Outcomes)
            found.append(answer)
        return found

    async def statistics(
        self, *, backends: bool = True, patience: float | None = None
    ) -> dict[int, WorkerStatistics]:
        """The counts of each worker by its number, those of its `backends` if they are wanted; a
        dead one's are left out, and those of one that takes more than `patience` seconds to answer,
        if that is given."""
        message = GetStatistics(backends)

        async def ask(worker: WorkerProcess) -> FromWorker | None:
            with suppress(HostError, TimeoutError):
                async with asyncio.timeout(patience):
                    return await worker.ask(message)
            return None

        workers = list(self._processes)
        answers = await asyncio.gather(*map(ask, workers))
        return {
            worker.number: answer
            for worker, answer in zip(workers, answers, strict=True)
            if isinstance(answer, WorkerStatistics)
        }

    async def offenders(self, count: int) -> list[Offender]:
        """So many clients, at most, that services have refused most often of late, the greatest
        first; what a dead worker knew is left out."""
        packets: Counter[tuple[str, str]] = Counter()
        for worker in list(self._processes):
            try:
                answer = await worker.ask(GetOffenders(count))
            except HostError:
                continue
            assert isinstance(answer, Offenders)
            for one in answer.found:
                packets[one.service, one.client] += one.packets
        return [Offender(*place, number) for place, number in packets.most_common(count)]

    async def explain(self, question: Explain) -> tuple[int, Explanation]:
        """What a packet would meet in the worker that gets it, and that worker's number; HostError
        if it can't say."""
        words = words_of(question.client.address)
        worker = next(
            one for one in self._processes if one.start.shard.has(*words, question.client.port)
        )
        answer = await worker.ask(question)
        assert isinstance(answer, Explained)
        if answer.explanation is None:
            raise HostError(answer.failure)
        return worker.number, answer.explanation

    async def record(self, wanted: Wanted | None) -> tuple[list[Recorded], int]:
        """What the workers have recorded of these packets since the last call, in the order of
        time, which is in seconds since the epoch, and how many more there were (see
        `RecordPackets`); a dead one's are left out."""
        packets: list[Recorded] = []
        missed = 0
        for worker in list(self._processes):
            try:
                answer = await worker.ask(RecordPackets(wanted))
            except HostError:
                if worker.gone.is_set():
                    continue
                raise
            assert isinstance(answer, RecordedPackets)
            try:
                found = unpack(answer.packets)
            except ValueError as error:
                raise HostError(f"worker {worker.number} sends no packets: {error}") from None
            packets += (one._replace(time=one.time + answer.epoch) for one in found)
            missed += answer.missed
        return sorted(packets, key=lambda one: one.time), missed

    async def copies(self, start: Cursor) -> AsyncIterator[tuple[FlowRecords, Cursor | None]]:
        """The flow tables from a place on, in pieces, each with the place after it."""
        cursor: Cursor | None = start
        while cursor is not None:
            number, first = cursor.worker, cursor.record
            if number >= len(self._processes):
                return
            answer = await self._processes[number].ask(GetFlows(first, RECORDS_AT_ONCE))
            assert isinstance(answer, FlowPage)
            following = first + RECORDS_AT_ONCE
            cursor = Cursor(number, following)
            if following >= answer.page.end:
                cursor = Cursor(number + 1) if number + 1 < len(self._processes) else None
            yield answer.page, cursor

    async def end_flows(self, wanted: FlowFilter, *, reset: bool) -> int:
        """End all flows that match; how many there were."""
        count = 0
        place = Cursor()
        async for page, following in self.copies(place):
            keys = [
                FlowKey(record, key)
                for record, key, flow in read_flows(page)
                if wanted.matches(flow)
            ]
            for i in range(0, len(keys), ENDED_AT_ONCE):
                message = EndFlows(tuple(keys[i : i + ENDED_AT_ONCE]), reset)
                answer = await self._processes[place.worker].ask(message)
                assert isinstance(answer, Ended)
                count += answer.count
            if following is not None:
                place = following
        return count

    async def _keep(self, start: Start, greeting: Greeting) -> None:
        """Replace a worker whenever it dies."""
        number = start.shard.worker
        while True:
            worker = self._processes[number]
            await worker.gone.wait()
            worker.stop()
            restore = worker.generation < MAX_SUCCESSORS
            lost = "its flows are lost, except offloaded ones"
            self._events.emit(
                "worker-died",
                f"worker {number} ended with status {worker.process.returncode}: starting its"
                f" successor, {'which restores its flows' if restore else lost}",
                logging.ERROR,
                worker=number,
            )
            if self.on_death is not None:
                await self.on_death(number)
            successor = None
            while successor is None:
                if not restore:
                    await asyncio.sleep(RESTART_DELAY)
                try:
                    with self._tasks.round():
                        predecessor = worker if restore else None
                        successor = await self._begin(start, greeting, predecessor)
                except HostError as error:
                    log.error("worker %d does not start: %s", number, error)
                    if restore:
                        log.error("worker %d: %s", number, lost)
                    restore = False
            self._processes[number] = successor
            worker.forget()
            self.restarts += 1
            self.replaced.set()
            self._events.emit(
                "worker-started", f"worker {number} is balancing again", worker=number
            )

    async def _begin(
        self, start: Start, greeting: Greeting, predecessor: WorkerProcess | None = None
    ) -> WorkerProcess:
        """A worker at work; HostError if it doesn't get there."""
        try:
            worker = WorkerProcess(start, self.alarmed.set, predecessor)
        except OSError as error:
            raise HostError(f"cannot start a worker: {error.strerror}") from None
        try:
            await worker.ask(worker.start)
            await greet(worker.ask, greeting)
        except BaseException as error:
            worker.stop()
            worker.forget()
            if isinstance(error, HostError) and worker.process.returncode:
                raise WorkerDiedError(str(error)) from None
            raise
        return worker


async def greet(ask: Callable[[ToWorker], Awaitable[object]], greeting: Greeting) -> None:
    """Send a new worker its greeting, and what changes of it meanwhile: that was sent to the other
    workers only."""
    sent: list[Command] = []
    while sent != (wanted := list(greeting())):
        for message in wanted:
            if message not in sent:
                await ask(message)
        sent = wanted
