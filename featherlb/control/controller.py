"""A running instance: configuration, run-time changes, host and workers, kept in step.

Everything that changes what is served goes through `_go_over`, one at a time, whole or not at all.
Its order keeps every packet served: what new backends need of the host stands before a worker sends
to them, a VIP's packets are queued only when the workers know it, and what leaves stays on the host
as long as it has flows.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from featherlb import host
from featherlb.config import AUTO, Config, ServiceConfig, VipConfig, advise, resolve
from featherlb.control.events import Events
from featherlb.control.health import HealthChecks, progress
from featherlb.control.overrides import Change, add, running, still_fit
from featherlb.control.resolver import Names
from featherlb.control.topology import TopologyWatcher
from featherlb.control.workers import Cursor, FlowFilter, Workers
from featherlb.core.flows.tcp_state import ACTIVE
from featherlb.core.path.export import read_flows
from featherlb.datapaths.base import QueueOptions
from featherlb.model import (
    Address,
    Backend,
    Endpoint,
    OnBackendDown,
    Protocol,
    Service,
    Topology,
)
from featherlb.model.errors import ConfigError, FeatherlbError, HostError
from featherlb.system import flow_file, plugins
from featherlb.system.journal import Journal
from featherlb.worker.protocol import Apply, SetTopology, Start

log = logging.getLogger("featherlb")

QUEUE_LENGTH = 8192
"""Packets that wait in the kernel before it drops; a burst of 0.1 s at 80,000 packets/s."""
WATCH_INTERVAL = 0.5
"""Seconds between two looks at the workers: whether they answer, whose connections fail, and who
has flows left."""

HEALTH_INTERVAL = 0.1
"""Seconds between two changes of the workers' weights because of health."""

