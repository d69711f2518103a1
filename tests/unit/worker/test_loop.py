"""A worker's loop, with engines whose packets come over socket pairs: calls of the engines and
their order, and answers to the supervisor."""

import logging
import os
import select
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import pytest

from featherlb.core.flows.memory import size_of
from featherlb.core.path.claims import Claims
from featherlb.core.path.export import read_flows
from featherlb.datapaths.base import (
    Carrier,
    Context,
    Engine,
    EngineCounters,
    KernelFlows,
    PacketQueue,
    QueueOptions,
    ServiceChange,
)
from featherlb.model import Datapath, Driver, Hook, Service, Timeouts, Topology, Verdict
from featherlb.model.errors import HostError
from featherlb.model.shard import Shard
from featherlb.system import flow_file
from featherlb.worker import loop
from featherlb.worker.protocol import (
    Applied,
    Apply,
    Channel,
    Ended,
    EndFlows,
    Failed,
    FlowKey,
    FlowPage,
    FromWorker,
    GetFlows,
    GetStatistics,
    Log,
    Reweigh,
    SetTopology,
    Start,
    ToWorker,
    Update,
    WorkerStatistics,
)
from tests.builders import tcp
from tests.world import CLIENT, ONE, VIP, backend, endpoints, service

PATIENCE = 30.0
"""Seconds to wait for something that must happen."""
WEB = service(ONE)
FRAMES = service(ONE, name="frames", vips="192.0.2.11:80", datapath=Datapath.RAW)
OFFLOADED = service(ONE, name="offloaded", vips="192.0.2.12:80", datapath=Datapath.OFFLOAD)
GATE = b"wait for the gate"

Answer = TypeVar("Answer", bound=FromWorker)


class UnknownOwners:
    """Of a kernel that tracks no connections."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims

    def serve(self, services: Sequence[Service]) -> None:
        assert not self._claims.active

    def close(self) -> None:
        pass


class PipeEngine(PacketQueue):
    """Hands packets from a socket to the core, and sends back those that it rewrites."""

    def __init__(self, name: str, context: Context, calls: list[str]) -> None:
        self.context = context
        self.ticked = threading.Event()
        self.waiting = threading.Event()
        self.gate = threading.Event()
        self.received = 0
        self._name = name
        self._calls = calls
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.connect()

    def connect(self) -> None:
        """Have another pair of sockets."""
        ours, self.outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.outside.settimeout(PATIENCE)
        self._pairs.append((ours, self.outside))

    def note(self, call: str) -> None:
        served = len(self.context.core.views.statistics().backends)
        self._calls.append(f"{self._name} {call}, {served} served")

    def descriptors(self) -> Sequence[int]:
        return [self._pairs[-1][0].fileno()]

    def process(self, descriptor: int, now: float) -> None:
        (ours,) = [one for one, _ in self._pairs if one.fileno() == descriptor]
        packet = ours.recv(1 << 16)
        if packet == GATE:
            self.waiting.set()
            assert self.gate.wait(PATIENCE)
            return
        self.received += 1
        self.note("process")
        buffer = bytearray(packet)
        core = self.context.core
        core.attach(buffer)
        verdict = core.handle_packet(0, len(packet), int(Hook.PREROUTING), 0, now)
        ours.send(buffer if verdict == Verdict.REWRITTEN else b"")

    def prepare(self, change: ServiceChange, now: float) -> None:
        self.note("prepare")

    def apply(self, change: ServiceChange, now: float) -> None:
        self.note("apply")

    def set_topology(self, topology: Topology) -> None:
        self.note("set_topology")
        self.connect()

    def tick(self, now: float) -> None:
        self.ticked.set()

    def refresh(self, first: int, count: int, now: float) -> None:
        self.note(f"refresh {first} {count}")

    def counters(self) -> EngineCounters:
        return EngineCounters(received=self.received)

    def close(self) -> None:
        self._calls.append(f"{self._name} close")
        for pair in self._pairs:
            for end in pair:
                end.close()

    def attach(self, kernel_flows: KernelFlows) -> None:
        raise NotImplementedError

    def attach_program(self, carrier: Carrier) -> None:
        raise NotImplementedError

    def cut_segments(self, wanted: bool) -> None:
        raise NotImplementedError


class Outbox:
    """In place of raw sockets, which only root can have."""

    failed = 0

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, packet: bytes) -> None:
        self.sent.append(packet)

    def close(self) -> None:
        pass


class Supervised:
    """A worker that runs, seen from its supervisor."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
        self.calls: list[str] = []
        self.engines: dict[Datapath, PipeEngine] = {}
        self.outbox = Outbox()
        monkeypatch.setattr(loop, "open_engine", self.open_engine)
        monkeypatch.setattr(loop, "RawSender", lambda: self.outbox)
        monkeypatch.setattr(loop, "TupleOwners", UnknownOwners)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.channel = Channel(ours, of_worker=False)
        self.inner = Channel(theirs, of_worker=True)
        self.worker = loop.Worker(self.inner, start)
        self._thread = threading.Thread(target=self.worker.run)
        self._thread.start()

    def open_engine(self, datapath: Datapath, context: Context) -> Engine:
        if datapath is Datapath.OFFLOAD:
            raise HostError("the datapath offload is unavailable here")
        self.engines[datapath] = PipeEngine(str(datapath), context, self.calls)
        return self.engines[datapath]

    def ask(self, message: ToWorker, kind: type[Answer]) -> Answer:
        self.channel.send(message)
        return self.hear(kind)

    def hear(self, kind: type[Answer]) -> Answer:
        """The worker's next message, which is of this kind."""
        while (message := self.channel.receive()) is None:
            assert select.select([self.channel.fileno()], [], [], PATIENCE)[0]
        assert isinstance(message, kind)
        return message

    def apply(self, *services: Service) -> None:
        self.ask(Apply(services, 0), Applied)

    def open_flow(self) -> None:
        queue = self.engines[Datapath.NFQUEUE].outside
        queue.send(tcp(CLIENT, VIP, "S"))
        queue.recv(1 << 16)

    def end(self) -> None:
        """The supervisor goes away; returns when the loop has."""
        self.channel.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def close(self) -> None:
        if self.channel.fileno() >= 0:
            self.end()
        self.inner.close()


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return Start(
        shard=Shard(0, 1, 0),
        queue=QueueOptions(0, Driver.NETLINK, 1, False),
        max_flows=10,
        timeouts=Timeouts(),
        hash_key=b"",
        cookie_key=bytes(16),
        save=str(tmp_path / "net-1" / "0-0.flows"),
        memory=shared_memory(),
    )


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch, start: Start) -> Iterator[Supervised]:
    supervised = Supervised(monkeypatch, start)
    with ExitStack() as stack:
        stack.callback(supervised.worker.close)
        stack.callback(supervised.close)
        yield supervised


