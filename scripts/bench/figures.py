"""What is run and what is quoted of it. Pure values; imports the standard library only.

A workload is what the client does; a sample is one run of a workload through one peer; a figure
is a number that a table quotes of the samples of a workload.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What the client does."""

    KEEPALIVE = "keepalive"
    """HTTP requests over connections that stay open."""
    CONNECT = "connect"
    """A new connection for every HTTP request."""
    BULK_REPLY = "bulk-reply"
    """The backend sends as fast as TCP lets it."""
    BULK_FORWARD = "bulk-forward"
    """The client sends."""


@dataclass(frozen=True, slots=True)
class Workload:
    """`parallel` is the number of connections, or of bulk streams."""

    kind: Kind
    parallel: int

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.parallel}"


WORKLOADS = (
    Workload(Kind.KEEPALIVE, 64),
    Workload(Kind.KEEPALIVE, 400),
    Workload(Kind.CONNECT, 64),
    Workload(Kind.CONNECT, 400),
    Workload(Kind.BULK_REPLY, 1),
    Workload(Kind.BULK_REPLY, 8),
    Workload(Kind.BULK_FORWARD, 1),
    Workload(Kind.BULK_FORWARD, 8),
)
QUICK = ("keepalive-64", "connect-64", "bulk-reply-1")


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. Times are in seconds, memory in bytes.

    `rate` is requests/s, connections/s or bit/s; `requests` and the latencies are None for bulk.
    `cpu_peer` is what the balancer's processes were charged, `cpu_system` what all of the machine
    was busy. `pss` and `rss_peak` are sums over the balancer's processes.
    """

    round: int
    peer: str
    workload: str
    rate: float
    errors: int
    requests: int | None
    p50: float | None
    p99: float | None
    cpu_peer: float
    cpu_system: float
    pss: int
    rss_peak: int


@dataclass(frozen=True, slots=True)
class Figure:
    """A number quoted of the samples of `workload`, of all workloads where that is None.

    `read` takes it from a sample; where a round has several samples the largest counts.
    """

    title: str
    workload: str | None
    read: Callable[[Sample], float | None]
    decimals: int = 0
    more_is_better: bool = True


def _rate(sample: Sample) -> float:
    return sample.rate


def _gigabits(sample: Sample) -> float:
    return sample.rate / 1e9


def _p50(sample: Sample) -> float | None:
    return None if sample.p50 is None else sample.p50 * 1e3


def _p99(sample: Sample) -> float | None:
    return None if sample.p99 is None else sample.p99 * 1e3


def _cpu_peer(sample: Sample) -> float | None:
    # A balancer without a process lives in the kernel: its cost shows in the machine's.
    return sample.cpu_peer * 1e6 / sample.requests if sample.requests and sample.pss else None


def _cpu_system(sample: Sample) -> float | None:
    return sample.cpu_system * 1e6 / sample.requests if sample.requests else None


def _pss(sample: Sample) -> float | None:
    return sample.pss / 1e6 if sample.pss else None


def _rss(sample: Sample) -> float | None:
    return sample.rss_peak / 1e6 if sample.rss_peak else None


def _of(kind: Kind) -> list[Workload]:
    return [workload for workload in WORKLOADS if workload.kind is kind]


THROUGHPUT = (
    *(
        Figure(f"keep-alive requests/s, {w.parallel} connections", w.name, _rate)
        for w in _of(Kind.KEEPALIVE)
    ),
    *(
        Figure(f"new connections/s, {w.parallel} at a time", w.name, _rate)
        for w in _of(Kind.CONNECT)
    ),
    *(
        Figure(f"bulk replies Gbit/s, streams: {w.parallel}", w.name, _gigabits, 1)
        for w in _of(Kind.BULK_REPLY)
    ),
    *(
        Figure(f"bulk forward Gbit/s, streams: {w.parallel}", w.name, _gigabits, 1)
        for w in _of(Kind.BULK_FORWARD)
    ),
)
LATENCY = tuple(
    Figure(f"{name} ms, {what}, {w.parallel} connections", w.name, read, 2, False)
    for what, kind in (("keep-alive", Kind.KEEPALIVE), ("new connections", Kind.CONNECT))
    for w in _of(kind)
    for name, read in (("p50", _p50), ("p99", _p99))
)
PROCESSOR = tuple(
    Figure(f"{name} CPU µs per request, {what}, {w.parallel} connections", w.name, read, 1, False)
    for what, kind in (("keep-alive", Kind.KEEPALIVE), ("new connections", Kind.CONNECT))
    for w in _of(kind)
    for name, read in (("balancer", _cpu_peer), ("machine", _cpu_system))
)
MEMORY = (
    Figure("memory MB (PSS)", None, _pss, 1, False),
    Figure("peak memory MB (RSS)", None, _rss, 1, False),
)
GROUPS = {
    "Throughput": THROUGHPUT,
    "Latency": LATENCY,
    "CPU": PROCESSOR,
    "Memory": MEMORY,
}