LookUp = Callable[[str], Sequence[Address]]


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run; `load` reads the configuration, at the start and at each reload."""

    load: Callable[[], Config]
    assign: bool


@dataclass(frozen=True, slots=True)
class Reloads:
    """How the reloads went."""

    done: int = 0
    refused: int = 0
    last: str = ""
    """When, ISO 8601 in UTC; empty if never."""
    error: str = ""
    """Why the last one was refused; empty if it was not."""


class Instance:
    """One instance, from `start` to `stop`."""

    def __init__(self, settings: Settings, events: Events) -> None:
        self.settings = settings
        self.events = events
        self.started = datetime.now(UTC)
        self.config = Config()
        """As configured, without the changes."""
        self.changes: tuple[Change, ...] = ()
        self.services: tuple[Service, ...] = ()
        """As the workers serve them: backends that are down have weight 0."""
        self.reloads = Reloads()
        self.workers = Workers(events)
        self.names = Names()
        self.health = HealthChecks(events)
        self.topology = TopologyWatcher(events)
        self.options = host.Options()
        self._host = host.Host()
        self._pass_mark = 0
        self._told = Topology()
        self._leaving: tuple[Service, ...] = ()
        self._code: dict[str, bytes] = {}
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._numbers = 0
        self._tasks: list[asyncio.Task[None]] = []

    # Life

    async def start(self) -> None:
        """Balance. HostError and ConfigError if that's impossible; `stop` cleans up."""
        self.config = self.settings.load()
        # What flows need that the kernel carries stays until this instance provides it.
        for line in await asyncio.to_thread(host.remove_stale, keep=host.may_resume):
            log.warning("%s", line)
        config = self.config
        self._code = load_schedulers(config, {})
        self.services, plan = await asyncio.to_thread(
            prepare, config, self.settings.assign, self.names.look_up
        )
        judgement = self.health.judge(config, self.services)
        self.services = judgement.services
        self.options = plan.options
        self._pass_mark = plan.pass_mark or 0
        directory = Journal().directory
        saved = flow_file.find(directory, self.options.queue)
        starts = [
            Start(
                shard=self.options.shard(number),
                queue=QueueOptions(
                    self.options.queue + number,
                    config.driver,
                    QUEUE_LENGTH,
                    self.options.fail_open,
                ),
                max_flows=config.max_flows,
                timeouts=config.timeouts,
                hash_key=config.hash_key.encode(),
                log_flows=log.isEnabledFor(logging.DEBUG),
                save=str(flow_file.path(directory, self.options.queue, number)),
                saved=tuple(map(str, saved)),
            )
            for number in range(self.options.workers)
        ]
        # Queues are bound and services known before rules send packets there.
        await self.topology.follow(self.services)
        try:
            await self.workers.start(starts, self._greeting)
        finally:
            # Even if a worker could not stand it: the next one shall not try it again.
            for path in saved:
                path.unlink(missing_ok=True)
        await asyncio.to_thread(self._host.apply, plan)
        for line in await asyncio.to_thread(host.remove_stale, keep=host.is_peer):
            log.warning("%s", line)
        self._announce()
        self.health.follow(config, judgement)
        self._tasks = [
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._keep_time()),
            asyncio.create_task(self._follow_names()),
            asyncio.create_task(self._follow_health()),
            asyncio.create_task(self._follow_topology()),
        ]

    async def stop(self) -> None:
        """Undo everything, but for what flows need that the kernel carries. Rules go before the
        queues do, so nothing meets a dead end."""
        for task in self._tasks:
            task.cancel()
        await self.health.stop()
        await self.topology.stop()
        async with self._turn:
            if carried := await self._carried():
                await asyncio.to_thread(self._rest, carried)
            else:
                await asyncio.to_thread(self._undo)
            self.workers.stop()

    async def _carried(self) -> list[Service]:
        """The services with open flows that the kernel carries."""
        carried = [
            service
            for service in (*self.services, *self._leaving)
            if service.datapath.kernel_forwards
        ]
        if not carried:
            return []
        open_flows = set()
        async for page, _ in self.workers.copies(Cursor()):
            open_flows |= {flow.service for _, _, flow in read_flows(page) if flow.state in ACTIVE}
        return [service for service in carried if service.name in open_flows]

    def _rest(self, services: Sequence[Service]) -> None:
        facts = host.survey(services)
        try:
            self._host.hand_off(host.build(services, self.options, facts, handoff=True))
        except HostError as error:
            log.error("the flows that the kernel carries can't go on: %s", error)
            self._undo()
            return
        log.warning(
            "the kernel goes on carrying open connections of %s: what they need stays on this host"
            " until the next `featherlb up` with one of their VIPs, or `featherlb down`",
            ", ".join(sorted({service.name for service in services})),
        )

    def _undo(self) -> None:
        for failure in self._host.revert():
            log.error("%s", failure)

    # What operators do

    async def reload(self, *, discard: bool = False) -> list[str]:
        """Read the configuration again and go over to it; what differs, as lines.

        Run-time changes stay in force where they still fit, or go with `discard`. On an error
        nothing changes, and the FeatherlbError says why.
        """
        async with self._turn:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            try:
                config = await asyncio.to_thread(self.settings.load)
                changes = () if discard else still_fit(config, self.changes)
                difference = describe(self.running_config(), running(config, changes))
                dropped = [change for change in self.changes if change not in changes]
                await self._go_over(config, changes, fresh=True)
            except FeatherlbError as error:
                reloads = self.reloads
                self.reloads = replace(
                    reloads, refused=reloads.refused + 1, last=now, error=str(error)
                )
                self.events.tell(
                    "reload-refused",
                    f"reload refused, everything stays as it was: {error}",
                    logging.ERROR,
                )
                raise
            difference += [f"run-time change gone: {change}" for change in dropped]
            self.reloads = Reloads(self.reloads.done + 1, self.reloads.refused, now)
            self.events.tell("reloaded", f"reloaded: {'; '.join(difference) or 'no difference'}")
            self._announce()
            return difference

    async def preview(self) -> list[str]:
        """What a reload would change, as lines; nothing changes. FeatherlbError as `reload`."""
        config = await asyncio.to_thread(self.settings.load)
        changes = still_fit(config, self.changes)
        after = running(config, changes)
        services = await asyncio.to_thread(find_services, after, self.names.recall)
        await asyncio.to_thread(check, services, self.options)
        return describe(self.running_config(), after)

    async def change(self, change: Change) -> Change:
        """Put a change in force; its number is given here. FeatherlbError if it is refused."""
        async with self._turn:
            self._numbers += 1
            change = replace(change, number=self._numbers)
            await self._go_over(self.config, add(self.config, self.changes, change))
            self.events.tell("changed", f"changed: {change}{_ending(change)}", change=change.number)
            return change

    async def revert(self, number: int) -> Change:
        """End a change. ConfigError if there is none of this number."""
        async with self._turn:
            for change in self.changes:
                if change.number == number:
                    await self._end(change, "reverted")
                    return change
        raise ConfigError([f"there is no change {number} in force"])

    async def end_flows(self, wanted: FlowFilter, *, reset: bool = True) -> int:
        """End flows, with a RST to both ends of connections if `reset`; how many there were."""
        count = await self.workers.end_flows(wanted, reset=reset)
        if count:
            self.events.tell("flows-ended", f"{count} flows ended", count=count)
        return count

    def running_config(self) -> Config:
        """The configuration with the changes in force."""
        return running(self.config, self.changes)

    def lasting_config(self) -> Config:
        """The same without the changes that revert, and with the addresses of VIPs."""
        config = running(self.config, [one for one in self.changes if one.until is None])
        return replace(
            config,
            services=tuple(
                replace(service, vips=tuple(map(self._with_address, service.vips)))
                for service in config.services
            ),
        )

    def _with_address(self, vip: VipConfig) -> VipConfig:
        if not isinstance(vip.host, str):
            return vip
        return replace(vip, host=self.names.recall(vip.host)[0])

    def effective_weights(self) -> dict[tuple[str, Endpoint], float]:
        """What the weights of the backends amount to now."""
        return {
            (service.name, backend.endpoint): round(backend.weight * progress(backend), 2)
            for service in self.services
            for backend in service.backends
        }

    def endpoints(self, service: ServiceConfig, backend: str) -> list[Endpoint]:
        """The addresses behind a configured backend of a service."""
        found = []
        for one in service.backends:
            if str(one) == backend:
                hosts = self.names.recall(one.host) if isinstance(one.host, str) else [one.host]
                found += [Endpoint(address, one.port) for address in hosts]
        return found

    async def deviations(self) -> list[str]:
        """What somebody else has changed of what this instance needs on the host."""
        async with self._turn:
            return await asyncio.to_thread(self._host.deviations)

    # How it is done

    async def _go_over(
        self, config: Config, changes: tuple[Change, ...], *, fresh: bool = False
    ) -> None:
        """Serve another configuration, or on a FeatherlbError the one before.

        `fresh` looks up names, reads schedulers' files and puts right what others did to the
        host; without it the host is only touched where it has to be.
        """
        wanted = running(config, changes)
        code = load_schedulers(wanted, self._code) if fresh else self._code
        look_up = self.names.look_up if fresh else self.names.recall
        before = self.services
        standing = () if fresh else before
        services = await asyncio.to_thread(find_services, wanted, look_up, standing)
        judgement = self.health.judge(wanted, services)
        services = judgement.services
        new_code = {name: text for name, text in code.items() if self._code.get(name) != text}
        touch = fresh or shape(before) != shape(services)
        leaving = self._leaving + departing(before, services)
        turning: list[Service] = []
        if touch:
            await asyncio.to_thread(check, services, self.options)
        try:
            if touch:
                early = [*before, *self._leaving, *arriving(before, services)]
                turning = turned(early, services)
                await asyncio.to_thread(self._update_host, [*early, *turning])
            await self._follow_routes([*services, *leaving])
            await self.workers.apply(
                Apply(services, self._pass_mark, new_code, settled=not turning)
            )
            await self._end_flows_of(departing(before, services), wanted)
            for gone in {one.name for one in before} - {one.name for one in services}:
                await self.workers.end_flows(FlowFilter(service=gone), reset=True)
            if touch:
                leaving = await self._still_leaving(leaving, services)
                await asyncio.to_thread(self._update_host, [*services, *leaving])
            if turning:
                await self.workers.apply(Apply(services, self._pass_mark))
        except FeatherlbError:
            await self._follow_routes([*before, *self._leaving])
            await self.workers.apply(Apply(before, self._pass_mark, self._code))
            await asyncio.to_thread(self._update_host, [*before, *self._leaving])
            raise
        self.config, self.changes, self.services = config, changes, services
        self._code, self._leaving = code, leaving
        self.health.follow(wanted, judgement)
        self._changed.set()

    async def _follow_routes(self, services: Sequence[Service]) -> None:
        """Tell the workers where the frames of these services go, if some have frames."""
        await self.topology.follow(services)
        await self._send_topology()

    async def _send_topology(self) -> None:
        """Send the workers a topology that they don't have; HostError if one has died."""
        topology = self.topology.current
        if topology != self._told:
            await self.workers.apply(SetTopology(topology))
            self._told = topology

    def _greeting(self) -> list[Apply | SetTopology]:
        """What a new worker is told."""
        greeting: list[Apply | SetTopology] = [Apply(self.services, self._pass_mark, self._code)]
        if self.topology.active:
            greeting.append(SetTopology(self.topology.current))
        return greeting

    def _update_host(self, services: Sequence[Service]) -> None:
        facts = host.survey(services)
        plan = host.build(services, self.options, facts)
        self._host.update(plan)
        self._pass_mark = plan.pass_mark or 0

    def _restore_host(self, addresses: Collection[Address]) -> None:
        """Give the host, which has these addresses now, what it lacks of the VIPs."""
        services = [*self.services, *self._leaving]
        plan = host.build(services, self.options, host.survey(services))
        if plan != self._host.plan or any(vip not in addresses for vip, _ in plan.addresses):
            self._host.update(plan)

    async def _end_flows_of(self, leaving: Sequence[Service], wanted: Config) -> None:
        """Do what their service says with the flows of backends that leave."""
        policies = {service.name: service.on_backend_down for service in wanted.services}
        for service in leaving:
            policy = policies[service.name]
            for backend in service.backends if policy is not OnBackendDown.KEEP else ():
                await self.workers.end_flows(
                    FlowFilter(service=service.name, backend=backend.endpoint),
                    reset=policy is OnBackendDown.RESET,
                )

    async def _still_leaving(
        self, leaving: Sequence[Service], services: Sequence[Service]
    ) -> tuple[Service, ...]:
        """Of the backends that have left, those that still have flows."""
        holding = {
            (name, backend.endpoint)
            for statistics in await self.workers.statistics()
            for name, backend in statistics.core.leaving
        }
        serving = {service.name: service for service in services}
        kept = []
        for service in leaving:
            backends = tuple(b for b in service.backends if (service.name, b.endpoint) in holding)
            if backends and service.name in serving:
                kept.append(_at_the_place_of(serving[service.name], service, backends))
        return tuple(dict.fromkeys(kept))

    async def _end(self, change: Change, how: str) -> None:
        changes = tuple(other for other in self.changes if other is not change)
        await self._go_over(self.config, still_fit(self.config, changes))
        self.events.tell("reverted", f"{how}: {change}", change=change.number)

    # What happens by itself

    async def _watch(self) -> None:
        """Notice workers that hang (asking kills them), let clients' connections tell who is
        well, and let go of backends that have left."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            services = self.services
            outcomes = await self.workers.outcomes()
            # While others are put in force it isn't certain whose these are.
            if self.services is services and not self._turn.locked():
                self.health.observe(services, outcomes)
            if not self._leaving:
                continue
            async with self._turn:
                left = await self._still_leaving(self._leaving, self.services)
                if left == self._leaving:
                    continue
                try:
                    await asyncio.to_thread(self._update_host, [*self.services, *left])
                except HostError as error:
                    log.error("the host keeps rules of backends that have left: %s", error)
                    continue
                now = {(s.name, b.endpoint) for s in left for b in s.backends}
                for service in self._leaving:
                    for backend in service.backends:
                        if (service.name, backend.endpoint) not in now:
                            self.events.tell(
                                "backend-left",
                                f"{service.name}: {backend} has left, its last flow has ended",
                                service=service.name,
                                backend=str(backend),
                            )
                self._leaving = left

    async def _keep_time(self) -> None:
        """End changes whose time has passed, and the flows of drained backends at the deadline."""
        while True:
            self._changed.clear()
            now = time.monotonic()
            due = [
                moment
                for change in self.changes
                for moment in (change.until, change.deadline)
                if moment is not None
            ]
            if due and min(due) <= now:
                try:
                    await self._act_on_time(now)
                except FeatherlbError as error:
                    log.error("a run-time change can't be reverted now: %s", error)
                    await asyncio.sleep(WATCH_INTERVAL)
                continue
            try:
                timeout = min(due) - now if due else None
                await asyncio.wait_for(self._changed.wait(), timeout)
            except TimeoutError:
                pass

    async def _act_on_time(self, now: float) -> None:
        async with self._turn:
            for change in self.changes:
                if change.deadline is not None and change.deadline <= now:
                    self.changes = tuple(
                        replace(other, deadline=None) if other is change else other
                        for other in self.changes
                    )
                    service = next(
                        s for s in self.running_config().services if s.name == change.service
                    )
                    count = 0
                    for endpoint in self.endpoints(service, change.backend):
                        wanted = FlowFilter(service=service.name, backend=endpoint)
                        count += await self.workers.end_flows(wanted, reset=True)
                    self.events.tell(
                        "drain-deadline",
                        f"{service.name}: {change.backend} is drained, {count} flows were reset",
                        service=service.name,
                        backend=change.backend,
                        count=count,
                    )
            for change in self.changes:
                if change.until is not None and change.until <= now:
                    await self._end(change, "reverted, its time is over")

    async def _follow_names(self) -> None:
        """Look up the names of backends again and again."""
        while True:
            await asyncio.sleep(self.config.resolve_interval)
            hosts = [
                one.host for service in self.running_config().services for one in service.backends
            ]
            if not any(isinstance(one, str) for one in hosts):
                continue
            async with self._turn:
                try:
                    services = await asyncio.to_thread(
                        find_services, self.running_config(), self.names.look_up, self.services
                    )
                    if shape(services) == shape(self.services):
                        continue
                    await self._go_over(self.config, self.changes)
                except FeatherlbError as error:
                    log.error("the names' new addresses can't be used: %s", error)
                    continue
                self.events.tell("names-changed", "names have other addresses now")
                self._announce()

    async def _follow_health(self) -> None:
        """Keep new flows from backends that are down; do with the old ones what is configured."""
        while True:
            await self.health.changed.wait()
            self.health.changed.clear()
            # Many that change together are one change, and a failure is not repeated in haste.
            pause = HEALTH_INTERVAL
            async with self._turn:
                try:
                    await self._go_over(self.config, self.changes)
                    for name, endpoint in self.health.take_fallen():
                        await self._end_flows_of_fallen(name, endpoint)
                except FeatherlbError as error:
                    log.error("the new state of backends can't be put in force: %s", error)
                    self.health.changed.set()
                    pause = WATCH_INTERVAL
            await asyncio.sleep(pause)

    async def _follow_topology(self) -> None:
        """Send each new topology to the workers; put back VIPs that an interface took along."""
        place: object = None
        while True:
            await self.topology.changed.wait()
            self.topology.changed.clear()
            topology = self.topology.current
            # Whoever has died meanwhile is told when another one starts.
            with suppress(HostError):
                await self._send_topology()
            if place not in (None, (topology.links, topology.addresses)):
                async with self._turn:
                    try:
                        await asyncio.to_thread(self._restore_host, topology.addresses)
                    except HostError as error:
                        log.error("the host can't be brought up to date: %s", error)
            place = topology.links, topology.addresses

    async def _end_flows_of_fallen(self, name: str, endpoint: Endpoint) -> None:
        service = next((s for s in self.running_config().services if s.name == name), None)
        if service is None:
            return
        policy = service.on_backend_down
        # A datagram's sender would wait in vain, and nothing is lost with another backend.
        if policy is not OnBackendDown.KEEP or service.protocol is Protocol.UDP:
            await self.workers.end_flows(
                FlowFilter(service=name, backend=endpoint), reset=policy is OnBackendDown.RESET
            )

    def _announce(self) -> None:
        for fault in advise(self.config):
            log.warning("%s: %s", fault.origin, fault.text)
        for service in self.services:
            log.info(
                "%s: %s on %s, %s, %s, %s to %s",
                service.name,
                service.protocol,
                ", ".join(map(str, service.vips)),
                service.scheduler,
                service.nat,
                service.datapath,
                ", ".join(map(str, service.backends)) or "no backend",
            )
            if not service.backends:
                log.warning(
                    "%s has no backend and refuses connections: add one with --backend IP:PORT,"
                    " in the configuration file, or with `featherlb backend add`",
                    service.name,
                )


def find_services(
    config: Config, look_up: LookUp, standing: Sequence[Service] = ()
) -> tuple[Service, ...]:
    """The services as they are served, names resolved and datapaths picked; blocking.

    Those that are `standing` keep the datapath that was picked for them, if it still works.
    """
    automatic = {service.name for service in config.services if service.datapath == AUTO}
    picked = {service.name: service.datapath for service in standing}
    services = host.prepare(resolve(config, look_up))
    return tuple(host.pick(services, automatic, picked, config.queue))


def check(services: Sequence[Service], options: host.Options) -> None:
    """HostError if an instance that runs can't go over to these services; blocking."""
    host.check(services, options, host.survey(services))


