"""The data plane: one process, started by the supervisor. It owns its flows and shares nothing.

The loop serves packets, the supervisor and timers, in this order of priority; nothing in it blocks.
Packets come and go through engines, one for each datapath that a service needs. The engine of the
queue is always open: other engines get first packets through it.
"""

import gc
import logging
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featherlb.cluster.links import Link
from featherlb.core.flows.flight_recorder import FlightRecorder
from featherlb.core.flows.memory import FlowMemory
from featherlb.core.path.balancer import Balancer
from featherlb.core.path.export import FlowView
from featherlb.core.pools.guard import Guard
from featherlb.core.pools.schedulers import names, within_weights
from featherlb.datapaths.base import Context, Engine, PacketQueue, ServiceChange, open_engine
from featherlb.datapaths.delayed import Delayed
from featherlb.datapaths.owners import TupleOwners
from featherlb.model import DEFAULT_DATAPATH, Backend, Datapath, Service, Topology
from featherlb.model.counted import counted
from featherlb.model.errors import FeatherlbError
from featherlb.model.shard import Shard
from featherlb.system import flow_file, plugins, privileges
from featherlb.system.failure import explain, whole
from featherlb.system.raw_socket import RawSender
from featherlb.worker.explain import answer
from featherlb.worker.hooks import Hooks
from featherlb.worker.protocol import (
    Alarm,
    Applied,
    Apply,
    Channel,
    CodeCounts,
    Ended,
    EndFlows,
    Explain,
    Failed,
    FlowPage,
    GetFlows,
    GetOffenders,
    GetOutcomes,
    GetStatistics,
    InjectFaults,
    Log,
    LogFlows,
    Offenders,
    Outcomes,
    Ready,
    RecordPackets,
    Reweigh,
    SetShield,
    SetTopology,
    Start,
    ToWorker,
    Update,
    WorkerStatistics,
    merge,
)
from featherlb.worker.recorder import Recorder
from featherlb.worker.sync import INTERVAL, FlowSync

TICK = 0.1
"""Seconds between two rounds of periodic work, such as expiry and log lines."""
ADOPTION = 60.0
"""Seconds after the start during which replies can have their connections adopted."""


