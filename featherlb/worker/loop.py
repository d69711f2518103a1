"""The data plane: one process, one queue, one core; with the datapath raw, sockets for frames
beside the queue. Started by the supervisor.

It owns its flows and shares nothing. The loop waits for packets, for the supervisor and for the
clock, in this order of importance; nothing in it blocks.
"""

import gc
import logging
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

from featherlb.core.flows.memory import FlowMemory
from featherlb.core.path.balancer import Balancer
from featherlb.core.path.export import FlowView
from featherlb.core.pools.schedulers import names
from featherlb.datapaths.base import PacketQueue
from featherlb.datapaths.nfqueue.netfilterqueue import NetfilterQueueDriver
from featherlb.datapaths.nfqueue.netlink import NetlinkDriver
from featherlb.datapaths.offload.engine import Conntrack
from featherlb.datapaths.raw.engine import PacketSockets
from featherlb.datapaths.raw.socket_filter import Interest
from featherlb.model import (
    Backend,
    Driver,
    Protocol,
    Service,
    Topology,
)
from featherlb.model.errors import FeatherlbError
from featherlb.model.shard import Shard
from featherlb.system import flow_file, plugins
from featherlb.system.raw_socket import RawSender
from featherlb.worker.protocol import (
    Applied,
    Apply,
    Channel,
    Ended,
    EndFlows,
    Failed,
    FlowPage,
    GetFlows,
    GetOutcomes,
    GetStatistics,
    Log,
    Outcomes,
    Ready,
    SetTopology,
    Start,
    ToWorker,
    WorkerStatistics,
)

TICK = 0.1
"""Seconds between two looks at the clock's business: expiry, and log lines."""
ADOPTION = 60.0
"""Seconds after the start in which replies of unknown connections are looked at."""


