"""The messages between supervisor and worker, and their channel.

The channel is a pair of stream sockets between two processes of the same program: packets would
have to fit into the kernel's buffers, and thousands of services exceed any. Each message has its
length in front. Sending never blocks: what does not fit is queued in memory and sent by `flush`.

The supervisor, which has more privileges, pickles its messages. A worker, which somebody may have
taken over, has no way to make it run code: its messages are data of declared types (`data.py`).
"""

import pickle
import socket
import struct
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from featherlb.core.path.export import (
    Explanation,
    FlowRecords,
    Insistent,
    Offender,
    Statistics,
)
from featherlb.core.path.recording import Wanted
from featherlb.datapaths.base import EngineCounters, QueueOptions
from featherlb.model import (
    DEFAULT_DATAPATH,
    Datapath,
    Endpoint,
    Protocol,
    Service,
    Timeouts,
    Topology,
)
from featherlb.model.fault import Fault
from featherlb.model.shard import Shard
from featherlb.model.user_code import UserCode
from featherlb.worker import data

_BUFFER = 4 << 20
"""Bytes of kernel memory per direction, or what net.core.wmem_max allows."""
_PART = 1 << 18
"""Bytes to receive at once."""
_LONGEST = 1 << 28
"""Bytes of a worker's message, at most: the counts of a million backends."""
_LENGTH = struct.Struct("=I")
"""In front of each message."""


@dataclass(frozen=True, slots=True)
class Start:
    """To the worker, first: bind the queue. It answers `Ready` or `Failed`.

    Its flows are in the shared memory of the descriptor `memory`, which is all zeros. With the
    first `Apply` it restores flows from the memory of its `predecessor` (a descriptor) and the
    files `saved`; when the supervisor ends, it saves its own to the file `save`. `recorder` is the
    descriptor of its flight recorder's memory, None if there is none. With other nodes, `node` is
    this one's number, and the synchroniser is behind the descriptor `sync`.
    """

    shard: Shard
    queue: QueueOptions
    max_flows: int
    timeouts: Timeouts
    hash_key: bytes
    cookie_key: bytes
    save: str
    saved: tuple[str, ...] = ()
    memory: int = -1
    predecessor: int | None = None
    recorder: int | None = None
    node: int = 0
    sync: int = -1


@dataclass(frozen=True, slots=True)
class Apply:
    """To the worker: serve these services, and no others. It answers `Applied` or `Failed`.

    `user_code` is the code of users' files by reference, to be run first: all that is new to the
    worker. `pass_mark` is that of `ServiceChange`, `rules_applied` that of `Balancer.apply`.
    """

    services: tuple[Service, ...]
    pass_mark: int
    user_code: dict[str, UserCode] = field(default_factory=dict)
    rules_applied: bool = True


@dataclass(frozen=True, slots=True)
class Update(Apply):
    """Like `Apply`, but the services that are neither among these nor `gone` stay as they are."""

    gone: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Reweigh:
    """To the worker: serve these services in place of those with their names, which differ in
    nothing that rules or engines depend on, such as weights. It answers `Applied`."""

    services: tuple[Service, ...]


@dataclass(frozen=True, slots=True)
class SetTopology:
    """To the worker: the topology for frames of the datapath raw. It answers `Applied`.

    It follows the first `Apply`, and comes again whenever the topology changes.
    """

    topology: Topology


@dataclass(frozen=True, slots=True)
class LogFlows:
    """To the worker: log each new flow from now on, or none. It answers `Applied`."""

    enabled: bool


@dataclass(frozen=True, slots=True)
class SetShield:
    """To the worker: the kernel answers SYNs with cookies, too, or no longer; `scales` are those of
    `Cookies.set_shield`. It answers `Applied`."""

    up: bool
    scales: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InjectFaults:
    """To the worker: have these faults in force, and no others. It answers `Applied`, and ends each
    at its time by itself."""

    faults: tuple[Fault, ...]


@dataclass(frozen=True, slots=True)
class GetStatistics:
    """To the worker: it answers `WorkerStatistics`. Those of its `backends` cost the most."""

    backends: bool = True


@dataclass(frozen=True, slots=True)
class GetOutcomes:
    """To the worker: it answers `Outcomes` for the services of these names."""

    services: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GetOffenders:
    """To the worker: it answers `Offenders`, so many for each service at most."""

    count: int


@dataclass(frozen=True, slots=True)
class GetFlows:
    """To the worker: it answers `FlowPage` with `count` records, from number `first` on."""

    first: int
    count: int


@dataclass(frozen=True, slots=True)
class FlowKey:
    """A flow: its record's number, and its key, because records are reused."""

    record: int
    key: bytes


@dataclass(frozen=True, slots=True)
class EndFlows:
    """To the worker: end these flows, with a RST to both ends if `reset`. It answers `Ended`."""

    flows: tuple[FlowKey, ...]
    reset: bool


@dataclass(frozen=True, slots=True)
class Explain:
    """To the worker: what would a packet of this client to this VIP meet? It answers
    `Explained`."""

    protocol: Protocol
    client: Endpoint
    vip: Endpoint


@dataclass(frozen=True, slots=True)
class RecordPackets:
    """To the worker: record these packets (None: no more). It answers `RecordedPackets` with those
    since the last such message, which has to be repeated: a worker that isn't asked stops
    recording."""

    wanted: Wanted | None


@dataclass(frozen=True, slots=True)
class Ready:
    """From the worker: the queue is bound."""


@dataclass(frozen=True, slots=True)
class Applied:
    """From the worker: the services or the topology have been applied."""