class Worker:
    """Moves packets between its engines and the core."""

    def __init__(self, channel: Channel, start: Start) -> None:
        """Bind the queue; HostError if that fails."""
        self._channel = channel
        self._start = start
        self._sender = RawSender()
        self._memory = map_memory(start.memory)
        flight_recorder = open_recorder(start.recorder)
        flight_recorder.start(time.monotonic())
        self._core = Balancer(
            memory=self._memory,
            secret=os.urandom(32),
            hash_key=start.hash_key,
            cookie_key=start.cookie_key,
            timeouts=start.timeouts,
            source_ports=start.shard.ports,
            privileged_ports=start.shard.privileged_ports,
            shard=start.shard,
            adopt_until=time.monotonic() + ADOPTION,
            recorder=flight_recorder,
        )
        self._sync: FlowSync | None = None
        if start.node:
            end = socket.socket(fileno=start.sync)
            self._sync = FlowSync(self._core, Link(end), start.node)
        self._recorder = Recorder(self._core)
        self._hooks = Hooks(self._core, plugins.hook, first=not start.shard.worker)
        self._owners = TupleOwners(self._core.claims)
        self._delayed = Delayed(self._core)
        context = Context(
            self._core, self._owners, self._sender, start.shard, start.queue, self._delayed
        )
        queue = open_engine(DEFAULT_DATAPATH, context)
        assert isinstance(queue, PacketQueue)
        self._context = replace(context, queue=queue)
        self._engines: dict[Datapath, Engine] = {DEFAULT_DATAPATH: queue}
        self._services: tuple[Service, ...] = ()
        self._topology = Topology()
        self._serving = False
        self._alarmed = False
        # Packets wait in the queue until there are services.
        self._poller = select.poll()
        self._poller.register(channel.fileno(), select.POLLIN)
        self._polled: dict[int, Engine] = {}

    @property
    def number(self) -> int:
        return self._start.shard.worker

    def run(self) -> None:
        """Run until the supervisor ends."""
        next_tick = now = time.monotonic()
        overdue = False
        while True:
            commanded = False
            pause = TICK if self._sync is None or not self._sync.urgent else INTERVAL
            if self._delayed:
                pause = self._delayed.timeout(now, pause)
            readable = self._poller.poll(0 if overdue or self._hooks.busy else pause * 1000)
            now = time.monotonic()
            for descriptor, _ in readable:
                engine = self._polled.get(descriptor)
                if engine is None:
                    if self._sync is not None and descriptor == self._sync.fileno():
                        self._sync.receive(now)
                    else:
                        commanded = True
                else:
                    engine.process(descriptor, now)
            if self._delayed:
                self._delayed.release(now)
            self._flush(now)
            if self._hooks.busy:
                self._hooks.run(now)
            if overdue or now >= next_tick:
                next_tick = now + TICK
                overdue = self._tick(now)
            if commanded and not self._listen():
                return

    def _flush(self, now: float) -> None:
        """Send what is queued."""
        for engine in self._engines.values():
            engine.flush(now)
        for packet in self._core.outbox.take():
            self._sender.send(packet)
            if self._core.recording.active:
                self._core.recording.send(packet, now)
        for packet in self._core.redispatch.take_reinjected():
            self._sender.send_translated(packet)
        if self._sync is not None:
            self._sync.flush(now)

    def _tick(self, now: float) -> bool:
        """Do periodic work; True if there is more than one round handles."""
        overdue = self._core.handle_timer(now)
        for engine in self._engines.values():
            engine.tick(now)
        self._recorder.tick(now)
        flooded = self._core.cookies.flooded
        if flooded and not self._alarmed:
            self._channel.send(Alarm())
        self._alarmed = flooded
        self._log_flows(now)
        self._flush_channel()
        return overdue

    def _flush_channel(self) -> None:
        """Send the supervisor what is queued, the rest as soon as there is room."""
        events = select.POLLIN if self._channel.flush() else select.POLLIN | select.POLLOUT
        self._poller.modify(self._channel.fileno(), events)

    def _listen(self) -> bool:
        """Handle the supervisor's messages; False when it has ended."""
        try:
            while (message := self._channel.receive()) is not None:
                self._obey(message)
        except EOFError:
            return False
        self._flush_channel()
        return True

    def _obey(self, message: object) -> None:
        now = time.monotonic()
        match message:
            case Apply():
                try:
                    load_code(message)
                    self._open_engines(message.services)
                except FeatherlbError as error:
                    self._channel.send(Failed(str(error)))
                    return
                self._apply(message)
                self._channel.send(Applied())
            case SetTopology(topology):
                self._topology = topology
                self._core.set_topology(topology)
                for engine in self._engines.values():
                    engine.set_topology(topology)
                self._poll_engines()
                self._channel.send(Applied())
            case LogFlows(enabled):
                self._core.lifecycle.opened = [] if enabled else None
                self._channel.send(Applied())
            case SetShield(up, scales):
                self._core.cookies.set_shield(up, scales, int(now * 10))
                self._channel.send(Applied())
            case Reweigh(services):
                self._core.update(divide_limits(services, self._start.shard))
                self._serve(merge(self._services, services))
                self._channel.send(Applied())
            case GetOutcomes(services):
                cookies, views = self._core.cookies, self._core.views
                self._channel.send(
                    Outcomes(
                        views.outcomes(services),
                        cookies.flooded,
                        cookies.returned,
                        views.insistent(),
                        views.scales(),
                    )
                )
            case GetOffenders(count):
                self._channel.send(Offenders(self._core.views.offenders(count, now)))
            case InjectFaults(faults):
                self._core.faults.inject(faults)
                self._core.review_openings()
                self._channel.send(Applied())
            case GetStatistics(backends):
                statistics = self._core.views.statistics(backends)
                engines = {name: engine.counters() for name, engine in self._engines.items()}
                counts = self._core.faults.counts()
                code = {
                    name: CodeCounts(guard.errors, guard.slow, guard.off)
                    for name, guard in self._guards().items()
                }
                self._channel.send(
                    WorkerStatistics(
                        statistics,
                        engines,
                        self._sender.failed,
                        counts,
                        code,
                        self._core.views.missed,
                        self._core.openings.explain(),
                        {} if self._sync is None else self._core.replicas.counts(),
                    )
                )
            case GetFlows(first, count):
                for engine in self._engines.values():
                    engine.refresh(first, count, now)
                self._channel.send(FlowPage(self._core.views.copy_records(first, count, now)))
            case Explain():
                self._channel.send(answer(self._core.views, message, now))
            case RecordPackets(wanted):
                try:
                    recorded = self._recorder.ask(wanted, self._services, now)
                    self._core.review_openings()
                    self._channel.send(recorded)
                except OSError as error:
                    self._recorder.stop()
                    self._channel.send(Failed(f"cannot open a packet socket: {error.strerror}"))
            case EndFlows(flows, reset):
                end = self._core.termination.terminate
                ended = sum(end(flow.record, flow.key, reset, now) for flow in flows)
                self._flush(now)
                self._channel.send(Ended(ended))

    def _open_engines(self, services: Sequence[Service]) -> None:
        """Open the engines that these services need; HostError if one can't be opened."""
        for datapath in sorted({one.datapath for one in services} - self._engines.keys()):
            engine = open_engine(datapath, self._context)
            engine.set_topology(self._topology)
            self._engines[datapath] = engine

    def _apply(self, message: Apply) -> None:
        """Serve other services."""
        wanted = message.services
        gone = {service.name for service in self._services} - {one.name for one in wanted}
        if isinstance(message, Update):
            gone = set(message.gone)
            wanted = merge(self._services, message.services, gone)
        change = ServiceChange(self._services, wanted, message.pass_mark)
        for engine in self._engines.values():
            engine.prepare(change, time.monotonic())
        self._owners.serve(wanted)
        shares = divide_limits(message.services, self._start.shard)
        self._core.update(shares, gone, message.rules_applied)
        if not self._serving:
            self._restore()
        for engine in self._engines.values():
            engine.apply(change, time.monotonic())
        self._flush(time.monotonic())
        self._serve(change.wanted)
        self._serving = True
        self._poll_engines()

    def _serve(self, services: tuple[Service, ...]) -> None:
        """Note what is served now."""
        self._hooks.apply(self._services, services)
        self._services = services

    def _poll_engines(self) -> None:
        """Poll the engines' current descriptors, once there are services."""
        if not self._serving:
            return
        # The queue comes last: the end of a flow makes room for a new one.
        engines = reversed(self._engines.values())
        self._polled = {fd: engine for engine in engines for fd in engine.descriptors()}
        self._poller = select.poll()
        for descriptor in (self._channel.fileno(), *self._polled):
            self._poller.register(descriptor, select.POLLIN)
        if self._sync is not None:
            self._poller.register(self._sync.fileno(), select.POLLIN)

    def _restore(self) -> None:
        """Restore the flows of the predecessor, or of the previous instance."""
        start = self._start
        memories = [flow_file.load(Path(path)) for path in start.saved]
        if start.predecessor is not None:
            memories.append(map_memory(start.predecessor))
        restored = unmatched = 0
        for memory in memories:
            if memory is not None:
                more, fewer = self._core.restoration.restore(memory, start.shard)
                restored, unmatched = restored + more, unmatched + fewer
        if restored or unmatched:
            text = f"worker {start.shard.worker} restored {counted(restored, 'flow')}"
            if unmatched:
                text += f"; {unmatched} {'matches' if unmatched == 1 else 'match'} no service"
            self._channel.send(Log(logging.INFO, text))

    def save(self) -> None:
        """Save the flows for the next instance."""
        self._core.carrying.catch_up_all()
        if self._core.restoration.has_flows():
            try:
                flow_file.save(Path(self._start.save), self._memory, self._start.shard)
            except OSError as error:
                print(f"featherlb: cannot save flows: {error}", file=sys.stderr)

    def close(self) -> None:
        for engine in reversed(self._engines.values()):
            engine.close()
        self._recorder.stop()
        if self._sync is not None:
            self._sync.close()
        self._owners.close()
        self._sender.close()

    def _guards(self) -> dict[str, Guard]:
        """What watches users' code, by its names."""
        return self._core.views.guards() | plugins.hooks()

    def _log_flows(self, now: float) -> None:
        for service, error in self._core.views.take_scheduler_errors():
            text = f"{service}: the scheduler fails, so backends are chosen at random: {error}"
            self._channel.send(Log(logging.ERROR, text))
        for guard in self._guards().values():
            for report in guard.reports:
                self._channel.send(Log(logging.ERROR, report))
            guard.reports.clear()
        for flow in self._core.views.take_opened(now):
            self._channel.send(Log(logging.DEBUG, describe(flow)))