class Worker:
    """Carries packets from its queue through the core and back."""

    def __init__(self, channel: Channel, start: Start) -> None:
        """Bind the queue; HostError if that fails."""
        self._channel = channel
        self._sender = RawSender()
        self._memory = map_memory(start.memory)
        self._balancer = Balancer(
            memory=self._memory,
            secret=os.urandom(32),
            hash_key=start.hash_key,
            timeouts=start.timeouts,
            source_ports=start.shard.ports,
            adopt_until=time.monotonic() + ADOPTION,
        )
        self._balancer.lifecycle.opened = [] if start.log_flows else None
        self._queue = open_queue(start)
        self._interest = Interest(start.shard)
        self._frames = PacketSockets(self._interest)
        self._services: tuple[Service, ...] = ()
        self._topology = Topology()
        self._start = start
        self._conntrack: Conntrack | None = None
        self._serving = False
        self._poller = select.poll()

    def run(self) -> None:
        """Work until the supervisor goes away."""
        balancer, frames = self._balancer, self._frames
        queue, channel = self._queue.fileno(), self._channel.fileno()
        # Packets wait until it is known what becomes of them.
        self._poller.register(channel, select.POLLIN)
        next_tick = time.monotonic()
        overdue = False
        while True:
            told = False
            readable = self._poller.poll(0 if overdue else TICK * 1000)
            now = time.monotonic()
            for descriptor, _ in readable:
                if descriptor == channel:
                    told = True
                elif descriptor == queue:
                    if self._conntrack is not None and self._conntrack.watching:
                        # Who has just ended makes room for these.
                        self._conntrack.process(balancer.offload, now)
                    self._queue.process(balancer, now)
                elif self._conntrack is not None and descriptor == self._conntrack.fileno():
                    self._conntrack.process(balancer.offload, now)
                else:
                    frames.process(descriptor, balancer, now)
            self._send()
            if overdue or now >= next_tick:
                next_tick = now + TICK
                overdue = balancer.handle_timer(now)
                frames.expire(now)
                if self._conntrack is not None:
                    self._conntrack.flush(balancer.offload)
                    self._conntrack.sweep(balancer.offload, now)
                self._log_flows(now)
                self._channel.flush()
            if told and not self._listen():
                return

    def _listen(self) -> bool:
        """Do what the supervisor says; False when it is gone."""
        try:
            while (message := self._channel.receive()) is not None:
                self._obey(message)
        except EOFError:
            return False
        return True

    def _send(self) -> None:
        """What the core wants to have sent."""
        if self._conntrack is not None:
            self._conntrack.flush(self._balancer.offload)
        for packet in self._balancer.offload.take_resent():
            self._sender.send_translated(packet)
        for packet in self._balancer.answers.take():
            self._sender.send(packet)

    def _carry(self, new: Set[str]) -> None:
        """Have conntrack carry flows of offloaded services, and take over those that it carries for
        the services that are `new` here. Of the others, other workers may have them."""
        if self._conntrack is None:
            self._conntrack = Conntrack(self._balancer.offload)
            self._queue.carry_with(self._conntrack)
            self._poller.register(self._conntrack.fileno(), select.POLLIN)
        if new:
            shard, now = self._start.shard, time.monotonic()
            self._conntrack.adopt(self._balancer.offload, new, shard, now)

    def _take_over(self) -> None:
        """Go on with the flows of the worker that had this place, or of the instance before."""
        start = self._start
        memories = [flow_file.load(Path(path)) for path in start.saved]
        if start.predecessor is not None:
            memories.append(map_memory(start.predecessor))
        taken = left = 0
        for memory in memories:
            if memory is not None:
                more, fewer = self._balancer.takeover.take(memory, start.shard)
                taken, left = taken + more, left + fewer
        if taken or left:
            text = f"worker {start.shard.worker} has taken over {taken} flows"
            if left:
                text += f"; {left} have no place in the services"
            self._channel.send(Log(logging.INFO, text))

    def save(self) -> None:
        """Leave the flows to the next instance."""
        if self._balancer.takeover.has_own():
            try:
                flow_file.save(Path(self._start.save), self._memory, self._start.shard)
            except OSError as error:
                print(f"featherlb: flows can't be saved: {error}", file=sys.stderr)

    def _catch_up(self, carried: Set[str]) -> None:
        """Learn how flows are that conntrack carries no more, once only these services have it. A
        connection that opened or closed within the last second would be taken for half-open."""
        before = {one.name for one in self._services if one.datapath.kernel_forwards}
        if self._conntrack is not None and before - carried:
            offload = self._balancer.offload
            self._conntrack.refresh(offload, 1, offload.last_record(), time.monotonic())

    def close(self) -> None:
        if self._conntrack is not None:
            self._conntrack.close()
        self._queue.close()
        self._frames.close()
        self._sender.close()

    def _obey(self, message: object) -> None:
        match message:
            case Apply(services, pass_mark, schedulers, settled):
                try:
                    for reference, code in schedulers.items():
                        plugins.load(reference, code)
                    # What installed packages offer takes a third of a start to look through.
                    if not {one.scheduler for one in services} <= set(names()):
                        plugins.load_entry_points()
                except FeatherlbError as error:
                    self._channel.send(Failed(str(error)))
                    return
                carried = [one for one in services if one.datapath.kernel_forwards]
                self._catch_up({one.name for one in carried})
                self._balancer.apply(divide_limits(services, self._start.shard), settled)
                if not self._serving:
                    self._take_over()
                if carried:
                    served = {one.name for one in self._services}
                    self._carry({one.name for one in carried} - served)
                # The first datagrams of a flow begin again from a raw socket, one by one.
                self._queue.cut_segments(any(one.protocol is Protocol.UDP for one in carried))
                if self._conntrack is not None:
                    self._conntrack.watch(any(map(is_limited, carried)))
                self._send()
                self._queue.pass_mark = pass_mark
                self._services = services
                self._let_in()
                if not self._serving:
                    self._poller.register(self._queue.fileno(), select.POLLIN)
                    self._serving = True
                self._channel.send(Applied())
            case SetTopology(topology):
                self._follow(topology)
                self._channel.send(Applied())
            case GetOutcomes():
                self._channel.send(Outcomes(self._balancer.views.outcomes()))
            case GetStatistics():
                self._channel.send(
                    WorkerStatistics(
                        self._balancer.views.statistics(),
                        self._queue.counters(),
                        self._frames.counters(),
                        self._sender.failed,
                    )
                )
            case GetFlows(first, count):
                if self._conntrack is not None:
                    self._conntrack.refresh(self._balancer.offload, first, count, time.monotonic())
                records = self._balancer.views.copy_records(first, count, time.monotonic())
                self._channel.send(FlowPage(records))
            case EndFlows(flows, reset):
                now = time.monotonic()
                ended = sum(
                    self._balancer.ending.end_flow(it.record, it.key, reset, now) for it in flows
                )
                self._send()
                self._channel.send(Ended(ended))

    def _follow(self, topology: Topology) -> None:
        """Send frames by this topology from now on."""
        balancer, frames = self._balancer, self._frames
        self._topology = topology
        self._let_in()
        for descriptor in frames.descriptors():
            self._poller.unregister(descriptor)
        balancer.set_topology(topology)
        frames.set_topology(topology, balancer.hops.slots)
        for descriptor in frames.descriptors():
            self._poller.register(descriptor, select.POLLIN)

    def _let_in(self) -> None:
        """Receive frames of the services, and no others."""
        interest = self._interest.extended(self._services, self._topology.addresses)
        if interest != self._interest:
            self._interest = interest
            self._frames.set_interest(interest)

    def _log_flows(self, now: float) -> None:
        for service, error in self._balancer.views.take_scheduler_errors():
            text = f"{service}: the scheduler fails, backends are drawn by lot instead: {error}"
            self._channel.send(Log(logging.ERROR, text))
        for flow in self._balancer.views.take_opened(now):
            self._channel.send(Log(logging.DEBUG, describe(flow)))


