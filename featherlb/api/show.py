"""What the API shows: the controller's values as the schema's models."""

import math
import os
import time
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from featherlb import __version__
from featherlb.api import schema
from featherlb.config import ServiceConfig
from featherlb.config.values import few
from featherlb.control.canary import Counts, Trial
from featherlb.control.faults import FaultView
from featherlb.control.overrides import LIMITING, Canary, Override
from featherlb.control.view import BackendView, ServiceView, View, WorkerView
from featherlb.core.flows.flight_recorder import Noted
from featherlb.core.flows.tcp_state import TimeoutClass
from featherlb.core.path.export import BackendStats, FlowView, Statistics
from featherlb.core.path.recording import Recorded
from featherlb.core.pools.gate import REFUSALS
from featherlb.core.pools.latency import UPPER_BOUNDS
from featherlb.model import Endpoint, Health, Label
from featherlb.model.label import label
from featherlb.model.reason import Reason

if TYPE_CHECKING:
    from featherlb.insight.explain import Answer as Explanation


def show_flow(flow: FlowView) -> schema.Flow:
    return schema.Flow.model_construct(
        service=flow.service,
        protocol=str(flow.protocol),
        state=label(flow.state),
        client=str(flow.client),
        vip=str(flow.vip),
        backend=str(flow.backend),
        source=str(flow.source),
        age=flow.age,
        idle=flow.idle,
        bytes_forward=flow.bytes_forward,
        bytes_reply=flow.bytes_reply,
        tried=[
            schema.Tried.model_construct(backend=str(backend), reason=why)
            for backend, why in flow.tried
        ],
    )


_Key = tuple[str, Endpoint]
"""A service, and one of its backends."""
_BOUNDS = [f"{bound:g}" for bound in (*UPPER_BOUNDS, math.inf)]

NO_PACKET = schema.CapturedPacket.model_construct(
    time=0.0, side="clients", leaving=False, length=0, data="", comment="", missed=0
)
"""Shows that there was none for a while."""


def show_packet(packet: Recorded) -> schema.CapturedPacket:
    return schema.CapturedPacket.model_construct(
        time=packet.time,
        side=packet.side,
        leaving=packet.leaving,
        length=packet.length,
        data=b64encode(packet.data).decode(),
        comment=packet.comment,
        missed=0,
    )


def show_record(worker: int, one: Noted) -> schema.Record:
    return schema.Record.model_construct(
        time=round(one.time, 6),
        worker=worker,
        kind=label(one.kind),
        detail=one.detail,
        protocol=str(one.protocol),
        client=None if one.client is None else str(one.client),
        vip=None if one.vip is None else str(one.vip),
        backend=None if one.backend is None else str(one.backend),
        weight=one.weight,
    )


def show_change(override: Override, trial: Trial | None = None) -> schema.Change:
    now = time.monotonic()
    left = [
        None if at is None else round(at - now, 3) for at in (override.until, override.deadline)
    ]
    return schema.Change(
        number=override.number or None,
        action=override.action,
        service=override.service,
        backend=override.backend,
        clients=str(override.limiting) if override.action in LIMITING else "",
        weight=override.weight,
        role=override.role,
        max_connections=override.max_connections,
        labels=_labels(override.labels),
        remaining=left[0],
        deadline=left[1],
        canary=None if override.canary is None else _canary(override.canary, trial, now),
        reason=override.reason,
    )


