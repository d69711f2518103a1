"""Metrics in Prometheus' text format, from one look at the workers. Counters are those of a worker
since it started and carry its number, so that the restart of one shows as the reset of its own
counters. docs/operations.md lists them with their invariants.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from featherlb import __version__
from featherlb.control.controller import Instance
from featherlb.model import Health
from featherlb.system import sysctl
from featherlb.worker.protocol import WorkerStatistics

_RESULTS = ("translated", "passed", "dropped")
_BACKEND_COUNTERS = {
    "flows": ("flows", "Flows opened to a backend."),
    "resets": ("resets", "Connections that a backend reset."),
    "refused": ("refused", "Connections that a backend refused with a RST."),
    "syn_timeouts": ("syn_timeouts", "Connections that a backend never answered."),
    "syn_retries": ("syn_retries", "Connections whose client had to send the SYN again."),
}
_DIRECTIONS = ("forward", "reply")


async def render(instance: Instance) -> tuple[bytes, str]:
    """The metrics now, and their content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Snapshot(instance, await instance.workers.statistics()))
    return exposition.generate_latest(registry), exposition.CONTENT_TYPE_LATEST


class Snapshot(Collector):
    """The metrics of one moment."""

    def __init__(self, instance: Instance, workers: list[WorkerStatistics]) -> None:
        self._instance = instance
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "featherlb", "The program that runs.", value={"version": __version__}
        )
        yield from self._control()
        yield from self._packets()
        yield from self._flows()
        yield from self._queues()
        yield from self._conntrack()
        yield from self._backends()

    def _control(self) -> Iterator[Metric]:
        instance = self._instance
        reloads = CounterMetricFamily("featherlb_reloads", "Reloads.", labels=["result"])
        reloads.add_metric(["done"], instance.reloads.done)
        reloads.add_metric(["refused"], instance.reloads.refused)
        yield reloads
        yield GaugeMetricFamily(
            "featherlb_reload_failed",
            "1 if the last reload was refused.",
            value=bool(instance.reloads.error),
        )
        yield GaugeMetricFamily(
            "featherlb_changes", "Run-time changes in force.", value=len(instance.changes)
        )
        yield CounterMetricFamily(
            "featherlb_worker_restarts", "Workers replaced.", value=instance.workers.restarts
        )
        yield GaugeMetricFamily(
            "featherlb_start_time_seconds",
            "Unix time of the start.",
            value=instance.started.timestamp(),
        )

    def _packets(self) -> Iterator[Metric]:
        received = CounterMetricFamily(
            "featherlb_received_packets",
            "Packets taken from the queue: the sum of the three results.",
            labels=["worker"],
        )
        results = CounterMetricFamily(
            "featherlb_packets", "Packets by what became of them.", labels=["worker", "result"]
        )
        reasons = CounterMetricFamily(
            "featherlb_packet_reasons",
            "Packets by the exact reason for what became of them.",
            labels=["worker", "reason"],
        )
        for number, one in enumerate(self._workers):
            worker = str(number)
            received.add_metric([worker], one.core.received)
            for result in _RESULTS:
                results.add_metric([worker, result], getattr(one.core, result))
            for reason, count in one.core.reasons.items():
                reasons.add_metric([worker, reason.label], count)
        yield received
        yield results
        yield reasons

    def _flows(self) -> Iterator[Metric]:
        flows = GaugeMetricFamily(
            "featherlb_flows", "Tracked flows by kind of state.", labels=["worker", "state"]
        )
        capacity = GaugeMetricFamily(
            "featherlb_flow_capacity", "Flows that fit.", labels=["worker"]
        )
        evicted = CounterMetricFamily(
            "featherlb_evicted_flows",
            "Flows given up because the table was full.",
            labels=["worker"],
        )
        errors = CounterMetricFamily(
            "featherlb_scheduler_errors",
            "Faults of users' schedulers.",
            labels=["worker", "service"],
        )
        for number, one in enumerate(self._workers):
            worker = str(number)
            for kind, count in one.core.flows_by_class.items():
                flows.add_metric([worker, kind.name.lower().replace("_", "-")], count)
            capacity.add_metric([worker], one.core.capacity)
            evicted.add_metric([worker], one.core.evicted)
            for service, count in one.core.scheduler_errors.items():
                errors.add_metric([worker, service], count)
        yield flows
        yield capacity
        yield evicted
        yield errors

    def _queues(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "featherlb_queue_waiting_packets", "Packets that wait in the queue.", labels=["worker"]
        )
        drops = CounterMetricFamily(
            "featherlb_kernel_dropped_packets",
            "Packets that the kernel dropped before featherlb saw them.",
            labels=["worker", "reason"],
        )
        unsent = CounterMetricFamily(
            "featherlb_unsent_packets",
            "Packets of featherlb's own (RST, ICMP) that the kernel refused to send.",
            labels=["worker"],
        )
        frames = CounterMetricFamily(
            "featherlb_lost_frames",
            "Translated packets of the raw datapath that could not be sent.",
            labels=["worker", "reason"],
        )
        for number, one in enumerate(self._workers):
            worker = str(number)
            waiting.add_metric([worker], one.queue.waiting)
            drops.add_metric([worker, "queue-full"], one.queue.queue_dropped)
            drops.add_metric([worker, "socket-full"], one.queue.socket_dropped)
            drops.add_metric([worker, "frame-socket-full"], one.frames.dropped)
            frames.add_metric([worker, "unsent"], one.frames.unsent)
            frames.add_metric([worker, "unresolved"], one.frames.unresolved)
            unsent.add_metric([worker], one.unsent)
        yield waiting
        yield drops
        yield unsent
        yield frames

    def _conntrack(self) -> Iterator[Metric]:
        for name, setting, text in (
            ("entries", "count", "Connections that the kernel tracks, whoever's they are."),
            ("limit", "max", "As many as it may track."),
        ):
            family = GaugeMetricFamily(f"featherlb_conntrack_{name}", text, labels=[])
            # Not every kernel has connection tracking.
            if value := sysctl.read(f"net/netfilter/nf_conntrack_{setting}"):
                family.add_metric([], int(value))
            yield family

    def _backends(self) -> Iterator[Metric]:
        labels = ["worker", "service", "backend"]
        active = GaugeMetricFamily("featherlb_backend_active_flows", "Open flows.", labels=labels)
        weight = GaugeMetricFamily(
            "featherlb_backend_weight", "Weight, as configured or changed.", labels=labels[1:]
        )
        effective = GaugeMetricFamily(
            "featherlb_backend_effective_weight",
            "Weight in use: 0 takes no new flows; it grows during a slow start.",
            labels=labels[1:],
        )
        limit = GaugeMetricFamily(
            "featherlb_backend_max_connections",
            "Open flows that a backend may have, where that is limited.",
            labels=labels[1:],
        )
        ejections = CounterMetricFamily(
            "featherlb_backend_ejections",
            "Times that a backend was ejected because connections to it failed.",
            labels=labels[1:],
        )
        counters = {
            key: CounterMetricFamily(f"featherlb_backend_{name}", text, labels=labels)
            for key, (name, text) in _BACKEND_COUNTERS.items()
        }
        packets = CounterMetricFamily(
            "featherlb_backend_packets", "Packets translated.", labels=[*labels, "direction"]
        )
        volume = CounterMetricFamily(
            "featherlb_backend_bytes",
            "Bytes translated, IP headers included.",
            labels=[*labels, "direction"],
        )
        up = GaugeMetricFamily(
            "featherlb_backend_up", "0 if it is down or ejected.", labels=labels[1:]
        )
        panic = GaugeMetricFamily(
            "featherlb_panic",
            "1 if too few backends are well, so all are used.",
            labels=["service"],
        )
        instance = self._instance
        for service, endpoint, count in instance.health.ejections():
            ejections.add_metric([service, str(endpoint)], count)
        in_use = instance.effective_weights()
        for configured in instance.running_config().services:
            name = configured.name
            panic.add_metric([name], name in instance.health.panic)
            for backend in configured.backends:
                for endpoint in instance.endpoints(configured, str(backend)):
                    values = [name, str(endpoint)]
                    state = instance.health.state(name, endpoint)
                    up.add_metric(values, state in (Health.UP, None))
                    weight.add_metric(values, backend.weight)
                    effective.add_metric(values, in_use.get((name, endpoint), 0))
                    if backend.max_connections is not None:
                        limit.add_metric(values, backend.max_connections)
        for number, one in enumerate(self._workers):
            for stats in one.core.backends:
                values = [str(number), stats.service, str(stats.backend)]
                active.add_metric(values, stats.active)
                for key, family in counters.items():
                    family.add_metric(values, getattr(stats, key))
                for direction in _DIRECTIONS:
                    packets.add_metric([*values, direction], getattr(stats, f"packets_{direction}"))
                    volume.add_metric([*values, direction], getattr(stats, f"bytes_{direction}"))
        yield active
        yield weight
        yield effective
        yield limit
        yield up
        yield ejections
        yield panic
        yield from counters.values()
        yield packets
        yield volume
