"""How the running instance is: what others have changed, reloads, room, losses."""

import time
from collections.abc import Iterator, Mapping

from featherlb import __version__
from featherlb.api import schema
from featherlb.doctor.finding import Finding, error, note, warning
from featherlb.doctor.subject import Subject, ask_for_stats
from featherlb.system import kernel_state

FULL = 0.9
"""Of a table: the share from which on it is worth a warning."""
WINDOW = 1.0
"""Seconds over which losses are counted, at least."""

Counters = Mapping[str, int]


def check_host(subject: Subject) -> Iterator[Finding]:
    """What somebody has changed of what the instance needs."""
    running = subject.running
    assert running is not None
    for deviation in running.host.deviations:
        yield error(f"somebody has changed this host: {deviation}", running.mend)


def check_state(subject: Subject) -> Iterator[Finding]:
    """Reloads, version, workers, room for flows."""
    running = subject.running
    assert running is not None
    yield from judge_state(running.status, __version__)


def judge_state(status: schema.Status, installed: str) -> Iterator[Finding]:
    if status.reload_error:
        first = status.reload_error.splitlines()[0]
        yield warning(
            "the last reload was refused, so what runs is not what the configuration says:"
            f" {first}",
            f"featherlb reload --instance {status.instance}",
        )
    if status.version != installed:
        yield warning(
            f"version {status.version} runs, and {installed} is installed; start it again",
            "systemctl restart featherlb",
        )
    if status.worker_restarts:
        yield warning(
            f"{status.worker_restarts} workers had to be replaced since the start; the log says"
            " why",
            "journalctl -u featherlb -g worker",
        )
    if status.flows > FULL * status.capacity:
        yield warning(
            f"{status.flows:,} of {status.capacity:,} flows are in use: raise `max_flows` in the"
            " configuration and start featherlb again, before idle connections are given up",
            "systemctl restart featherlb",
        )


def check_answers(subject: Subject) -> Iterator[Finding]:
    """Whether backends' answers have come through this host, from the counts."""
    running = subject.running
    assert running is not None
    yield from judge_answers(running.services)


def judge_answers(services: schema.Services) -> Iterator[Finding]:
    for service in services.services:
        for backend in service.backends:
            if backend.packets_forward and backend.syn_timeouts and not backend.packets_reply:
                yield error(
                    f"backend {backend.address} of service '{service.name}' has got"
                    f" {backend.flows:,} connections, and no answer of it has come through this"
                    " host; make this host its gateway, or set `nat: full`"
                )


def count(stats: schema.Stats, kernel: Mapping[str, int]) -> Counters:
    """The packets lost, the kernel's and featherlb's, by the keys of `_LOSSES`."""
    reasons = ("truncated", "no-source-port", "tuple-in-use", "no-backend")
    return {
        "queue-full": sum(one.queue_dropped for one in stats.queues),
        "socket-full": sum(one.socket_dropped for one in stats.queues),
        "unsent": sum(one.unsent for one in stats.queues),
        **{reason: stats.reasons.get(reason, 0) for reason in reasons},
        "evicted": stats.evicted,
        "rp_filter": kernel.get("IPReversePathFilter", 0),
    }


_LOSSES = {
    "queue-full": "the kernel has dropped packets because a queue was full; raise `workers` in the"
    " configuration, or give featherlb a core of its own",
    "socket-full": "the kernel has dropped packets because a worker's socket was full; raise"
    " `workers` in the configuration, or give featherlb a core of its own",
    "unsent": "the kernel has refused to send packets of featherlb's own; see that this host has"
    " routes to the clients",
    "truncated": "packets longer than a queue delivers (65,531 bytes) were dropped; set"
    " `mss: 65000` for TCP services, or make the MTU of lo 65000; UDP services with such datagrams"
    " need the datapath raw or offload",
    "no-source-port": "connections were dropped because no source port was left towards a backend;"
    " add `source_addresses` to the service",
    "tuple-in-use": "connections were dropped because their backend has one from the same client"
    " address and port through another VIP; use `nat: full` for one of the services",
    "no-backend": "connections were refused because a service had no usable backend; see"
    " `featherlb backends`",
    "evicted": "connections were given up because the flow table was full; raise `max_flows` in the"
    " configuration",
    "rp_filter": "the kernel has dropped packets by rp_filter, of any program's; set it to 2 where"
    " packets arrive by another interface than answers leave",
}
_COMMANDS = {
    "truncated": "ip link set dev lo mtu 65000",
    "rp_filter": "sysctl -w net.ipv4.conf.all.rp_filter=2",
}


def check_losses(subject: Subject) -> Iterator[Finding]:
    """Counts twice, so that what is lost now differs from what was lost once."""
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
            yield warning(f"{message} ({now[name]:,} in all, {grown:,} just now)", command)
        elif now[name]:
            yield note(f"{message} ({now[name]:,} in all, none just now)", command)