def shared_memory() -> int:
    descriptor = os.memfd_create("flows")
    os.ftruncate(descriptor, size_of(10))
    return descriptor


def test_packets_wait_until_the_services_are_known(supervised: Supervised) -> None:
    queue = supervised.engines[Datapath.NFQUEUE].outside
    queue.send(tcp(CLIENT, VIP, "S"))
    for _ in range(3):
        assert supervised.ask(GetStatistics(), WorkerStatistics).core.received == 0
    supervised.apply(WEB)
    assert endpoints(queue.recv(1 << 16)) == (CLIENT, ONE)
    assert supervised.ask(GetStatistics(), WorkerStatistics).core.received == 1


def test_engines_hear_of_services_before_and_after_the_core(supervised: Supervised) -> None:
    supervised.apply(WEB)
    assert supervised.calls == ["nfqueue prepare, 0 served", "nfqueue apply, 1 served"]
    supervised.calls.clear()
    supervised.apply(WEB, FRAMES)
    assert supervised.calls == [
        "raw set_topology, 1 served",
        "nfqueue prepare, 1 served",
        "raw prepare, 1 served",
        "nfqueue apply, 2 served",
        "raw apply, 2 served",
    ]


def test_an_engine_stays_when_its_services_leave(supervised: Supervised) -> None:
    supervised.apply(FRAMES)
    supervised.apply(WEB)
    supervised.calls.clear()
    supervised.apply(WEB, FRAMES)
    assert supervised.calls == [
        "nfqueue prepare, 1 served",
        "raw prepare, 1 served",
        "nfqueue apply, 2 served",
        "raw apply, 2 served",
    ]


def test_an_engine_that_cannot_be_opened_changes_nothing(supervised: Supervised) -> None:
    supervised.apply(WEB)
    supervised.calls.clear()
    failed = supervised.ask(Apply((WEB, OFFLOADED), 0), Failed)
    assert failed.reason == "the datapath offload is unavailable here"
    assert supervised.calls == []
    supervised.open_flow()


def test_an_update_leaves_the_other_services_as_they_are(supervised: Supervised) -> None:
    more = service("10.1.0.7:80", name="more", vips="192.0.2.13:80")
    supervised.apply(WEB, FRAMES)
    supervised.ask(Update((more,), 0, gone=frozenset({"frames"})), Applied)

    def served() -> list[tuple[str, str]]:
        core = supervised.ask(GetStatistics(), WorkerStatistics).core
        return [(one.service, str(one.backend)) for one in core.backends]

    assert served() == [("web", ONE), ("more", "10.1.0.7:80")]
    supervised.open_flow()
    supervised.apply(more)
    assert served() == [("more", "10.1.0.7:80")]


def test_engines_do_not_hear_of_weights(supervised: Supervised) -> None:
    supervised.apply(WEB, FRAMES)
    supervised.calls.clear()
    supervised.ask(Reweigh((service(backend(ONE, weight=0)),)), Applied)
    assert supervised.calls == []
    queue = supervised.engines[Datapath.NFQUEUE].outside
    queue.send(tcp(CLIENT, VIP, "S"))
    assert queue.recv(1 << 16) == b""
    supervised.ask(Reweigh((WEB,)), Applied)
    supervised.open_flow()