def map_memory(descriptor: int) -> FlowMemory:
    """Shared memory that is there as long as it is used."""
    memory = FlowMemory(mmap.mmap(descriptor, 0))
    os.close(descriptor)
    return memory


def open_queue(start: Start) -> PacketQueue:
    """Bind the queue with the driver that was asked for."""
    drivers: dict[Driver, type[NetlinkDriver] | type[NetfilterQueueDriver]] = {
        Driver.NETLINK: NetlinkDriver,
        Driver.NETFILTERQUEUE: NetfilterQueueDriver,
    }
    return drivers[start.driver](
        start.queue, max_length=start.queue_length, fail_open=start.fail_open
    )


def is_limited(service: Service) -> bool:
    """Whether a connection that ends may make room for another."""
    return any(backend.max_connections is not None for backend in service.backends)


def divide_limits(services: tuple[Service, ...], shard: Shard) -> tuple[Service, ...]:
    """The services with this worker's part of each backend's connections."""

    def shared(backend: Backend) -> Backend:
        limit = backend.max_connections
        if limit is None:
            return backend
        return replace(backend, max_connections=shard.connections(limit))

    return tuple(
        replace(service, backends=tuple(map(shared, service.backends))) for service in services
    )


def describe(flow: FlowView) -> str:
    """One line for the log."""
    source = "" if flow.source == flow.client else f" from {flow.source}"
    return (
        f"{flow.service}: new {flow.protocol} flow {flow.client} -> {flow.vip}"
        f" to {flow.backend}{source}"
    )


def main() -> None:
    """Entry of `python -m featherlb.worker FD`, where FD is the supervisor's socket."""
    # The supervisor decides when to stop; a Ctrl-C at the terminal reaches it as well.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    start = wait_for_start(channel)
    if start is None:
        return
    try:
        worker = Worker(channel, start)
    except (FeatherlbError, OSError) as error:
        channel.send(Failed(str(error)))
        return
    # What stands now stays: the garbage collector needs not look at it again, while packets wait.
    gc.freeze()
    channel.send(Ready())
    try:
        worker.run()
        worker.save()
    finally:
        worker.close()


def wait_for_start(channel: Channel) -> Start | None:
    """The supervisor's first message, None if it went away instead."""
    while True:
        select.select([channel.fileno()], [], [])
        try:
            message: ToWorker | object = channel.receive()
        except EOFError:
            return None
        if isinstance(message, Start):
            return message
