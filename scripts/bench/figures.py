"""Workloads and the figures that are reported of them. Pure values.

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
    """The backend sends at full speed."""
    BULK_FORWARD = "bulk-forward"
    """The client sends at full speed."""


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
    """A figure of the samples of `workload`, or of all workloads if that is None.

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
    # A balancer without a process is in the kernel: its cost is part of the machine's.
    return sample.cpu_peer * 1e6 / sample.requests if sample.requests and sample.pss else None


def _cpu_system(sample: Sample) -> float | None:
    return sample.cpu_system * 1e6 / sample.requests if sample.requests else None


def _pss(sample: Sample) -> float | None:
    return sample.pss / 1e6 if sample.pss else None


def _rss(sample: Sample) -> float | None:
    return sample.rss_peak / 1e6 if sample.rss_peak else None


Read = Callable[[Sample], float | None]


def _of(title: str, kind: Kind, read: Read, decimals: int = 0) -> tuple[Figure, ...]:
    """A rate for each workload of a kind; the title has a placeholder for its parallelism."""
    return tuple(
        Figure(title.format(workload.parallel), workload.name, read, decimals)
        for workload in WORKLOADS
        if workload.kind is kind
    )


def _per_request(title: str, read: Read, decimals: int) -> tuple[Figure, ...]:
    """A cost of keep-alive requests and of new connections, for each workload."""
    return tuple(
        Figure(
            f"{title}, {what}, {workload.parallel} connections",
            workload.name,
            read,
            decimals,
            False,
        )
        for kind, what in ((Kind.KEEPALIVE, "keep-alive"), (Kind.CONNECT, "new connections"))
        for workload in WORKLOADS
        if workload.kind is kind
    )


REQUESTS = _of("keep-alive requests/s, {} connections", Kind.KEEPALIVE, _rate)
CONNECTIONS = _of("new connections/s, {} at a time", Kind.CONNECT, _rate)
REPLIES = _of("bulk replies Gbit/s, streams: {}", Kind.BULK_REPLY, _gigabits, 1)
FORWARD = _of("bulk forward Gbit/s, streams: {}", Kind.BULK_FORWARD, _gigabits, 1)
P50 = _per_request("p50 ms", _p50, 2)
P99 = _per_request("p99 ms", _p99, 2)
CPU_BALANCER = _per_request("balancer CPU µs per request", _cpu_peer, 1)
CPU_MACHINE = _per_request("machine CPU µs per request", _cpu_system, 1)

GROUPS = {
    "Throughput": (*REQUESTS, *CONNECTIONS, *REPLIES, *FORWARD),
    "Latency": (*P50, *P99),
    "CPU": (*CPU_BALANCER, *CPU_MACHINE),
    "Memory": (
        Figure("memory MB (PSS)", None, _pss, 1, False),
        Figure("peak memory MB (RSS)", None, _rss, 1, False),
    ),
}
"""All figures, as the tables group them."""
PLOTTED = (*GROUPS["Throughput"], *P99, *CPU_MACHINE)
HEADLINES = (*REQUESTS, *P99[: len(REQUESTS)], *CONNECTIONS, REPLIES[0])
"""Those of the short table."""
