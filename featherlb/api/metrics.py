"""Metrics in Prometheus' text format, from one snapshot of the workers. Counters start with their
worker and carry its number, so a worker restart shows as a reset of its own counters only.
docs/operations.md lists them with their invariants.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from featherlb import __version__
from featherlb.api.listener import Refusal
from featherlb.control.view import View
from featherlb.core.pools.latency import UPPER_BOUNDS
from featherlb.model import Health, PeerState
from featherlb.model.label import label
from featherlb.system import sysctl

_RESULTS = ("translated", "passed", "dropped")
_BACKEND_COUNTERS = {
    "flows": ("flows", "Flows opened."),
    "resets": ("resets", "Open connections that the backend reset."),
    "refused": (
        "refused",
        "Connections that the backend refused, or that did not reach it.",
    ),
    "syn_timeouts": ("syn_timeouts", "Connections that the backend never answered."),
    "syn_retries": ("syn_retries", "Connections whose client retransmitted the SYN."),
    "doubtful": ("doubtful", "TCP segments that changed nothing, as they may be forged."),
    "ports_reclaimed": (
        "source_ports_reclaimed",
        "Half-open flows that lost their source port to another one.",
    ),
}
_MOVES = ("refused", "silent")
_FAULT = ("fault", "service", "kind")
_DIRECTIONS = ("forward", "reply")


def render(view: View, refusals: Mapping[Refusal, int]) -> tuple[bytes, str]:
    """The current metrics, and their content type. `refusals` are those of the API."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Snapshot(view, refusals))
    return exposition.generate_latest(registry), exposition.CONTENT_TYPE_LATEST


