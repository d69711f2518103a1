"""The messages between supervisor and worker, and their channel.

The channel is a SOCK_SEQPACKET socketpair: one pickled message a packet, between two processes of
the same program. Sending never blocks: what does not fit is queued in memory and sent by `flush`.
"""

import pickle
import socket
from collections import deque
from dataclasses import dataclass, field

from featherlb.core.path.export import Explanation, FlowRecords, Statistics
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
from featherlb.model.shard import Shard

_BUFFER = 4 << 20
"""Bytes of kernel memory per direction; a message must fit into it."""


@dataclass(frozen=True, slots=True)
class Start:
    """To the worker, first: bind the queue. It answers `Ready` or `Failed`.

    Its flows are in the shared memory of the descriptor `memory`, which is all zeros. With the
    first `Apply` it restores flows from the memory of its `predecessor` (a descriptor) and the
    files `saved`; when the supervisor ends, it saves its own to the file `save`.
    """

    shard: Shard
    queue: QueueOptions
    max_flows: int
    timeouts: Timeouts
    hash_key: bytes
    save: str
    saved: tuple[str, ...] = ()
    memory: int = -1
    predecessor: int | None = None


@dataclass(frozen=True, slots=True)
class Apply:
    """To the worker: serve these services. It answers `Applied` or `Failed`.

    `schedulers` is the code of users' files by reference, to be run first: all that is new to the
    worker. `pass_mark` is that of `ServiceChange`, `rules_applied` that of `Balancer.apply`.
    """

    services: tuple[Service, ...]
    pass_mark: int
    schedulers: dict[str, bytes] = field(default_factory=dict)
    rules_applied: bool = True


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
class GetStatistics:
    """To the worker: it answers `WorkerStatistics`."""


@dataclass(frozen=True, slots=True)
class GetOutcomes:
    """To the worker: it answers `Outcomes`."""


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
class WorkerStatistics:
    """From the worker: all its counters. The kernel refused `unsent` packets that it originated."""

    core: Statistics
    engines: dict[Datapath, EngineCounters]
    unsent: int

    @property
    def queue(self) -> EngineCounters:
        """The counts of the engine that every worker has."""
        return self.engines[DEFAULT_DATAPATH]

    @property
    def frames(self) -> EngineCounters:
        """The counts of the engine that takes frames, zeros if the worker has none."""
        counts = (self.engines[datapath] for datapath in self.engines if datapath.takes_frames)
        return next(counts, EngineCounters())


@dataclass(frozen=True, slots=True)
class Outcomes:
    """From the worker: see `Views.outcomes`."""

    by_service: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class FlowPage:
    """From the worker: a part of its flow table."""

    page: FlowRecords


@dataclass(frozen=True, slots=True)
class Ended:
    """From the worker: the number of flows that still existed and were ended."""

    count: int


@dataclass(frozen=True, slots=True)
class Explained:
    """From the worker: the explanation, or why there is none (one sentence)."""

    explanation: Explanation | None
    failure: str = ""


ToWorker = (
    Start
    | Apply
    | SetTopology
    | LogFlows
    | GetStatistics
    | GetOutcomes
    | GetFlows
    | EndFlows
    | Explain
)
FromWorker = (
    Ready | Applied | Failed | Log | WorkerStatistics | Outcomes | FlowPage | Ended | Explained
)


class Channel:
    """One end of the pair."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        self._socket = end
        self._pending: deque[bytes] = deque()

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: ToWorker | FromWorker) -> None:
        """Send, now or with a later `flush`."""
        self._pending.append(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
        self.flush()

    def flush(self) -> bool:
        """Send what is queued; whether nothing is left."""
        while self._pending:
            try:
                self._socket.send(self._pending[0])
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                self._pending.clear()
                break
            self._pending.popleft()
        return True

    def receive(self) -> ToWorker | FromWorker | None:
        """The next message, None if none waits; EOFError when the other end has closed."""
        try:
            packet = self._socket.recv(_BUFFER)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            packet = b""
        if not packet:
            raise EOFError
        message: ToWorker | FromWorker = pickle.loads(packet)
        return message

    def close(self) -> None:
        self._socket.close()
