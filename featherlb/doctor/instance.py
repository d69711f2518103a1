"""The state of the running instance: changes by others, reloads, table size, losses."""

import time
from collections.abc import Iterator, Mapping, Sequence

from featherlb import __version__
from featherlb.api import schema
from featherlb.core.pools.schedulers import is_consistent
from featherlb.doctor.finding import Finding, error, note, warning
from featherlb.doctor.subject import Subject, ask_for_stats
from featherlb.model.counted import counted
from featherlb.system import hash_key, kernel_state
from featherlb.system.hash_key import CONFIGURED, THIS_RUN

FULL = 0.9
"""Share of a table in use that is worth a warning."""
SCARCE_PORTS = 0.8
"""Share of the source ports towards a backend in use that is worth one, too."""
MOST_SHOWN = 4
"""Changes of the host that get a finding each."""
WINDOW = 1.0
"""Seconds over which losses are counted, at least."""

Counters = Mapping[str, int]


def check_host(subject: Subject) -> Iterator[Finding]:
    """What others have changed of what the instance needs."""
    running = subject.running
    assert running is not None
    yield from judge_host(running.host.deviations, running.fix)


def judge_host(deviations: Sequence[str], fix: str) -> Iterator[Finding]:
    """One finding for the rules of a table or more that somebody has flushed."""
    shown = deviations if len(deviations) <= MOST_SHOWN else deviations[: MOST_SHOWN - 1]
    for deviation in shown:
        yield error(f"this host was changed: {deviation}", fix)
    if more := len(deviations) - len(shown):
        yield error(f"this host was changed, and has {more} more differences", fix)


def check_state(subject: Subject) -> Iterator[Finding]:
    """Reloads, version, workers, flow table."""
    running = subject.running
    assert running is not None
    yield from judge_state(running.status, __version__)


def judge_state(status: schema.Status, installed: str) -> Iterator[Finding]:
    if status.reload_error:
        first = status.reload_error.splitlines()[0]
        yield warning(
            "the last reload was refused, so the running configuration differs from the file:"
            f" {first}",
            f"featherlb reload --instance {status.instance}",
        )
    for fault in status.faults:
        yield warning(
            f"an injected fault is in force: {fault.description}",
            f"featherlb chaos remove {fault.number} --instance {status.instance}",
        )
    if status.version != installed:
        yield warning(
            f"version {status.version} is running, but {installed} is installed; restart it",
            "systemctl restart featherlb",
        )
    for worker in status.workers:
        if worker.state == "silent":
            yield error(
                f"worker {worker.number} (process {worker.pid}) does not answer; unless it does"
                " soon, it is replaced, and the log says why",
                "journalctl -u featherlb -g worker",
            )
    if status.worker_restarts:
        yield warning(
            f"workers were replaced {counted(status.worker_restarts, 'time')} since the start;"
            " the log says why",
            "journalctl -u featherlb -g worker",
        )
    for task in status.tasks:
        if task.failing:
            yield error(
                f"the background task '{task.name}' keeps failing: {task.last_error}",
                "systemctl restart featherlb",
            )
        elif task.restarts:
            yield warning(
                f"the background task '{task.name}' failed and was restarted"
                f" {counted(task.restarts, 'time')} since the start, the last time because of"
                f" {task.last_error}",
                "journalctl -u featherlb -g task",
            )
    if status.host.last_restored:
        times = max(status.host.restored.values())
        yield warning(
            f"another program changes what featherlb needs on this host, and featherlb restored it"
            f" {counted(times, 'time')} since the start, last at"
            f" {status.host.last_restored}: {status.host.repairs}; the log says which program, if"
            " the kernel knows",
            'journalctl -u featherlb -g "this host was changed"',
        )
    if status.flows > FULL * status.capacity:
        yield warning(
            f"{status.flows:,} of {status.capacity:,} flows are in use; before idle connections are"
            " evicted, raise `max_flows` in the configuration and restart featherlb",
            "systemctl restart featherlb",
        )


def check_hash_key(subject: Subject) -> Iterator[Finding]:
    """Where the key of the hash schedulers is, if it is this host's own."""
    running = subject.running
    assert running is not None
    names = (service.scheduler for service in running.services.services)
    if any(is_consistent(name) for name in names):
        yield from judge_hash_key(running.status)


def judge_hash_key(status: schema.Status) -> Iterator[Finding]:
    if status.hash_key == THIS_RUN:
        yield warning(
            "the key of the hash schedulers could not be kept, so clients get other backends after"
            f" a restart; set `hash_key` in the configuration, or make {hash_key.directory()}"
            " writable"
        )
    elif status.hash_key != CONFIGURED:
        yield note(
            f"the key of the hash schedulers is in {status.hash_key}; balancers that share clients"
            " must have the same one: set it as their `hash_key`"
        )