def _canary(canary: Canary, trial: Trial | None, now: float) -> schema.Canary:
    own, others = (trial.own, trial.others) if trial else (Counts(), Counts())
    theirs = others.metrics()
    return schema.Canary(
        share=canary.share,
        remaining=round(canary.until - now, 3),
        abort_if=str(canary.abort_if),
        flows=own.flows,
        metrics=[
            schema.Measured(metric=metric, canary=_known(value), others=_known(theirs[metric]))
            for metric, value in own.metrics().items()
        ],
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def show_fault(view: FaultView) -> schema.Injected:
    fault = view.fault
    return schema.Injected(
        number=fault.number,
        description=str(fault),
        kind=fault.kind,
        service=fault.service,
        backends=[str(one) for one in fault.backends],
        share=fault.share,
        delay=fault.delay,
        loss=fault.loss,
        seed=fault.seed,
        remaining=round(fault.until - time.monotonic(), 3),
        flows=view.flows,
        packets=view.packets,
    )


def show_explanation(found: "Explanation") -> schema.Explanation:
    return schema.Explanation(
        service=found.service,
        protocol=str(found.protocol),
        client=str(found.client),
        port_assumed=found.port_assumed,
        vip=str(found.vip),
        scheduler=found.scheduler,
        nat=str(found.nat),
        datapath=found.datapath,
        panic=found.panic,
        worker=found.worker,
        workers=found.workers,
        flow=None if found.flow is None else show_flow(found.flow),
        reopens=found.reopens,
        flows=[show_flow(flow) for flow in found.flows],
        outcome=found.outcome.label,
        reasons=list(found.reasons),
        backend=None if found.backend is None else str(found.backend),
        target=None if found.target is None else str(found.target),
        binding=None
        if found.binding is None
        else schema.Binding(backend=str(found.binding.backend), remaining=found.binding.remaining),
        candidates=[schema.Candidate(**asdict(one)) for one in found.candidates],
        hooks=[schema.HookAction(**asdict(one)) for one in found.hooks],
        rules=[schema.MetRule(**asdict(one)) for one in found.rules],
    )


def show_cluster(view: View) -> schema.Cluster:
    """The cluster of an instance that has one."""
    found = view.cluster
    assert found is not None
    counts: Counter[str] = Counter()
    for worker in view.statistics.values():
        counts.update(worker.replicas)
    return schema.Cluster(
        node=found.node,
        ready=not view.obstacles,
        obstacles=list(view.obstacles),
        leaving=found.leaving,
        peers=[
            schema.Peer(
                address=one.address,
                node=one.node,
                state=one.state,
                trouble=one.trouble,
                heard=one.heard,
                copied=one.copied,
                ready=one.ready,
                same=one.digest == found.digest,
                queued=one.queued,
                dropped=one.dropped,
            )
            for one in found.peers
        ],
        flows=dict(counts),
        refused=dict(found.refused),
    )


def show_status(view: View) -> schema.Status:
    found = view.statistics
    served = [service.served for service in view.services if service.served is not None]
    return schema.Status(
        instance=view.instance,
        version=__version__,
        pid=os.getpid(),
        started=view.started.isoformat(timespec="seconds"),
        uptime=round(view.uptime, 1),
        services=len(served),
        datapaths=dict(Counter(str(service.datapath) for service in served)),
        opened_by={
            one.name: by
            for one in served
            if one.datapath.carries and (by := _opened_by(view, one.name))
        },
        backends=sum(len(service.backends) for service in served),
        labels=dict(
            Counter(str(one) for s in served for backend in s.backends for one in backend.labels)
        ),
        absent=view.absent,
        flows=sum(one.core.flows for one in found.values()),
        capacity=sum(one.core.capacity for one in found.values()),
        hash_key=view.hash_key,
        log_level=view.log_level,
        log_level_remaining=(
            None if view.log_until is None else round(view.log_until - time.monotonic(), 3)
        ),
        changes=len(view.overrides),
        trials=[
            show_change(one, view.canaries.trials.get(one.number))
            for one in view.overrides
            if one.canary is not None or one.reason
        ],
        faults=[show_fault(one) for one in view.faults],
        code_off=sorted(
            {name for one in found.values() for name, counts in one.code.items() if counts.off}
        ),
        reloads=view.reloads.done,
        reloads_refused=view.reloads.refused,
        last_reload=view.reloads.last,
        reload_error=view.reloads.error,
        panic=sorted(service.config.name for service in view.services if service.panic),
        refused={
            name: reasons for name, reasons in _refused(view).items() if any(reasons.values())
        },
        worker_restarts=view.worker_restarts,
        workers=list(map(_worker, view.workers)),
        tasks=[
            schema.Task(
                name=one.name,
                restarts=one.restarts,
                failing=one.failing,
                last_error=one.last_error,
                last_failure=one.last_failure,
            )
            for one in view.tasks
        ],
        host=schema.HostState(
            restoring=view.host.restoring,
            deviations=list(view.host.deviations),
            restored=dict(view.host.restored),
            last_restored=view.host.last,
            repairs=view.host.repairs,
        ),
        cluster=show_cluster(view) if view.cluster else None,
        syn_cookies=schema.SynCookies(
            flooded=view.cookies.flooded,
            answering="kernel"
            if view.cookies.shielded
            else "workers"
            if view.cookies.flooded
            else "nobody",
            answered=view.cookies.answered,
            missing=view.cookies.missing,
        ),
        watchdog_fed=view.watchdog_fed,
    )


def show_services(view: View) -> schema.Services:
    found = [one.core for one in view.statistics.values()]
    counts = _backend_counts(found)
    refused = _refused(view)
    return schema.Services(
        services=[
            _service(
                one,
                found,
                counts,
                refused.get(one.config.name, {}),
                view.faults,
                _opened_by(view, one.config.name),
            )
            for one in view.services
        ]
    )


def _opened_by(view: View, service: str) -> str:
    """Who opens flows of a service that a program carries, and why; empty for others."""
    found = [one.openings.get(service) for one in view.statistics.values()]
    reason = next(filter(None, found), None)
    if reason is not None:
        return f"worker ({reason})"
    return "program" if "" in found else ""


def _worker(one: WorkerView) -> schema.Worker:
    found = one.statistics
    return schema.Worker(
        number=one.number,
        pid=one.pid,
        state="working" if found else "silent" if one.alive else "starting",
        flows=found.core.flows if found else None,
        received=found.core.received if found else None,
        waiting=found.queue.waiting if found else None,
    )


def _refused(view: View) -> dict[str, dict[str, int]]:
    """By service and reason, the packets of clients that may not open a flow."""
    sums: defaultdict[str, dict[str, int]] = defaultdict(
        lambda: {reason.label: 0 for reason in REFUSALS}
    )
    for one in view.statistics.values():
        for name, reasons in one.core.refused.items():
            for reason, count in reasons.items():
                sums[name][reason.label] += count
    for (name, reason), count in view.refused.items():
        sums[name][reason.label] += count
    return sums


def _conditions(service: ServiceConfig) -> list[str]:
    """The conditions for clients, as text."""
    lists = {"allow": service.allow, "deny": service.deny}
    return [
        *(f"{name} {few(map(str, found))}" for name, found in lists.items() if found),
        *(f"max-flows {one}" for one in service.max_flows),
        *(f"max-new {one}" for one in service.max_new),
    ]


def _service(
    view: ServiceView,
    found: list[Statistics],
    counts: dict[_Key, dict[str, Any]],
    refused: dict[str, int],
    faults: Sequence[FaultView],
    opened_by: str,
) -> schema.Service:
    name = view.config.name
    rows = [
        schema.Backend(
            backend=str(one.config),
            address=str(one.endpoint or ""),
            state=_state(one),
            failure=one.failure,
            role=one.config.role,
            weight=one.config.weight,
            canary=one.config.canary,
            effective_weight=one.effective_weight,
            max_connections=one.config.max_connections,
            labels=_labels(one.config.labels),
            **(counts[name, one.endpoint] if one.endpoint else _NOTHING),
        )
        for one in view.backends
    ]
    listed = {one.endpoint for one in view.backends}
    departing = {
        backend.endpoint: backend
        for core in found
        for service, backend in core.departing
        if service == name and backend.endpoint not in listed
    }
    rows += [
        schema.Backend(
            backend=str(one),
            address=str(one),
            state="leaving",
            failure="",
            role=one.role,
            weight=0,
            canary=0.0,
            effective_weight=0,
            max_connections=None,
            labels=_labels(one.labels),
            **_NOTHING,
        )
        for _, one in sorted(departing.items())
    ]
    return schema.Service(
        name=name,
        protocol=str(view.config.protocol),
        vips=[str(vip) for vip in (view.served or view.config).vips],
        scheduler=view.config.scheduler,
        nat=str(view.config.nat),
        datapath=str(view.served.datapath) if view.served else "",
        opened_by=opened_by,
        panic=view.panic,
        conditions=_conditions(view.config),
        refused=refused,
        faults=[show_fault(one) for one in faults if one.fault.service == name],
        backends=rows,
    )


def _labels(labels: Sequence[Label]) -> dict[str, str]:
    return {one.key: one.value for one in labels}


def _state(view: BackendView) -> Health | Literal["absent", "drained"]:
    if view.endpoint is None:
        return "absent"
    return "drained" if view.drained else view.health or Health.UP


_COUNTS = (
    "active",
    "flows",
    "packets_forward",
    "bytes_forward",
    "packets_reply",
    "bytes_reply",
    "resets",
    "refused",
    "syn_timeouts",
    "syn_retries",
    "doubtful",
    "moved_refused",
    "moved_silent",
    "ports",
    "ports_in_use",
    "ports_reclaimed",
    "retransmits_forward",
    "retransmits_reply",
)
"""A backend's counters in `BackendStats` and in the API."""
_NOTHING: dict[str, Any] = {**dict.fromkeys(_COUNTS, 0), "latency": None, "answers": {}}


def _backend_counts(found: list[Statistics]) -> dict[_Key, dict[str, Any]]:
    """The counters of each backend over all workers, and how long it takes to answer: the mean of
    the workers' smoothed times, each as often as it was measured there, and the histogram."""
    counts: dict[_Key, dict[str, Any]] = defaultdict(_NOTHING.copy)
    measured: dict[_Key, list[BackendStats]] = defaultdict(list)
    for core in found:
        for one in core.backends:
            sums = counts[one.service, one.backend.endpoint]
            for key in _COUNTS:
                sums[key] += getattr(one, key)
            if one.latency is not None:
                measured[one.service, one.backend.endpoint].append(one)
    for backend, parts in measured.items():
        weighted = sum((one.latency or 0.0) * sum(one.answers) for one in parts)
        answers = [sum(each) for each in zip(*(one.answers for one in parts), strict=True)]
        counts[backend]["latency"] = round(weighted / sum(answers), 6)
        counts[backend]["answers"] = dict(zip(_BOUNDS, answers, strict=True))
    return counts


def show_stats(view: View) -> schema.Stats:
    found = view.statistics
    cores = [one.core for one in found.values()]
    return schema.Stats(
        received=sum(core.received for core in cores),
        translated=sum(core.translated for core in cores),
        passed=sum(core.passed for core in cores),
        dropped=sum(core.dropped for core in cores),
        reasons={one.label: sum(core.reasons[one] for core in cores) for one in Reason},
        martians=view.martians,
        flows=sum(core.flows for core in cores),
        flows_by_class={
            label(kind): sum(core.flows_by_class[kind] for core in cores) for kind in TimeoutClass
        },
        evicted=sum(core.evicted for core in cores),
        unkept_syns=sum(core.unkept_syns for core in cores),
        scheduler_errors=dict(
            sum((Counter(core.scheduler_errors) for core in cores), Counter[str]())
        ),
        queues=[
            schema.Queue(
                worker=number,
                received=one.queue.received,
                truncated=one.queue.truncated,
                queue_dropped=one.queue.queue_dropped,
                socket_dropped=one.queue.socket_dropped,
                verdict_refused=one.queue.unsent,
                waiting=one.queue.waiting,
                unsent=one.unsent,
                frames=schema.Frames(
                    received=one.frames.received,
                    dropped=one.frames.socket_dropped,
                    unsent=one.frames.unsent,
                    unresolved=one.frames.unresolved,
                    held=one.frames.held,
                ),
                program=schema.CarriedFlows(
                    flows=one.program.carried,
                    given=one.program.given,
                    unplaced=one.program.unplaced,
                ),
            )
            for number, one in found.items()
        ],
    )