def prepare(
    config: Config, assign: bool, look_up: LookUp
) -> tuple[tuple[Service, ...], host.HostPlan]:
    """What a new instance serves and changes, once it is clear that it can; blocking."""
    services = find_services(config, look_up)
    options = host.Options(
        queue=host.free_queue(config.workers, services) if config.queue is None else config.queue,
        workers=config.workers,
        fail_open=config.fail_open,
        assign=assign,
    )
    # The ports of saved flows, and so their packets' queues, were given to workers by this seed.
    for path in flow_file.find(Journal().directory, options.queue):
        if flow_file.is_of_another_version(path):
            log.warning("%s: another version of featherlb saved these flows: not restored", path)
        shard = flow_file.read_shard(path)
        if shard is not None and shard.workers == options.workers:
            options = replace(options, hash_seed=shard.seed)
    facts = host.survey(services)
    host.check(services, options, facts)
    return services, host.build(services, options, facts)


def load_schedulers(config: Config, loaded: Mapping[str, bytes]) -> dict[str, bytes]:
    """The code of all users' schedulers in a configuration, tried here first if it isn't the
    one that was `loaded`; ConfigError if it is wrong."""
    code = plugins.read_files(service.scheduler for service in config.services)
    for name, text in code.items():
        if loaded.get(name) != text:
            plugins.load(name, text)
    return code