class Snapshot(Collector):
    """The metrics at one moment."""

    def __init__(self, view: View, refusals: Mapping[Refusal, int]) -> None:
        self._view = view
        self._refusals = refusals
        self._workers = view.statistics

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(
            "featherlb", "Version of the running program.", value={"version": __version__}
        )
        yield from self._control()
        yield from self._packets()
        yield from self._flows()
        yield from self._queues()
        yield from self._conntrack()
        yield from self._backends()

    def _control(self) -> Iterator[Metric]:
        view = self._view
        reloads = CounterMetricFamily("featherlb_reloads", "Reloads.", labels=["result"])
        reloads.add_metric(["done"], view.reloads.done)
        reloads.add_metric(["refused"], view.reloads.refused)
        yield reloads
        yield GaugeMetricFamily(
            "featherlb_reload_failed",
            "1 if the last reload was refused: the running configuration differs from the file.",
            value=bool(view.reloads.error),
        )
        yield GaugeMetricFamily(
            "featherlb_changes", "Run-time changes in force.", value=len(view.overrides)
        )
        trials = CounterMetricFamily(
            "featherlb_canaries", "Trials of canaries that have ended.", labels=["result"]
        )
        for result, count in view.canaries.results.items():
            trials.add_metric([result], count)
        yield trials
        yield GaugeMetricFamily(
            "featherlb_faults", "Injected faults in force.", value=len(view.faults)
        )
        flows = CounterMetricFamily(
            "featherlb_fault_flows", "Flows that an injected fault has chosen.", labels=_FAULT
        )
        packets = CounterMetricFamily(
            "featherlb_fault_packets", "Packets that an injected fault has met.", labels=_FAULT
        )
        for one in view.faults:
            labels = [str(one.fault.number), one.fault.service, one.fault.kind]
            flows.add_metric(labels, one.flows)
            packets.add_metric(labels, one.packets)
        yield flows
        yield packets
        up = GaugeMetricFamily(
            "featherlb_worker_up",
            "1 if the worker answers, 0 while it does not, or is being replaced.",
            labels=["worker"],
        )
        for worker in view.workers:
            up.add_metric([str(worker.number)], worker.statistics is not None)
        yield up
        yield CounterMetricFamily(
            "featherlb_worker_restarts", "Workers replaced.", value=view.worker_restarts
        )
        restarts = CounterMetricFamily(
            "featherlb_task_restarts", "Background tasks restarted.", labels=["task"]
        )
        failing = GaugeMetricFamily(
            "featherlb_task_failing",
            "1 while the task keeps failing, or hangs.",
            labels=["task"],
        )
        for task in view.tasks:
            restarts.add_metric([task.name], task.restarts)
            failing.add_metric([task.name], task.failing)
        yield restarts
        yield failing
        yield GaugeMetricFamily(
            "featherlb_host_deviations",
            "What others have changed on the host and is not restored.",
            value=len(view.host.deviations),
        )
        restored = CounterMetricFamily(
            "featherlb_host_restored",
            "Restorations of what others have changed on the host.",
            labels=["what"],
        )
        for kind, count in view.host.restored.items():
            restored.add_metric([kind], count)
        yield restored
        refused = CounterMetricFamily(
            "featherlb_api_refused",
            "Requests and connections that the API refused.",
            labels=["reason"],
        )
        for reason in Refusal:
            refused.add_metric([reason], self._refusals.get(reason, 0))
        yield refused
        yield GaugeMetricFamily(
            "featherlb_syn_flood",
            "1 while a worker sees a SYN flood.",
            value=view.cookies.flooded,
        )
        yield GaugeMetricFamily(
            "featherlb_syn_shield",
            "1 while the kernel answers SYNs.",
            value=view.cookies.shielded,
        )
        yield CounterMetricFamily(
            "featherlb_shielded_syns",
            "SYNs that the kernel has answered with a cookie.",
            value=view.cookies.answered,
        )
        yield GaugeMetricFamily(
            "featherlb_ready",
            "1 while traffic may be sent here, as GET /ready says.",
            value=not view.obstacles,
        )
        yield from self._cluster()
        yield GaugeMetricFamily(
            "featherlb_start_time_seconds",
            "Start time, Unix time.",
            value=view.started.timestamp(),
        )

    def _cluster(self) -> Iterator[Metric]:
        """Nothing without other nodes."""
        cluster = self._view.cluster
        if cluster is None:
            return
        synchronised = GaugeMetricFamily(
            "featherlb_peer_synchronised",
            "1 while flows are announced to the peer.",
            labels=["peer"],
        )
        differs = GaugeMetricFamily(
            "featherlb_peer_differs",
            "1 while the peer serves something else than this node.",
            labels=["peer"],
        )
        queued = GaugeMetricFamily(
            "featherlb_peer_queued_bytes", "Announcements that wait for the peer.", labels=["peer"]
        )
        for peer in cluster.peers:
            synchronised.add_metric([peer.address], peer.state is PeerState.SYNCHRONISED)
            differs.add_metric([peer.address], peer.digest not in ("", cluster.digest))
            queued.add_metric([peer.address], peer.queued)
        yield from (synchronised, differs, queued)
        flows = CounterMetricFamily(
            "featherlb_replicas",
            "What happened to replicas of other nodes' flows.",
            labels=["worker", "event"],
        )
        for number, worker in self._workers.items():
            for event, count in worker.replicas.items():
                flows.add_metric([str(number), event], count)
        yield flows

    def _packets(self) -> Iterator[Metric]:
        received = CounterMetricFamily(
            "featherlb_received_packets",
            "Packets received from queue and sockets: the sum of all outcomes.",
            labels=["worker"],
        )
        results = CounterMetricFamily(
            "featherlb_packets", "Packets by outcome.", labels=["worker", "result"]
        )
        reasons = CounterMetricFamily(
            "featherlb_packet_reasons",
            "Packets by reason.",
            labels=["worker", "reason"],
        )
        yield CounterMetricFamily(
            "featherlb_martian_packets",
            "Packets that rules dropped before workers saw them, as no client can have sent them.",
            value=self._view.martians,
        )
        for number, one in self._workers.items():
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
            "featherlb_flows", "Tracked flows by class of state.", labels=["worker", "state"]
        )
        capacity = GaugeMetricFamily(
            "featherlb_flow_capacity", "Size of the flow table.", labels=["worker"]
        )
        evicted = CounterMetricFamily(
            "featherlb_evicted_flows",
            "Flows evicted because the table was full.",
            labels=["worker"],
        )
        unkept = CounterMetricFamily(
            "featherlb_unkept_syns",
            "Refusals that a client got because the copy of its SYN was overwritten or too long.",
            labels=["worker"],
        )
        errors = CounterMetricFamily(
            "featherlb_scheduler_errors",
            "Errors of custom schedulers.",
            labels=["worker", "service"],
        )
        code = CounterMetricFamily(
            "featherlb_code_faults",
            "Faults of users' keys and hooks: errors, and calls that took too long.",
            labels=["worker", "code", "fault"],
        )
        off = GaugeMetricFamily(
            "featherlb_code_off",
            "1 while users' code is switched off, as it fails or is slow.",
            labels=["worker", "code"],
        )
        missed = CounterMetricFamily(
            "featherlb_hook_missed_flows",
            "Flows that hooks were not told of, as there were too many.",
            labels=["worker"],
        )
        for number, one in self._workers.items():
            worker = str(number)
            missed.add_metric([worker], one.missed)
            for name, counts in one.code.items():
                code.add_metric([worker, name, "error"], counts.errors)
                code.add_metric([worker, name, "slow"], counts.slow)
                off.add_metric([worker, name], counts.off)
            for kind, count in one.core.flows_by_class.items():
                flows.add_metric([worker, label(kind)], count)
            capacity.add_metric([worker], one.core.capacity)
            evicted.add_metric([worker], one.core.evicted)
            unkept.add_metric([worker], one.core.unkept_syns)
            for service, count in one.core.scheduler_errors.items():
                errors.add_metric([worker, service], count)
        yield flows
        yield capacity
        yield evicted
        yield unkept
        yield errors
        yield code
        yield off
        yield missed

    def _queues(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            "featherlb_queue_waiting_packets", "Packets waiting in the queue.", labels=["worker"]
        )
        drops = CounterMetricFamily(
            "featherlb_kernel_dropped_packets",
            "Packets dropped by the kernel between the network and featherlb.",
            labels=["worker", "reason"],
        )
        unsent = CounterMetricFamily(
            "featherlb_unsent_packets",
            "Packets generated by featherlb (RST, ICMP) that the kernel refused to send.",
            labels=["worker"],
        )
        frames = CounterMetricFamily(
            "featherlb_lost_frames",
            "Frames of the raw datapath translated but not sent.",
            labels=["worker", "reason"],
        )
        carried = GaugeMetricFamily(
            "featherlb_carried_flows",
            "Flows of the ebpf datapath that the program in the kernel carries.",
            labels=["worker"],
        )
        unplaced = CounterMetricFamily(
            "featherlb_unplaced_flows",
            "Flows of the ebpf datapath for which the program in the kernel had no room.",
            labels=["worker"],
        )
        for number, one in self._workers.items():
            worker = str(number)
            waiting.add_metric([worker], one.queue.waiting)
            drops.add_metric([worker, "queue-full"], one.queue.queue_dropped)
            drops.add_metric([worker, "socket-full"], one.queue.socket_dropped)
            drops.add_metric([worker, "verdict-refused"], one.queue.unsent)
            drops.add_metric([worker, "frame-socket-full"], one.frames.socket_dropped)
            frames.add_metric([worker, "unsent"], one.frames.unsent)
            frames.add_metric([worker, "unresolved"], one.frames.unresolved)
            unsent.add_metric([worker], one.unsent)
            carried.add_metric([worker], one.program.carried)
            unplaced.add_metric([worker], one.program.unplaced)
        yield waiting
        yield drops
        yield unsent
        yield frames
        yield carried
        yield unplaced

    def _conntrack(self) -> Iterator[Metric]:
        for name, setting, text in (
            ("entries", "count", "Connections tracked by the kernel on this host."),
            ("limit", "max", "Size of the kernel's conntrack table."),
        ):
            family = GaugeMetricFamily(f"featherlb_conntrack_{name}", text, labels=[])
            # Not every kernel has connection tracking.
            if value := sysctl.read(f"net/netfilter/nf_conntrack_{setting}"):
                family.add_metric([], int(value))
            yield family

    def _backends(self) -> Iterator[Metric]:
        labels = ["worker", "service", "backend"]
        active = GaugeMetricFamily(
            "featherlb_backend_active_flows", "Open flows, including half-open ones.", labels=labels
        )
        weight = GaugeMetricFamily(
            "featherlb_backend_weight",
            "Weight, as configured or changed at run time.",
            labels=labels[1:],
        )
        effective = GaugeMetricFamily(
            "featherlb_backend_effective_weight",
            "Weight in use: 0 means no new flows; grows during slow start.",
            labels=labels[1:],
        )
        limit = GaugeMetricFamily(
            "featherlb_backend_max_connections",
            "Limit of open flows, if set.",
            labels=labels[1:],
        )
        ejections = CounterMetricFamily(
            "featherlb_backend_ejections",
            "Times the backend was ejected because connections to it failed.",
            labels=labels[1:],
        )
        ports = GaugeMetricFamily(
            "featherlb_backend_source_ports",
            "Source ports towards the backend, in full mode.",
            labels=labels,
        )
        used_ports = GaugeMetricFamily(
            "featherlb_backend_source_ports_in_use",
            "Those of them that flows hold.",
            labels=labels,
        )
        acquittals = CounterMetricFamily(
            "featherlb_backend_acquittals",
            "Times the backend was not ejected because it accepted a connection of featherlb's.",
            labels=labels[1:],
        )
        counters = {
            key: CounterMetricFamily(f"featherlb_backend_{name}", text, labels=labels)
            for key, (name, text) in _BACKEND_COUNTERS.items()
        }
        moves = CounterMetricFamily(
            "featherlb_backend_redispatches",
            "Flows that went to another backend: this one refused them, or did not answer in time.",
            labels=[*labels, "reason"],
        )
        packets = CounterMetricFamily(
            "featherlb_backend_packets", "Packets translated.", labels=[*labels, "direction"]
        )
        volume = CounterMetricFamily(
            "featherlb_backend_bytes",
            "Bytes translated, including IP headers.",
            labels=[*labels, "direction"],
        )
        retransmits = CounterMetricFamily(
            "featherlb_backend_retransmits",
            "TCP segments whose data came again, or late: from clients (forward) or the backend.",
            labels=[*labels, "direction"],
        )
        latency = GaugeMetricFamily(
            "featherlb_backend_latency_seconds",
            "Smoothed time from a flow's first packet to the backend's answer, as a SYN-ACK.",
            labels=labels,
        )
        answers = HistogramMetricFamily(
            "featherlb_backend_answer_seconds",
            "Time from a flow's first packet to the backend's answer, as a SYN-ACK.",
            labels=labels,
        )
        up = GaugeMetricFamily("featherlb_backend_up", "0 if down or ejected.", labels=labels[1:])
        panic = GaugeMetricFamily(
            "featherlb_panic",
            "1 if too few backends are healthy, so all are used.",
            labels=["service"],
        )
        absent = GaugeMetricFamily(
            "featherlb_absent_backends",
            "Backends that are not served because their names have no address that can be used.",
            labels=["service"],
        )
        refused = CounterMetricFamily(
            "featherlb_refused_packets",
            "Packets of clients that may not open a flow: allow, deny, max_flows, max_new.",
            labels=["worker", "service", "reason"],
        )
        for service in self._view.services:
            name = service.config.name
            panic.add_metric([name], service.panic)
            absent.add_metric([name], sum(one.endpoint is None for one in service.backends))
            for backend in service.backends:
                if backend.endpoint is None:
                    continue
                values = [name, str(backend.endpoint)]
                up.add_metric(values, backend.health in (Health.UP, None))
                weight.add_metric(values, backend.config.weight)
                effective.add_metric(values, backend.effective_weight)
                if backend.ejections is not None:
                    ejections.add_metric(values, backend.ejections)
                if backend.acquittals is not None:
                    acquittals.add_metric(values, backend.acquittals)
                if backend.config.max_connections is not None:
                    limit.add_metric(values, backend.config.max_connections)
        for (name, why), count in self._view.refused.items():
            refused.add_metric(["kernel", name, why.label], count)
        for number, one in self._workers.items():
            for name, reasons in one.core.refused.items():
                for why, count in reasons.items():
                    refused.add_metric([str(number), name, why.label], count)
            for stats in one.core.backends:
                values = [str(number), stats.service, str(stats.backend)]
                active.add_metric(values, stats.active)
                if stats.ports:
                    ports.add_metric(values, stats.ports)
                    used_ports.add_metric(values, stats.ports_in_use)
                for key, family in counters.items():
                    family.add_metric(values, getattr(stats, key))
                for reason in _MOVES:
                    moves.add_metric([*values, reason], getattr(stats, f"moved_{reason}"))
                for direction in _DIRECTIONS:
                    packets.add_metric([*values, direction], getattr(stats, f"packets_{direction}"))
                    volume.add_metric([*values, direction], getattr(stats, f"bytes_{direction}"))
                    again = getattr(stats, f"retransmits_{direction}")
                    retransmits.add_metric([*values, direction], again)
                if stats.latency is not None:
                    latency.add_metric(values, stats.latency)
                    answers.add_metric(values, _buckets(stats.answers), stats.answer_time)
        yield active
        yield weight
        yield effective
        yield limit
        yield up
        yield ejections
        yield acquittals
        yield panic
        yield absent
        yield ports
        yield used_ports
        yield refused
        yield from counters.values()
        yield moves
        yield packets
        yield volume
        yield retransmits
        yield latency
        yield answers


def _buckets(answers: Sequence[int]) -> list[tuple[str, float]]:
    """A histogram's buckets as Prometheus has them: each counts those below as well."""
    bounds = [*map(floatToGoString, UPPER_BOUNDS), "+Inf"]
    return list(zip(bounds, accumulate(answers), strict=True))