def check_answers(subject: Subject) -> Iterator[Finding]:
    """Whether backends' replies pass through this host, from the counters."""
    running = subject.running
    assert running is not None
    yield from judge_answers(running.services)


def judge_answers(services: schema.Services) -> Iterator[Finding]:
    for service in services.services:
        for backend in service.backends:
            if backend.packets_forward and backend.syn_timeouts and not backend.packets_reply:
                yield error(
                    f"backend {backend.address} of service '{service.name}' got {backend.flows:,}"
                    " connections, but none of its replies passed through this host; make this host"
                    " its gateway or set `nat: full`"
                )


def check_ports(subject: Subject) -> Iterator[Finding]:
    """Whether source ports towards a backend run out."""
    running = subject.running
    assert running is not None
    yield from judge_ports(running.services)


def judge_ports(services: schema.Services) -> Iterator[Finding]:
    for service in services.services:
        for backend in service.backends:
            if backend.ports_in_use > SCARCE_PORTS * backend.ports:
                yield warning(
                    f"{backend.ports_in_use:,} of {backend.ports:,} source ports towards backend"
                    f" {backend.address} of service '{service.name}' are in use, so half-open"
                    " connections end early; add `source_addresses` to the service"
                )


def count(stats: schema.Stats, kernel: Mapping[str, int]) -> Counters:
    """Packets lost by the kernel and by featherlb, by the keys of `_LOSSES`."""
    reasons = ("truncated", "no-source-port", "tuple-in-use", "no-backend")
    return {
        "queue-full": sum(one.queue_dropped for one in stats.queues),
        "socket-full": sum(one.socket_dropped for one in stats.queues),
        "verdict-refused": sum(one.verdict_refused for one in stats.queues),
        "unsent": sum(one.unsent for one in stats.queues),
        **{reason: stats.reasons.get(reason, 0) for reason in reasons},
        "evicted": stats.evicted,
        "rp_filter": kernel.get("IPReversePathFilter", 0),
    }


_LOSSES = {
    "queue-full": "the kernel dropped packets because a queue was full; raise `workers` in the"
    " configuration, or give featherlb its own core",
    "socket-full": "the kernel dropped packets because a worker's socket was full; raise `workers`"
    " in the configuration, or give featherlb its own core",
    "verdict-refused": "packets were dropped because the kernel had no memory for their verdicts;"
    " give this host more memory",
    "unsent": "the kernel refused to send packets that featherlb generated; check that this host"
    " has routes to the clients",
    "truncated": "packets longer than a queue delivers (65,531 bytes) were dropped; set"
    " `mss: 65000` for TCP services, or set the MTU of lo to 65000; UDP services with such"
    " datagrams need the raw or offload datapath",
    "no-source-port": "connections were dropped because established ones have all source ports"
    " towards a backend; add `source_addresses` to the service",
    "tuple-in-use": "connections were dropped because their backend already has one from the same"
    " client address and port; use `nat: full` for the service",
    "no-backend": "connections were refused because a service had no usable backend; see"
    " `featherlb backends`",
    "evicted": "connections were evicted because the flow table was full; raise `max_flows` in the"
    " configuration",
    "rp_filter": "the kernel dropped packets by rp_filter, not necessarily featherlb's; set it to 2"
    " if packets arrive on another interface than replies leave by",
}
_COMMANDS = {
    "truncated": "ip link set dev lo mtu 65000",
    "rp_filter": "sysctl -w net.ipv4.conf.all.rp_filter=2",
}


def check_losses(subject: Subject) -> Iterator[Finding]:
    """Counts twice, to tell current losses from past ones."""
    running = subject.running
    assert running is not None
    time.sleep(max(0.0, running.moment + WINDOW - time.monotonic()))
    stats = ask_for_stats(running.record.instance)
    yield from judge_losses(
        count(running.stats, running.network), count(stats, kernel_state.network_counters())
    )


def judge_losses(before: Counters, now: Counters) -> Iterator[Finding]:
    for name, message in _LOSSES.items():
        grown = now[name] - before[name]
        command = _COMMANDS.get(name, "")
        if grown > 0:
            yield warning(f"{message} ({now[name]:,} in total, {grown:,} just now)", command)
        elif now[name]:
            yield note(f"{message} ({now[name]:,} in total, none just now)", command)