def map_memory(descriptor: int) -> FlowMemory:
    """The flow memory behind a descriptor, which is closed."""
    memory = FlowMemory(mmap.mmap(descriptor, 0))
    os.close(descriptor)
    return memory


def open_recorder(descriptor: int | None) -> FlightRecorder:
    """A flight recorder in the memory behind a descriptor, which is closed."""
    if descriptor is None:
        return FlightRecorder()
    memory = memoryview(mmap.mmap(descriptor, 0))
    os.close(descriptor)
    return FlightRecorder(memory)


def load_code(message: Apply) -> None:
    """Load the code that the services use; FeatherlbError if one can't be loaded."""
    for reference, code in message.user_code.items():
        plugins.load(reference, code)
    # Searching the installed packages takes a third of the start-up time.
    if not {service.scheduler for service in message.services} <= set(names()):
        plugins.load_entry_points()


def divide_limits(services: tuple[Service, ...], shard: Shard) -> tuple[Service, ...]:
    """The services with this worker's part of each backend's connections, and of the limits for
    clients."""

    def divided(backend: Backend) -> Backend:
        limit = backend.max_connections
        if limit is None:
            return backend
        return replace(backend, max_connections=shard.connections(limit))

    return tuple(
        replace(
            service,
            backends=tuple(map(divided, service.backends)),
            admission=shard.admission(service.admission, service.vips[0].address.version),
        )
        for service in map(within_weights, services)
    )