def shape(services: Sequence[Service]) -> frozenset[object]:
    """What the host has to know of services: all but the weights."""
    return frozenset(
        (
            service.name,
            service.protocol,
            service.vips,
            service.nat,
            service.datapath,
            backend and backend.endpoint,
        )
        for service in services
        for backend in (*service.backends, None)
    )


def arriving(before: Sequence[Service], after: Sequence[Service]) -> list[Service]:
    """The services that stay, with their new backends only, at the VIPs they have now."""
    old = {service.name: service for service in before}
    return [
        _at_the_place_of(old[service.name], service, backends)
        for service in after
        if service.name in old and (backends := _others(service, old[service.name]))
    ]


def turned(before: Sequence[Service], after: Sequence[Service]) -> list[Service]:
    """The services that go over to the kernel's datapath or come back from it, as they are but with
    their new datapath.

    What that needs has to stand when the workers go over. Without its settings, conntrack would
    count nothing of a flow. Without its rules, a packet that nobody translates any more would get
    to this host, which refuses it.
    """
    new = {service.name: service.datapath for service in after}
    return [
        replace(service, datapath=datapath)
        for service in before
        if (datapath := new.get(service.name, service.datapath)) is not service.datapath
        and (datapath.kernel_forwards or service.datapath.kernel_forwards)
    ]


