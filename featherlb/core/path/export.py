"""Flows and counters as values that can be sent and shown.

Nothing here changes what happens to a packet. It is compiled because only compiled modules can read
a compiled record and compiled counters.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cython

from featherlb.core.flows.counters import Counters
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import Members
from featherlb.core.flows.record import Records
from featherlb.core.flows.snat_ports import PortAllocator
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State, TimeoutClass
from featherlb.core.path.redispatch import Redispatch
from featherlb.core.path.services import Services
from featherlb.core.pools.explain import Decision, explain
from featherlb.core.pools.gate import REFUSALS
from featherlb.core.pools.guard import Guard
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import NewFlow
from featherlb.model import Address, Backend, Endpoint, Protocol, Service, network_text
from featherlb.model.reason import DROPPED, PASSED, TRANSLATED, Reason
from featherlb.model.ticks import TICKS_PER_SECOND
from featherlb.net.addresses import address_of, endpoint_of, words_of

if not cython.compiled:
    from featherlb.core.flows.counters import (
        COUNTERS,
        DOUBTFUL,
        MOVED_REFUSED,
        MOVED_SILENT,
        OPENED,
        PORTS_RECLAIMED,
        REFUSED,
        RESETS,
        RETRANSMITS,
        SYN_RETRIES,
        SYN_TIMEOUTS,
    )
    from featherlb.core.flows.kernel import UNKNOWN_SCALE
    from featherlb.core.flows.record import REDISPATCHED


@dataclass(frozen=True, slots=True)
class FlowView:
    """One flow. Ages are in seconds; `source` is the client as the backend sees it."""

    service: str
    protocol: Protocol
    state: State
    client: Endpoint
    vip: Endpoint
    backend: Endpoint
    source: Endpoint
    age: float
    idle: float
    bytes_forward: int
    bytes_reply: int
    tried: tuple[tuple[Endpoint, str], ...] = ()
    """The backends that it has left before, each with the reason: "refused" or "silent"."""


@dataclass(frozen=True, slots=True)
class BackendStats:
    """Counters of one backend since it joined the pool.

    `resets` are RSTs in open connections, `refused` RSTs in answer to a SYN, `syn_timeouts`
    connections that it never answered, `syn_retries` those whose client retransmitted the SYN,
    `doubtful` segments that changed nothing, as their sequence numbers may be forged.
    `moved_refused` and `moved_silent` are flows that went to another backend, since this one
    refused them or did not answer in time. In `full` mode flows hold `ports_in_use` of `ports`
    source ports towards it; `ports_reclaimed` are half-open flows that lost theirs to another.
    `retransmits_*` are TCP segments whose data came again, or late. `latency` is the smoothed time
    in seconds that it takes to answer the first packet of a flow, None if it was never measured;
    `answers` are the numbers of such answers by time (`latency.UPPER_BOUNDS`), empty if there are
    none; `answer_time` is the sum of their times in seconds.
    """

    service: str
    backend: Backend
    active: int
    flows: int
    resets: int
    refused: int
    syn_timeouts: int
    syn_retries: int
    doubtful: int
    moved_refused: int
    moved_silent: int
    ports: int
    ports_in_use: int
    ports_reclaimed: int
    retransmits_forward: int
    retransmits_reply: int
    packets_forward: int
    bytes_forward: int
    packets_reply: int
    bytes_reply: int
    latency: float | None
    answers: tuple[int, ...]
    answer_time: float


@dataclass(frozen=True, slots=True)
class Offender:
    """A client that a service has refused of late: so many packets in one or two minutes."""

    service: str
    client: str
    packets: int


@dataclass(frozen=True, slots=True)
class Insistent:
    """A client that a service refuses again and again: its address, of IPv6 the first one of its
    network of 64 bits, and why."""

    service: str
    client: Address
    reason: Reason


@dataclass(frozen=True, slots=True)
class Statistics:
    """A snapshot. In packets, received = translated + passed + dropped = the sum of `reasons`.

    `flows` is the sum of `flows_by_class`. `departing` are backends that have left their service
    but still have flows.
    """

    received: int
    translated: int
    passed: int
    dropped: int
    reasons: dict[Reason, int]
    flows: int
    flows_by_class: dict[TimeoutClass, int]
    capacity: int
    evicted: int
    unkept_syns: int
    scheduler_errors: dict[str, int]
    refused: dict[str, dict[Reason, int]]
    """By service, of those that have conditions for clients: packets that would have opened a flow
    of one that does not meet them."""
    backends: tuple[BackendStats, ...]
    departing: tuple[tuple[str, Backend], ...]


@dataclass(frozen=True, slots=True)
class FlowRecords:
    """A part of the flow table as raw memory: cheap for the worker to copy; the receiver decodes it
    (`read_flows`).

    `first` is the number of the first record, `end` that of the last one in use plus one.
    `created` are the ticks at which they were opened, `services` are by member number, `now` is the
    time of the copy in seconds, `tried` is by flow (`FlowView.tried`).
    """

    records: bytes
    created: bytes
    first: int
    end: int
    services: dict[int, str]
    now: float
    tried: dict[int, tuple[tuple[Endpoint, str], ...]]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a worker would do with a client's packet to a VIP.

    `flow` is the flow that it belongs to, None if there is none; `reopens` says that a packet which
    opens a connection would nevertheless be scheduled anew. `refused` is why this client may
    open none, None if it may; `conditions` are sentences about that. `decision` is where the new
    flow would go; `clash` is the client's flow to another VIP that has the client's port there, so
    that it would get another one; `full`: the flow table is full, so another flow would be evicted.
    """

    service: str
    flow: FlowView | None
    reopens: bool
    refused: Reason | None
    conditions: tuple[str, ...]
    decision: Decision
    clash: FlowView | None
    full: bool