@dataclass(frozen=True, slots=True)
class Failed:
    """From the worker: it cannot continue, for this reason (one sentence)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Log:
    """From the worker: a line for the log, with a level of the `logging` module."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """From the worker, unasked: a flood has begun, so ask for `Outcomes` at once."""


@dataclass(frozen=True, slots=True)
class CodeCounts:
    """How a user's code does: errors, calls over its budget, and whether it is switched off."""

    errors: int
    slow: int
    off: bool


@dataclass(frozen=True, slots=True)
class WorkerStatistics:
    """From the worker: all its counters. The kernel refused `unsent` packets that it originated.
    `openings` says of each service of the datapath ebpf why the worker opens its flows; nothing if
    the program does."""

    core: Statistics
    engines: dict[Datapath, EngineCounters]
    unsent: int
    faults: dict[int, tuple[int, int]]
    """See `Faults.counts`."""
    code: dict[str, CodeCounts]
    """Users' keys and hooks by their names."""
    missed: int
    """Flows that hooks were not told of, as there were too many."""
    openings: dict[str, str] = field(default_factory=dict)
    replicas: dict[str, int] = field(default_factory=dict)
    """With other nodes, see `Replicas.counts`."""

    @property
    def queue(self) -> EngineCounters:
        """The counts of the engine that every worker has."""
        return self.engines[DEFAULT_DATAPATH]

    @property
    def frames(self) -> EngineCounters:
        """The counts of the engine that takes frames, zeros if the worker has none."""
        counts = (self.engines[datapath] for datapath in self.engines if datapath.takes_frames)
        return next(counts, EngineCounters())

    @property
    def program(self) -> EngineCounters:
        """The counts of the engine whose program carries flows, zeros if the worker has none."""
        counts = (self.engines[datapath] for datapath in self.engines if datapath.carries)
        return next(counts, EngineCounters())


@dataclass(frozen=True, slots=True)
class Outcomes:
    """From the worker: see `Views.outcomes`. It is `flooded` while it answers SYNs with cookies; so
    many were `returned` so far. `insistent` clients were refused many times since the last one.
    `scales` are those of `Views.scales`."""

    by_service: dict[str, tuple[int, ...]]
    flooded: bool = False
    returned: int = 0
    insistent: tuple[Insistent, ...] = ()
    scales: dict[str, tuple[int | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Offenders:
    """From the worker: see `Views.offenders`."""

    found: tuple[Offender, ...]


@dataclass(frozen=True, slots=True)
class FlowPage:
    """From the worker: a part of its flow table."""

    page: FlowRecords


@dataclass(frozen=True, slots=True)
class Ended:
    """From the worker: the number of flows that still existed and were ended."""

    count: int


@dataclass(frozen=True, slots=True)
class RecordedPackets:
    """From the worker: packets, and how many more there were than it records. Their clock is never
    set; `epoch` added to it makes seconds since the epoch."""

    packets: bytes
    """By `pack`, read by `unpack` (`core/path/recording.py`)."""
    missed: int
    epoch: float


@dataclass(frozen=True, slots=True)
class Explained:
    """From the worker: the explanation, or why there is none (one sentence)."""

    explanation: Explanation | None
    failure: str = ""


def merge(
    services: Iterable[Service], changed: Iterable[Service], gone: Collection[str] = ()
) -> tuple[Service, ...]:
    """The services with these in place of those with their names, without those that are `gone`,
    and with new ones at the end."""
    new = {service.name: service for service in changed}
    merged = [new.pop(one.name, one) for one in services if one.name not in gone]
    return (*merged, *new.values())


Command = Apply | Reweigh | SetTopology | LogFlows | SetShield | InjectFaults
"""What all workers have to know, and answer `Applied`."""
ToWorker = (
    Start
    | Command
    | GetStatistics
    | GetOutcomes
    | GetOffenders
    | GetFlows
    | EndFlows
    | Explain
    | RecordPackets
)
FromWorker = (
    Ready
    | Applied
    | Failed
    | Log
    | Alarm
    | WorkerStatistics
    | Outcomes
    | Offenders
    | FlowPage
    | Ended
    | Explained
    | RecordedPackets
)


class Channel:
    """One end of the pair: the supervisor's, or the worker's."""

    def __init__(self, end: socket.socket, *, of_worker: bool) -> None:
        self._of_worker = of_worker
        end.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self._socket = end
        self._pending: deque[memoryview] = deque()
        self._received = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: ToWorker | FromWorker) -> bool:
        """Send, now or with a later `flush`; whether nothing is left."""
        if self._of_worker:
            content = data.dump(message, FromWorker)
        else:
            content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._pending.append(memoryview(_LENGTH.pack(len(content)) + content))
        return self.flush()

    def flush(self) -> bool:
        """Send what is queued; whether nothing is left."""
        while self._pending:
            try:
                sent = self._socket.send(self._pending[0])
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                self._pending.clear()
                break
            self._pending[0] = self._pending[0][sent:]
            if not self._pending[0]:
                self._pending.popleft()
        return True

    def receive(self) -> ToWorker | FromWorker | None:
        """The next message, None if none waits; EOFError when the other end has closed. ValueError
        if a worker has sent no message."""
        while (content := self._take()) is None:
            try:
                part = self._socket.recv(_PART)
            except BlockingIOError:
                return None
            except ConnectionResetError:
                part = b""
            if not part:
                raise EOFError
            self._received += part
        message: ToWorker | FromWorker = (
            pickle.loads(content) if self._of_worker else data.load(content, FromWorker)
        )
        return message

    def _take(self) -> bytes | None:
        """The first message received, None if it isn't complete."""
        if len(self._received) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(self._received)[0]
        if end > _LONGEST and not self._of_worker:
            raise ValueError("it is too long")
        if len(self._received) < end:
            return None
        content = bytes(self._received[_LENGTH.size : end])
        del self._received[:end]
        return content

    def close(self) -> None:
        self._socket.close()