def departing(before: Sequence[Service], after: Sequence[Service]) -> tuple[Service, ...]:
    """The services that stay, with the backends only that leave."""
    new = {service.name: service for service in after}
    return tuple(
        _at_the_place_of(new[service.name], service, backends)
        for service in before
        if service.name in new and (backends := _others(service, new[service.name]))
    )


def _at_the_place_of(other: Service, service: Service, backends: tuple[Backend, ...]) -> Service:
    """The service with these backends, its packets taken where and how the other's are."""
    return replace(service, vips=other.vips, datapath=other.datapath, backends=backends)


def _others(service: Service, than: Service) -> tuple[Backend, ...]:
    """The backends of a service that another one doesn't have in the same way."""
    if service.nat is not than.nat:
        return service.backends
    known = {(backend.endpoint, backend.sources) for backend in than.backends}
    return tuple(b for b in service.backends if (b.endpoint, b.sources) not in known)


def describe(before: Config, after: Config) -> list[str]:
    """The differences between two configurations, one line each."""
    old = {service.name: service for service in before.services}
    new = {service.name: service for service in after.services}
    lines = [f"service {name} removed" for name in old.keys() - new.keys()]
    for name, service in new.items():
        if name not in old:
            lines.append(f"service {name} added")
            continue
        lines += _differences(old[name], service)
    lines += [
        f"{key} takes effect at the next start only"
        for key in ("queue", "workers", "fail_open", "driver", "hash_key", "max_flows", "timeouts")
        if getattr(before, key) != getattr(after, key)
    ]
    return lines