def test_a_message_may_be_larger_than_the_kernels_buffers(supervised: Supervised) -> None:
    """Thousands of services, where the kernel's buffers are as small as they can be."""
    many = tuple(
        service(f"10.1.{n >> 8}.{n & 255}:80", name=f"s{n}", vips=f"192.0.2.14:{n + 1}")
        for n in range(5000)
    )
    for end in (supervised.channel, supervised.inner):
        with socket.socket(fileno=os.dup(end.fileno())) as kernel:
            kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 17)
    supervised.channel.send(Apply((WEB, *many), 0))
    while not supervised.channel.flush():
        assert select.select([], [supervised.channel.fileno()], [], PATIENCE)[1]
    supervised.hear(Applied)
    supervised.open_flow()
    found = supervised.ask(GetStatistics(), WorkerStatistics)
    assert len(found.core.backends) == 5001


def test_descriptors_may_change_with_the_topology(supervised: Supervised) -> None:
    supervised.apply(WEB)
    supervised.ask(SetTopology(Topology()), Applied)
    supervised.open_flow()


def test_packets_in_the_queue_come_last(supervised: Supervised) -> None:
    supervised.apply(WEB, FRAMES)
    queue, raw = (supervised.engines[one] for one in (Datapath.NFQUEUE, Datapath.RAW))
    supervised.calls.clear()
    queue.outside.send(GATE)
    assert queue.waiting.wait(PATIENCE)
    queue.outside.send(tcp(CLIENT, VIP, "S"))
    raw.outside.send(tcp(CLIENT, VIP, "S"))
    queue.gate.set()
    queue.outside.recv(1 << 16)
    assert supervised.calls == ["raw process, 2 served", "nfqueue process, 2 served"]


def test_the_clock_ticks_without_packets(supervised: Supervised) -> None:
    supervised.apply(WEB, FRAMES)
    for engine in supervised.engines.values():
        engine.ticked.clear()
        assert engine.ticked.wait(PATIENCE)


def test_statistics_name_the_engines(supervised: Supervised) -> None:
    supervised.apply(WEB)
    supervised.open_flow()
    statistics = supervised.ask(GetStatistics(), WorkerStatistics)
    assert statistics.queue == EngineCounters(received=1)
    assert statistics.frames == EngineCounters()


def test_flows_are_brought_up_to_date_and_ended(supervised: Supervised) -> None:
    supervised.apply(WEB)
    supervised.open_flow()
    supervised.calls.clear()
    page = supervised.ask(GetFlows(1, 5), FlowPage).page
    assert supervised.calls == ["nfqueue refresh 1 5, 1 served"]
    ((record, key, flow),) = read_flows(page)
    assert str(flow.client) == CLIENT
    ended = supervised.ask(EndFlows((FlowKey(record, key),), reset=True), Ended)
    assert ended.count == 1
    # The resets have left before the answer.
    assert len(supervised.outbox.sent) == 2


def test_it_ends_with_its_supervisor_and_saves_its_flows(
    supervised: Supervised, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervised.apply(WEB, FRAMES)
    supervised.open_flow()
    supervised.end()
    supervised.worker.save()
    supervised.calls.clear()
    supervised.worker.close()
    assert supervised.calls == ["raw close", "nfqueue close"]

    saved = Path(start.save)
    assert flow_file.load(saved) is not None
    again = Start(
        shard=start.shard,
        queue=start.queue,
        max_flows=start.max_flows,
        timeouts=start.timeouts,
        hash_key=start.hash_key,
        cookie_key=start.cookie_key,
        save=start.save,
        saved=(start.save,),
        memory=shared_memory(),
    )
    successor = Supervised(monkeypatch, again)
    try:
        successor.channel.send(Apply((WEB,), 0))
        assert successor.hear(Log).text == "worker 0 restored 1 flow"
        successor.hear(Applied)
    finally:
        successor.close()
        successor.worker.close()


def test_what_a_worker_fails_of_is_in_the_log(supervised: Supervised) -> None:
    supervised.end()

    def fail() -> None:
        raise KeyError("flow")

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel, inner = Channel(ours, of_worker=False), Channel(theirs, of_worker=True)
    supervised.worker.run = fail  # type: ignore[method-assign]
    with pytest.raises(SystemExit) as ended:
        loop.work(supervised.worker, inner)
    assert ended.value.code == 1
    message, trace = channel.receive(), channel.receive()
    assert isinstance(message, Log)
    assert message.level == logging.ERROR
    assert message.text.startswith("worker 0 fails: KeyError: 'flow' (")
    assert isinstance(trace, Log)
    assert trace.level == logging.DEBUG
    assert trace.text.startswith("Traceback")
    for end in (channel, inner):
        end.close()