def describe(flow: FlowView) -> str:
    """One line for the log."""
    source = "" if flow.source == flow.client else f" from {flow.source}"
    tried = "".join(f", after {backend} ({why})" for backend, why in flow.tried)
    return (
        f"{flow.service}: new {flow.protocol} flow {flow.client} -> {flow.vip}"
        f" to {flow.backend}{source}{tried}"
    )


def main() -> None:
    """Entry of `python -m featherlb.worker FD`, where FD is the supervisor's socket."""
    # The supervisor decides when to stop; a Ctrl-C at the terminal reaches it as well.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), of_worker=True)
    start = wait_for_start(channel)
    if start is None:
        return
    try:
        worker = Worker(channel, start)
    except (FeatherlbError, OSError) as error:
        channel.send(Failed(str(error)))
        return
    # The directory of all instances' files: those that have expired are deleted there.
    for means in privileges.confine([Path(start.save).parent.parent]):
        channel.send(Log(logging.INFO, f"worker {worker.number} does without {means}"))
    # Existing objects are permanent: the garbage collector need not traverse them again.
    gc.freeze()
    channel.send(Ready())
    work(worker, channel)


def work(worker: Worker, channel: Channel) -> None:
    """Run a worker to its end. What it fails of gets into the supervisor's log."""
    try:
        worker.run()
        worker.save()
    except Exception as error:
        channel.send(Log(logging.ERROR, f"worker {worker.number} fails: {explain(error)}"))
        channel.send(Log(logging.DEBUG, whole(error)))
        sys.exit(1)
    finally:
        worker.close()


def wait_for_start(channel: Channel) -> Start | None:
    """The supervisor's first message, None if it has ended."""
    while True:
        select.select([channel.fileno()], [], [])
        try:
            message: ToWorker | object = channel.receive()
        except EOFError:
            return None
        if isinstance(message, Start):
            return message