def _differences(old: ServiceConfig, new: ServiceConfig) -> list[str]:
    lines = []
    for key in (
        "vips",
        "protocol",
        "scheduler",
        "nat",
        "datapath",
        "source_addresses",
        "on_backend_down",
        "slow_start",
        "panic_threshold",
    ):
        was, now = getattr(old, key), getattr(new, key)
        if was != now:
            lines.append(f"{new.name}: {key.replace('_', ' ')} {_text(was)} -> {_text(now)}")
    if old.health != new.health:
        lines.append(f"{new.name}: health check changed")
    if old.passive_health != new.passive_health:
        lines.append(f"{new.name}: passive health check changed")
    had = {str(backend): backend for backend in old.backends}
    has = {str(backend): backend for backend in new.backends}
    lines += [f"{new.name}: backend {name} removed" for name in had.keys() - has.keys()]
    for name, backend in has.items():
        if name not in had:
            lines.append(f"{new.name}: backend {name} added with weight {backend.weight}")
            continue
        for key in ("weight", "role", "max_connections"):
            was, now = getattr(had[name], key), getattr(backend, key)
            if was != now:
                lines.append(f"{new.name}: backend {name} {key.replace('_', ' ')} {was} -> {now}")
    return lines


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _ending(change: Change) -> str:
    if change.until is None:
        return ""
    return f", for {change.until - time.monotonic():.0f} s"
