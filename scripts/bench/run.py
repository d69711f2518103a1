"""Runs rounds over the peers: A B C ... A B C ..., every workload with each.

One peer is up at a time. Samples of one round are taken within seconds of each other, so what else
happens on the machine hits them alike.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from scripts.bench.cost import lasting, memory, process_cpu, system_cpu
from scripts.bench.figures import Sample, Workload
from scripts.bench.load import LoadError, Targets
from scripts.bench.load import run as run_load
from scripts.bench.parse import Requests
from scripts.bench.peers import Peer, PeerError, wait_until_answering
from scripts.bench.servers import BULK_PORT, HTTP_PORT, Site, forget_connections


@dataclass(frozen=True, slots=True)
class Failure:
    """A sample that could not be taken."""

    round: int
    peer: str
    workload: str | None
    reason: str


@dataclass(slots=True)
class Result:
    """The results of the rounds so far."""

    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `rounds` is a limit, `deadline` (of the monotonic clock) another: no round
    begins that, as long as the longest before it, would end later."""

    peers: Sequence[Peer]
    workloads: Sequence[Workload]
    seconds: int
    rounds: int
    deadline: float


def run(site: Site, plan: Plan, progress: Callable[[int, Peer, str], None]) -> Result:
    """Take the samples; `progress` is called with the round, the peer and the step that begins."""
    result = Result()
    longest = 0.0
    for number in range(1, plan.rounds + 1):
        begin = time.monotonic()
        if begin + longest > plan.deadline:
            break
        for peer in plan.peers:
            _visit(site, plan, number, peer, result, progress)
        longest = max(longest, time.monotonic() - begin)
    return result


def _visit(
    site: Site,
    plan: Plan,
    number: int,
    peer: Peer,
    result: Result,
    progress: Callable[[int, Peer, str], None],
) -> None:
    """One round's samples of one peer."""
    targets = Targets(
        web=site.web if peer.direct else [f"{site.vip}:{HTTP_PORT}"],
        bulk=site.bulk if peer.direct else f"{site.vip}:{BULK_PORT}",
        threads=len(site.web),
    )
    progress(number, peer, "start")
    forget_connections(site.lab)
    try:
        with peer.run(site):
            wait_until_answering(site, targets.web[0])
            for workload in plan.workloads:
                progress(number, peer, workload.name)
                try:
                    sample = measure(site, plan.seconds, number, peer, workload, targets)
                except LoadError as error:
                    result.failures.append(Failure(number, peer.name, workload.name, str(error)))
                else:
                    result.samples.append(sample)
    except PeerError as error:
        result.failures.append(Failure(number, peer.name, None, str(error)))


def measure(
    site: Site, seconds: int, number: int, peer: Peer, workload: Workload, targets: Targets
) -> Sample:
    """Run one workload through a peer that is up. LoadError if it can't be, or the peer dies."""
    # Nothing else lives in the balancer's namespace: its processes are the peer's.
    pids = lasting(site.lab.balancer.pids())
    peer_before, system_before = process_cpu(pids), system_cpu()
    outcome = run_load(site.lab.client, workload, targets, seconds)
    try:
        peer_after, system_after = process_cpu(pids), system_cpu()
        pss, rss_peak = memory(pids)
    except OSError:
        raise LoadError("a process of the balancer ended under load") from None
    counted = outcome if isinstance(outcome, Requests) else None
    return Sample(
        round=number,
        peer=peer.name,
        workload=workload.name,
        rate=outcome.rate,
        errors=counted.errors if counted else 0,
        requests=counted.requests if counted else None,
        p50=counted.p50 if counted else None,
        p99=counted.p99 if counted else None,
        cpu_peer=peer_after - peer_before,
        cpu_system=system_after - system_before,
        pss=pss,
        rss_peak=rss_peak,
    )
