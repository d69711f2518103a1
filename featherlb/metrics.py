"""Metrics in Prometheus' text format, from one look at the workers. Imports prometheus-client.

Counters are those of a worker since it started and carry its number, so that the restart of one
shows as the reset of its own counters. docs/operations.md lists them with their invariants.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from featherlb import __version__
from featherlb.instance import Instance
from featherlb.messages import WorkerStatistics
from featherlb.model import Health

_RESULTS = ("translated", "passed", "dropped")
_BACKEND_COUNTERS = {
    "flows": ("flows", "Flows opened to a backend."),
    "resets": ("resets", "Connections that a backend reset."),
    "refused": ("refused", "Connections that a backend refused with a RST."),
    "syn_timeouts": ("syn_timeouts", "Connections that a backend never answered."),
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

    def _backends(self) -> Iterator[Metric]:
        labels = ["worker", "service", "backend"]
        active = GaugeMetricFamily("featherlb_backend_active_flows", "Open flows.", labels=labels)
        weight = GaugeMetricFamily(
            "featherlb_backend_weight", "Weight; 0 takes no new flows.", labels=labels[1:]
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
            "featherlb_backend_up", "0 if its health checks say that it is down.", labels=labels[1:]
        )
        for service in self._instance.services:
            for backend in service.backends:
                state = self._instance.health.state(service.name, backend.endpoint)
                up.add_metric([service.name, str(backend)], state is not Health.DOWN)
                weight.add_metric([service.name, str(backend)], backend.weight)
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
        yield up
        yield from counters.values()
        yield packets
        yield volume
