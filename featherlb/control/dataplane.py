"""What moves the packets of one instance: its workers, its part of the host, and the topology.

Executes the actions of transitions, and remembers what is in force. It decides nothing.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from featherlb import host
from featherlb.cluster.wire import number_of
from featherlb.config import Config
from featherlb.control.cookies import CookieShield
from featherlb.control.events import Events
from featherlb.control.host_watch import HostWatch
from featherlb.control.tasks import Tasks
from featherlb.control.topology import TopologyWatcher
from featherlb.control.transition import (
    Action,
    ApplyServices,
    EndFlows,
    UpdateHost,
    UpdateTopology,
    at_the_place_of,
)
from featherlb.control.turnstile import RefusedClients
from featherlb.control.workers import Cursor, FlowFilter, WorkerDiedError, Workers
from featherlb.core.flows.tcp_state import ACTIVE
from featherlb.core.path.export import read_flows
from featherlb.datapaths.base import QueueOptions, queue_length
from featherlb.model import Address, Service, Topology
from featherlb.model.errors import HostError
from featherlb.model.fault import Fault
from featherlb.model.reason import Reason
from featherlb.model.user_code import UserCode
from featherlb.system import flow_file, hash_key, kernel_state, programs, rtnetlink, state_file
from featherlb.system.hash_key import THIS_RUN, HashKey
from featherlb.system.journal import Journal
from featherlb.worker.protocol import (
    Apply,
    Command,
    InjectFaults,
    LogFlows,
    Reweigh,
    SetTopology,
    Start,
    Update,
    merge,
)

log = logging.getLogger("featherlb")


SHOWN = 10
"""Changes to the host that a line of the log names."""


PLANNED = {host.Kind.RULES, host.Kind.SETS}
"""What the plan in force still says how to restore; for the rest it depends on the host."""


class DataPlane:
    """What changes the host comes one call at a time, and so does what changes the workers'
    services (`serve`, `reweigh`). Calls that only ask the `workers` may come at any time."""

    def __init__(self, events: Events, tasks: Tasks) -> None:
        self._events = events
        self.workers = Workers(events, tasks)
        self.topology = TopologyWatcher(events, tasks)
        self.cookies = CookieShield(self.workers, events)
        self.refused_clients = RefusedClients()
        self.options = host.Options()
        self.departing: tuple[Service, ...] = ()
        """The backends that have left and still have flows, as far as the host knows."""
        self._host = host.Host()
        self.watch = HostWatch(events, self._host.glance)
        self._away: dict[Address, bool] = {}
        """Of the VIPs that others give to this host, whether they were away when that was reported
        last."""
        self._pass_mark = 0
        self._apply = Apply((), 0)
        """In force in the workers; for a new one, with all users' code."""
        self._loaded: Mapping[str, UserCode] = {}
        """The code that all workers have loaded."""
        self._sent = Topology()
        """The topology that all workers have."""
        self._log_flows = LogFlows(False)
        self._faults = InjectFaults(())
        self.hash_key = HashKey(b"", THIS_RUN)
        """By what the hash schedulers place flows."""
        self._max_flows = 0
        self._installed = False
        """The programs of services that have some are in the kernel."""

    async def start(
        self,
        config: Config,
        services: tuple[Service, ...],
        user_code: Mapping[str, UserCode],
        plan: host.HostPlan,
    ) -> None:
        """Start the workers and apply the plan; HostError if that can't be done, and `stop` cleans
        up."""
        self.options = plan.options
        self.hash_key = await asyncio.to_thread(hash_key.choose, config.hash_key)
        self._pass_mark = plan.pass_mark or 0
        self._log_flows = LogFlows(log.isEnabledFor(logging.DEBUG))
        self._apply = Apply(services, self._pass_mark, dict(user_code))
        self._loaded = user_code
        self._max_flows = config.max_flows
        directory = Journal().directory
        saved = flow_file.find(directory, self.options.queue)
        length = queue_length(kernel_state.memory(), self.options.workers)
        starts = [
            Start(
                shard=self.options.shard(number),
                queue=QueueOptions(
                    self.options.queue + number,
                    config.driver,
                    length,
                    self.options.fail_open,
                ),
                max_flows=config.max_flows,
                timeouts=config.timeouts,
                hash_key=self.hash_key.key,
                cookie_key=self.cookies.key,
                save=str(flow_file.path(directory, self.options.queue, number)),
                saved=tuple(map(str, saved)),
                node=number_of(config.cluster.node) if config.cluster else 0,
            )
            for number in range(self.options.workers)
        ]
        await self.cookies.open(config.max_flows, config.timeouts.half_open)
        # Queues are bound and services known before rules send packets there.
        await self.topology.follow(services)
        await self._install_programs(services)
        try:
            await self.workers.start(starts, self._greeting, config.recorder.size)
        except WorkerDiedError:
            # The next start must not die of them, too.
            for path in saved:
                state_file.set_aside(path, "a worker died of it, or with it", "and is not restored")
            raise
        # The workers have them now, and save them when they end.
        for path in saved:
            path.unlink(missing_ok=True)
        await asyncio.to_thread(self._host.apply, plan)
        self._away = self._host.away

    async def stop(self, *, leaving: bool = False) -> None:
        """Revert the host, except for what open flows need that the kernel forwards. Rules go
        before the queues do, so no packet meets a queue without a worker. HostError if the host
        can't be reverted at all.

        `leaving`: revert nothing, so that packets are dropped until the next instance is ready, and
        this host answers none of them."""
        await self.topology.stop()
        self.cookies.close()
        self.refused_clients.close()
        try:
            if leaving:
                log.warning(
                    "packets to the VIPs are dropped until the next `featherlb up`, which takes"
                    " over what is on this host; if there won't be one, run `featherlb down`"
                )
            elif offloaded := await self._offloaded():
                await asyncio.to_thread(self._leave, offloaded)
            else:
                await asyncio.to_thread(self._revert)
        finally:
            self.workers.stop()

    async def execute(self, action: Action) -> None:
        """Carry an action out; HostError if the host or a worker refuses."""
        match action:
            case UpdateHost(services, departing, release):
                if release:
                    departing = await self.still_departing(departing, services)
                await asyncio.to_thread(self._update_host, [*services, *departing])
                self.departing = departing
            case UpdateTopology(services):
                await self.topology.follow(services)
                await self.send_topology()
            case ApplyServices(state, rules_applied):
                await self.serve(state.services, state.user_code, rules_applied=rules_applied)
            case EndFlows():
                await self.end_flows(action)

    async def end_flows(self, which: EndFlows) -> str:
        """End flows, and say so; what became of them, as text that is empty if there were none."""
        count = await self.workers.end_flows(filter_of(which), reset=which.reset)
        if not count:
            return ""
        text = which.outcome(count)
        self._events.emit("flows-ended", text, service=which.service, count=count)
        return text

    async def still_departing(
        self, departing: Sequence[Service], services: Sequence[Service]
    ) -> tuple[Service, ...]:
        """The departing backends that still have flows, each at the place of its service now."""
        holding = {
            (name, backend.endpoint)
            for one in (await self.workers.statistics(backends=False)).values()
            for name, backend in one.core.departing
        }
        serving = {service.name: service for service in services}
        kept = []
        for service in departing:
            backends = tuple(b for b in service.backends if (service.name, b.endpoint) in holding)
            if backends and service.name in serving:
                kept.append(at_the_place_of(serving[service.name], service, backends))
        return tuple(dict.fromkeys(kept))

    async def send_topology(self) -> None:
        """Send the workers the topology, if they don't have it; HostError if one has died."""
        topology = self.topology.current
        if topology != self._sent:
            await self.workers.apply(SetTopology(topology))
            self._sent = topology

    async def log_flows(self, enabled: bool) -> None:
        """Have the workers log each new flow, or not."""
        self._log_flows = LogFlows(enabled)
        # The successor of a worker that has died hears of it when it starts.
        with suppress(HostError):
            await self.workers.apply(self._log_flows)

    async def inject(self, faults: tuple[Fault, ...]) -> None:
        """Have the workers put these faults in force, and no others."""
        self._faults = InjectFaults(faults)
        with suppress(HostError):
            await self.workers.apply(self._faults)

    @property
    def plan(self) -> host.HostPlan | None:
        """What is in force on the host."""
        return self._host.plan

    async def deviations(
        self, kinds: frozenset[host.Kind] = host.ALL_KINDS
    ) -> list[host.Deviation]:
        """What others have changed of this instance's part of the host."""
        return await asyncio.to_thread(self._deviations, kinds)

    async def refused(self) -> Mapping[tuple[str, Reason], int]:
        """How many packets of clients the kernel has refused, by service and reason; without those
        of rules if the host doesn't say."""
        plan = self._host.plan
        found: Counter[tuple[str, Reason]] = Counter()
        if plan is not None and plan.refusing:
            try:
                found = await asyncio.to_thread(self._host.refused)
            except HostError as error:
                log.debug("what the rules have refused is unknown: %s", error)
        return found + self.refused_clients.dropped

    async def restore(self, found: Sequence[host.Deviation]) -> None:
        """Give the host what it lacks of the plan; HostError if it refuses."""
        plan = self._host.plan
        if plan is not None and {one.kind for one in found} <= PLANNED:
            await asyncio.to_thread(self._host.update, plan)
        else:
            await asyncio.to_thread(self._restore)

    async def vips_moved(self) -> bool:
        """Whether VIPs that others give to this host have come or gone since `follow_vips`."""
        return bool(await asyncio.to_thread(self._host.moved)) or self._away != self._host.away

    async def follow_vips(self) -> None:
        """Adapt the host's rules to VIPs that have come or gone; HostError if it refuses."""
        if await asyncio.to_thread(self._host.moved):
            await asyncio.to_thread(self._restore)
        before, self._away = self._away, self._host.away
        for address, away in self._away.items():
            if before.get(address, away) is not away:
                kind, text = ("vip-away", "is no longer") if away else ("vip-here", "is")
                self._events.emit(kind, f"VIP {address} {text} an address of this host")

    # Blocking

    def _deviations(self, kinds: frozenset[host.Kind]) -> list[host.Deviation]:
        # Anew, even inside of a change: others don't wait for its end.
        with rtnetlink.asked_once():
            found = self._host.deviations(kinds)
            if host.Kind.SETTINGS in kinds:
                services = self._apply.services
                addresses = rtnetlink.addresses()
                if problem := host.reverse_path_problem(services, self.options, addresses):
                    # It is the operator's: others need it, too.
                    found.append(host.Deviation(host.Kind.SETTINGS, problem, "", ours=False))
        return found

    def _update_host(self, services: Sequence[Service]) -> None:
        plan = host.build(services, self.options, host.survey(services))
        self._host.update(plan)
        self._pass_mark = plan.pass_mark or 0

    def _restore(self) -> None:
        before = self._host.plan
        assert before is not None
        services = [*self._apply.services, *self.departing]
        facts = host.survey(services)
        # What somebody else has given to this host and taken away isn't ours to give back: with
        # VRRP another host has it now.
        others = {vip.address for _, vip in before.vips} - {vip for vip, _ in before.addresses}
        if self.options.assign:
            facts = replace(facts, local_vips=facts.local_vips | others)
        plan = host.build(services, self.options, facts)
        self._host.update(plan)
        self._pass_mark = plan.pass_mark or 0

    def _leave(self, services: Sequence[Service]) -> None:
        """Leave on the host what flows need that the kernel forwards."""
        if self._installed:
            programs.open_none(self.options.queue)
        facts = host.survey(services)
        try:
            self._host.hand_off(host.build(services, self.options, facts, handoff=True))
        except HostError as error:
            log.error("offloaded connections can't be kept: %s", error)
            self._revert()
            return
        log.warning(
            "the kernel keeps forwarding open connections of %s: what they need stays on this host"
            " until the next `featherlb up` with one of their VIPs, or `featherlb down`",
            ", ".join(sorted({service.name for service in services})),
        )

    def _revert(self) -> None:
        undone, failures = self._host.revert()
        if self._installed:
            try:
                # Loaded, but not part of the plan yet.
                programs.remove(self.options.queue)
            except HostError as error:
                failures.append(str(error))
        for failure in failures:
            log.error("%s", failure)
        if undone:
            more = f" and {len(undone) - SHOWN} more" if len(undone) > SHOWN else ""
            log.info("undone on this host: %s%s", ", ".join(undone[:SHOWN]), more)

    # Workers

    async def serve(
        self,
        services: tuple[Service, ...],
        user_code: Mapping[str, UserCode],
        *,
        rules_applied: bool = True,
    ) -> None:
        """Have the workers serve these services; HostError if one can't, and the others do."""
        await self._install_programs(services)
        before = {service.name: service for service in self._apply.services}
        code = {name: text for name, text in user_code.items() if self._loaded.get(name) != text}
        update = Update(
            tuple(
                one
                for one in services
                if before.pop(one.name, None) != one or one.user_code & code.keys()
            ),
            self._pass_mark,
            code,
            rules_applied=rules_applied,
            gone=frozenset(before),
        )
        # A worker that starts meanwhile gets the same. What a failure leaves loaded is not known.
        self._apply = Apply(services, self._pass_mark, dict(user_code), rules_applied=rules_applied)
        self._loaded = {}
        await self.workers.apply(update)
        self._loaded = user_code

    async def _install_programs(self, services: Sequence[Service]) -> None:
        """Load the programs that services need, before a worker asks for their maps; HostError if
        the kernel refuses."""
        if not self._installed and any(service.datapath.carries for service in services):
            workers = self.options.workers
            await asyncio.to_thread(
                programs.install, self.options.queue, workers, workers * self._max_flows
            )
            self._installed = True

    async def reweigh(self, services: Sequence[Service]) -> None:
        """Have the workers serve these services in place of those with their names, which differ
        in weights and ramps only; HostError as `serve`."""
        self._apply = replace(self._apply, services=merge(self._apply.services, services))
        await self.workers.apply(Reweigh(tuple(services)))

    def _greeting(self) -> list[Command]:
        """What a new worker has to know."""
        greeting: list[Command] = [
            self._log_flows,
            self._faults,
            self.cookies.message,
            self._apply,
        ]
        if self.topology.active:
            greeting.append(SetTopology(self.topology.current))
        return greeting

    async def _offloaded(self) -> list[Service]:
        """The services with open flows that are forwarded without workers."""
        offloaded = [
            service
            for service in (*self._apply.services, *self.departing)
            if service.datapath.outlives_workers
        ]
        if not offloaded:
            return []
        open_flows = set()
        try:
            async for page, _ in self.workers.copies(Cursor()):
                open_flows |= {
                    flow.service for _, _, flow in read_flows(page) if flow.state in ACTIVE
                }
        except HostError:
            # A worker has died just now: its flows are in the kernel still.
            return offloaded
        return [service for service in offloaded if service.name in open_flows]


def filter_of(which: EndFlows) -> FlowFilter:
    """The flows that end."""
    return FlowFilter(service=which.service, backend=which.backend, spared=which.spared)