class _Everywhere(dict[int, str]):
    """One name for all numbers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __missing__(self, number: int) -> str:
        return self._name


class Views:
    """Reads a balancer's flows and counters."""

    def __init__(
        self,
        flows: FlowTable,
        services: Services,
        members: Members,
        counters: Counters,
        lifecycle: Lifecycle,
        redispatch: Redispatch,
        source_ports: PortAllocator,
    ) -> None:
        self._flows = flows
        self._services = services
        self._members = members
        self._counters = counters
        self._lifecycle = lifecycle
        self._redispatch = redispatch
        self._source_ports = source_ports

    def list_flows(self, now: float, first: int = 1, limit: int = 1000) -> Iterator[FlowView]:
        """Up to `limit` flows from record `first` on, in no particular order."""
        for flow in range(first, self._flows.last_record() + 1):
            if limit <= 0:
                return
            if self._is_open(flow):
                limit -= 1
                yield self.view(flow, now)

    def view(self, flow: int, now: float) -> FlowView:
        """A flow, by record number."""
        ((_, _, view),) = read_flows(self.copy_records(flow, 1, now))
        return view

    def find_pool(self, protocol: Protocol, vip: Endpoint) -> Pool | None:
        """The pool of the service with this VIP, None if there is none."""
        high, low = words_of(vip.address)
        found: Pool | None = self._services.find(high, low, int(protocol), vip.port, False)
        return found

    def explain(
        self, pool: Pool, protocol: Protocol, client: Endpoint, vip: Endpoint, now: float
    ) -> Explanation:
        """What a packet of this client to a VIP of the pool would meet. Changes nothing if the pool
        is `rewindable`."""
        ticks = int(now * TICKS_PER_SECOND)
        high, low = words_of(client.address)
        vip_high, vip_low = words_of(vip.address)
        ports = client.port << 16 | vip.port
        flow = self._flows.find(high, low, vip_high, vip_low, ports, int(protocol)) >> 1
        decision = explain(
            pool,
            NewFlow.between(int(protocol), client, vip),
            ticks,
        )
        clash = 0
        if decision.backend is not None and not pool.full:
            backend = pool.service.reached(decision.backend, vip.port)
            backend_high, backend_low = words_of(backend.address)
            ports = backend.port << 16 | client.port
            clash = (
                self._flows.find(backend_high, backend_low, high, low, ports, int(protocol)) >> 1
            )
            if clash == flow or protocol is Protocol.UDP or self._lifecycle.reopens(clash, ticks):
                clash = 0
        refused, conditions = pool.gate.explain(high << 64 | low, now)
        return Explanation(
            service=pool.service.name,
            flow=self.view(flow, now) if flow else None,
            reopens=bool(flow and self._lifecycle.reopens(flow, ticks)),
            refused=refused,
            conditions=tuple(conditions),
            decision=decision,
            clash=self.view(clash, now) if clash else None,
            full=self._flows.count == self._flows.capacity,
        )

    def copy_records(self, first: int, count: int, now: float) -> FlowRecords:
        """The flow table's records from `first` on, `count` at most."""
        end = self._flows.last_record() + 1
        last = max(first, min(first + count, end))
        services = {}
        tried = {}
        for flow in range(first, last):
            record = self._flows.at(flow)
            if record.protocol and record.member_id not in services:
                pool = self._members.by_id[record.member_id].pool
                services[record.member_id] = pool.service.name
            if record.protocol and record.flags & REDISPATCHED:
                tried[flow] = self._redispatch.story(flow)
        records = self._flows.records.copy(first, last)
        created = bytes(self._flows.created[first:last])
        return FlowRecords(records, created, first, end, services, now, tried)

    def guards(self) -> dict[str, Guard]:
        """What watches users' keys, by their names."""
        keys = (pool.user_key for pool in self._services.pools.values())
        return {key.guard.name: key.guard for key in keys if key is not None}

    def take_scheduler_errors(self) -> list[tuple[str, str]]:
        """The first error of each user's scheduler since it was loaded, once: service, error."""
        found = []
        for service, scheduler in self._services.user_schedulers:
            if scheduler.first_error and not scheduler.reported:
                scheduler.reported = True
                found.append((service, scheduler.first_error))
        return found

    def take_opened(self, now: float) -> list[FlowView]:
        """Flows opened since the last call, if `lifecycle.opened` is a list."""
        if not self._lifecycle.opened:
            return []
        views = [self.view(flow, now) for flow in self._lifecycle.opened if self._is_open(flow)]
        self._lifecycle.opened = []
        return views

    def note_flows(self, wanted: bool) -> None:
        """Note flows that open or end, for the hooks of their services, or no longer."""
        if wanted is (self._lifecycle.noted is None):
            self._lifecycle.noted = [] if wanted else None

    @property
    def has_noted(self) -> bool:
        """Whether `take_noted` has any."""
        return bool(self._lifecycle.noted)

    @property
    def missed(self) -> int:
        """Flows that were not noted, as there were too many."""
        return int(self._lifecycle.missed)

    def take_noted(self, now: float) -> Iterator[tuple[bool, Service, FlowView]]:
        """The flows noted since the last call: whether each has opened, its service, and the flow
        as it was."""
        noted = self._lifecycle.noted
        if not noted:
            return
        self._lifecycle.noted = []
        for opened, service, record, created in noted:
            ticks = array("I", [created]).tobytes()
            page = FlowRecords(record, ticks, 1, 2, _Everywhere(service.name), now, {})
            for _, _, flow in read_flows(page):
                yield opened, service, flow

    def _is_open(self, flow: int) -> bool:
        return bool(self._flows.at(flow).protocol)

    def outcomes(self, services: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """By service, of those with these names, for each of its backends in order: flows opened
        since it joined, how many of them it refused or did not answer, how many answers were
        measured, and how long they took in all, in microseconds; then the networks of the clients,
        and of those it failed, since the last call, as `Counters.networks` has them."""
        counters = self._counters
        latencies = counters.latencies
        found: dict[str, tuple[int, ...]] = {}
        for name in services:
            pool = self._services.pools.get(name)
            if pool is None:
                continue
            outcomes: list[int] = []
            for member in pool.members.values():
                at = member.index * COUNTERS
                failed = counters.members[at + REFUSED] + counters.members[at + SYN_RETRIES]
                answers = sum(latencies.histogram(member.index))
                opened = counters.members[at + OPENED]
                networks = counters.take_networks(member.index)
                outcomes += (opened, failed, answers, latencies.total(member.index), *networks)
            found[name] = tuple(outcomes)
        return found

    def scales(self) -> dict[str, tuple[int | None, ...]]:
        """The window scales of the backends of each offloaded service that uses SYN cookies, in
        order: -1 if one doesn't scale, None if it isn't known. Services of which none is known are
        left out."""
        found = {}
        for name, pool in self._services.pools.items():
            if pool.offloaded and pool.cookies_allowed:
                scales = [
                    self._members.by_id[member.index].scale for member in pool.members.values()
                ]
                if any(scale != UNKNOWN_SCALE for scale in scales):
                    found[name] = tuple(
                        None if scale == UNKNOWN_SCALE else scale for scale in scales
                    )
        return found

    def offenders(self, count: int, now: float) -> tuple[Offender, ...]:
        """So many clients of each service, at most, that it has refused most often of late."""
        return tuple(
            Offender(name, network_text(client, 128), packets)
            for name, pool in self._services.pools.items()
            if pool.guarded
            for client, packets in pool.gate.offenders.top(count, now)
        )

    def insistent(self) -> tuple[Insistent, ...]:
        """The clients that services have refused many times since the last call."""
        return tuple(
            Insistent(name, address_of(client >> 64, client & (1 << 64) - 1), Reason(reason))
            for name, pool in self._services.pools.items()
            if pool.guarded
            for client, reason in pool.gate.take_insistent()
        )

    def statistics(self, with_backends: bool = True) -> Statistics:
        """A snapshot of all counters; those of the backends only `with_backends`."""
        counters = self._counters
        latencies = counters.latencies
        reasons = {reason: counters.reasons[int(reason)] for reason in Reason}
        errors = dict.fromkeys((service for service, _ in self._services.user_schedulers), 0)
        for service, scheduler in self._services.user_schedulers:
            errors[service] += scheduler.errors
        backends = []
        for pool in self._services.pools.values() if with_backends else ():
            for member in pool.members.values():
                at = member.index * COUNTERS
                target = self._members.by_id[member.index]
                in_use, ports = self._source_ports.use(target.target, target.sources)
                backends.append(
                    BackendStats(
                        service=pool.service.name,
                        backend=member.backend,
                        active=member.active,
                        flows=counters.members[at + OPENED],
                        resets=counters.members[at + RESETS],
                        refused=counters.members[at + REFUSED],
                        syn_timeouts=counters.members[at + SYN_TIMEOUTS],
                        syn_retries=counters.members[at + SYN_RETRIES],
                        doubtful=counters.members[at + DOUBTFUL],
                        moved_refused=counters.members[at + MOVED_REFUSED],
                        moved_silent=counters.members[at + MOVED_SILENT],
                        ports=ports,
                        ports_in_use=in_use,
                        ports_reclaimed=counters.members[at + PORTS_RECLAIMED],
                        retransmits_forward=counters.members[at + RETRANSMITS],
                        retransmits_reply=counters.members[at + RETRANSMITS + 1],
                        packets_forward=counters.members[at],
                        bytes_forward=counters.members[at + 1],
                        packets_reply=counters.members[at + 2],
                        bytes_reply=counters.members[at + 3],
                        latency=latencies.smoothed(member.index),
                        answers=latencies.histogram(member.index),
                        answer_time=latencies.total(member.index) / 1e6,
                    )
                )
        return Statistics(
            received=sum(reasons.values()),
            translated=sum(reasons[reason] for reason in TRANSLATED),
            passed=sum(reasons[reason] for reason in PASSED),
            dropped=sum(reasons[reason] for reason in DROPPED),
            reasons=reasons,
            flows=self._flows.count,
            flows_by_class={
                kind: self._flows.length[queue] for queue, kind in enumerate(TimeoutClass)
            },
            capacity=self._flows.capacity,
            evicted=self._lifecycle.evicted,
            unkept_syns=self._redispatch.unkept,
            scheduler_errors=errors,
            refused={
                name: {reason: pool.gate.refused[int(reason)] for reason in REFUSALS}
                for name, pool in self._services.pools.items()
                if pool.guarded or any(pool.gate.refused.values())
            },
            backends=tuple(backends),
            departing=tuple(
                (member.pool.service.name, member.scheduled.backend)
                for member in self._members.by_id
                if member.flows
                and member.pool.members.get(member.scheduled.endpoint) is not member.scheduled
            ),
        )


def read_flows(page: FlowRecords) -> Iterator[tuple[int, bytes, FlowView]]:
    """The flows in a copied part of the table: record number, key and view of each."""
    records = Records(memoryview(bytearray(page.records)))
    created = memoryview(page.created).cast("I")
    ticks = int(page.now * 10)
    for number in range(records.count):
        record = records.at(number)
        if not record.protocol:
            continue
        yield (
            page.first + number,
            records.key(number),
            FlowView(
                service=page.services[record.member_id],
                protocol=Protocol(record.protocol),
                state=State(record.state),
                client=endpoint_of(record.client_high, record.client_low, record.client_port),
                vip=endpoint_of(record.vip_high, record.vip_low, record.vip_port),
                backend=endpoint_of(record.backend_high, record.backend_low, record.backend_port),
                source=endpoint_of(record.source_high, record.source_low, record.source_port),
                age=(ticks - created[number]) / 10,
                idle=(ticks - record.seen) / 10,
                bytes_forward=record.forward_bytes,
                bytes_reply=record.reply_bytes,
                tried=page.tried.get(page.first + number, ()),
            ),
        )
