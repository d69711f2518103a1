"""The transition between two states of an instance: an ordered list of steps, and their rollback.

`plan` is pure: it gives the steps in order, each with its rollback. `run` executes them and, if one
fails, rolls back. The order keeps every packet served:

1. The host gets what new backends need before a worker sends to them. If flows move from the
   workers to connection tracking or back, the rules and settings of both datapaths are in place
   together from here to step 5 (docs/decisions/offload.md).
2. The workers get the next hops of new backends.
3. The workers serve the new services. While the rules of both datapaths are in place, they open no
   flows of services that move between the two.
4. Flows of removed services and VIPs end, and those of removed backends if their service says so.
5. The host gets the final rules: packets to a VIP are queued only once the workers know it, and
   removed backends keep what their remaining flows need.
6. Services that have moved open flows again.

A rollback restores the state before its step, even if the step has failed half way.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from featherlb.config import Config, Places
from featherlb.config.types import BackendKey
from featherlb.control.overrides import Override, with_overrides
from featherlb.model import (
    LAST_PORT,
    Address,
    Backend,
    Endpoint,
    OnBackendDown,
    Protocol,
    Service,
    Vip,
)
from featherlb.model.counted import counted
from featherlb.model.user_code import UserCode
from featherlb.system.failure import log_traceback, sentence

log = logging.getLogger("featherlb")


@dataclass(frozen=True)
class State:
    """What an instance serves, or is to serve."""

    config: Config = field(default_factory=Config)
    """As configured, without the overrides."""
    overrides: tuple[Override, ...] = ()
    services: tuple[Service, ...] = ()
    """As the workers serve them: backends that are down have weight 0."""
    departing: tuple[Service, ...] = ()
    """Backends that have left and still have flows: services that hold only these, at the VIPs and
    with the datapath that the service has now."""
    user_code: Mapping[str, UserCode] = field(default_factory=dict)
    """Users' code, by reference."""
    names: Mapping[str, Sequence[Address]] = field(default_factory=dict)
    """The addresses of host names, as far as they can be used."""
    places: Places = field(default_factory=dict)
    """Where the backends with names are, by these addresses."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """The names whose latest addresses can't be used, with the reason."""

    @cached_property
    def running(self) -> Config:
        """The configuration with the overrides."""
        return with_overrides(self.config, self.overrides)

    def endpoints_of(self, service: str, key: BackendKey) -> tuple[Endpoint, ...]:
        """Where a backend of a service is served."""
        address, port, last_port = key
        if not isinstance(address, str):
            return (Endpoint(address, port, last_port),)
        return tuple(
            place.endpoint
            for place in self.places.get(service, ())
            if place.backend.key == key and place.endpoint is not None and not place.problem
        )


@dataclass(frozen=True, slots=True)
class UpdateHost:
    """Give the host what these services and departing backends need, and nothing else.

    With `release`, departing backends count only as long as they have flows.
    """

    services: tuple[Service, ...]
    departing: tuple[Service, ...]
    release: bool = False


@dataclass(frozen=True, slots=True)
class UpdateTopology:
    """Watch the routes to the backends of these services, and send the workers their next hops."""

    services: tuple[Service, ...]


@dataclass(frozen=True, slots=True)
class ApplyServices:
    """Have the workers serve this state, which is in force then. `rules_applied` as in `Apply`."""

    state: State
    rules_applied: bool = True


@dataclass(frozen=True, slots=True)
class EndFlows:
    """End the flows of a service, or of one of its backends, with a RST to both ends if `reset`.
    Those to the VIPs that are `spared` stay."""

    service: str
    backend: Endpoint | None
    reset: bool
    spared: tuple[tuple[Protocol, Vip], ...] = ()

    def outcome(self, count: int) -> str:
        """What became of so many flows, as text."""
        to = f" to {self.backend}" if self.backend else " to removed VIPs" if self.spared else ""
        how = "reset" if self.reset else "dropped"
        return f"{self.service}: {counted(count, 'flow')}{to} {how}"


Action = UpdateHost | UpdateTopology | ApplyServices | EndFlows


@dataclass(frozen=True, slots=True)
class Step:
    """An action, and what takes it back, in order."""

    action: Action
    rollback: tuple[Action, ...] = ()


def plan(before: State, wanted: State, *, repair: bool = False) -> list[Step]:
    """The steps from `before` to `wanted`, whose departing backends are found on the way.

    The host is left alone if its part stays the same, unless it is to be `repair`ed because others
    may have changed it.
    """
    gone = (*before.departing, *departing(before.services, wanted.services))
    with_new = (*before.services, *arriving(before.services, wanted.services))
    touch = repair or host_part(before.services) != host_part(wanted.services)
    moving = moved((*with_new, *before.departing), wanted.services) if touch else ()

    first = UpdateHost((*with_new, *moving), before.departing)
    old_host = UpdateHost(before.services, before.departing)
    old_topology = UpdateTopology((*before.services, *before.departing))
    old_services = ApplyServices(before)
    applied = ApplyServices(wanted, rules_applied=not moving)

    steps = []
    if touch:
        steps.append(Step(first, (old_host, old_services) if moving else (old_host,)))
        steps.append(Step(UpdateTopology((*wanted.services, *gone)), (old_topology,)))
    steps.append(Step(applied, (replace(old_services, rules_applied=not moving),)))
    steps += [Step(action) for action in _endings(before, wanted)]
    if touch:
        steps.append(Step(UpdateHost(wanted.services, gone, release=True), (first,)))
    if moving:
        steps.append(Step(replace(applied, rules_applied=True)))
    return steps


async def run(steps: Sequence[Step], execute: Callable[[Action], Awaitable[None]]) -> None:
    """Execute the steps in order. If one fails, it and those before it are rolled back, the last
    one first, and its exception is raised."""
    begun: list[Step] = []
    try:
        for step in steps:
            begun.append(step)
            await execute(step.action)
    except Exception:
        for action in (action for step in reversed(begun) for action in step.rollback):
            try:
                await execute(action)
            except Exception as error:
                # The other rollbacks help even without this one.
                log.error("rollback is incomplete: %s", sentence(error))
                log_traceback(error)
        raise


def host_part(services: Sequence[Service]) -> frozenset[object]:
    """What the host has to know of services: all but weights and what only workers deal with."""
    return frozenset(
        (
            service.name,
            service.protocol,
            service.vips,
            service.nat,
            service.datapath,
            service.admission,
            backend and (backend.endpoint, backend.reply_addresses, backend.local),
        )
        for service in services
        for backend in (*service.backends, None)
    )


def arriving(before: Sequence[Service], after: Sequence[Service]) -> tuple[Service, ...]:
    """The services that stay, with their new backends only, at the VIPs they have now."""
    old = {service.name: service for service in before}
    return tuple(
        at_the_place_of(old[service.name], service, backends)
        for service in after
        if service.name in old and (backends := _others(service, old[service.name]))
    )


def departing(before: Sequence[Service], after: Sequence[Service]) -> tuple[Service, ...]:
    """The services that stay, with only the backends that leave."""
    new = {service.name: service for service in after}
    return tuple(
        at_the_place_of(new[service.name], service, backends)
        for service in before
        if service.name in new and (backends := _others(service, new[service.name]))
    )


def moved(before: Sequence[Service], after: Sequence[Service]) -> tuple[Service, ...]:
    """The services whose flows move to connection tracking or back, as they are but with their new
    datapath.

    Their rules and settings have to be in place before the workers change over. Without the
    settings, conntrack would not count a flow. Without the rules, a packet that is no longer
    translated would reach this host, which refuses it.
    """
    new = {service.name: service.datapath for service in after}
    return tuple(
        replace(service, datapath=datapath)
        for service in before
        if (datapath := new.get(service.name, service.datapath)) is not service.datapath
        and (datapath.kernel_forwards or service.datapath.kernel_forwards)
    )


def at_the_place_of(other: Service, service: Service, backends: tuple[Backend, ...]) -> Service:
    """The service with these backends, at the VIPs and with the datapath of the other one."""
    return replace(service, vips=other.vips, datapath=other.datapath, backends=backends)


def _others(service: Service, than: Service) -> tuple[Backend, ...]:
    """The backends of a service that another one doesn't have in the same way."""
    if service.nat is not than.nat:
        return service.backends
    known = {(backend.endpoint, backend.sources) for backend in than.backends}
    return tuple(b for b in service.backends if (b.endpoint, b.sources) not in known)


def _endings(before: State, wanted: State) -> Iterator[EndFlows]:
    """What `on_backend_down` says for flows of backends that leave; a RST for those whose VIP
    leaves, and for those of services that are gone."""
    policies = {service.name: service.on_backend_down for service in wanted.config.services}
    for service in departing(before.services, wanted.services):
        policy = policies[service.name]
        # The next datagram of a flow goes elsewhere, but the kernel asks nobody where.
        asked = service.protocol is Protocol.TCP or not service.datapath.kernel_forwards
        for backend in service.backends if policy is not OnBackendDown.KEEP or not asked else ():
            yield EndFlows(service.name, backend.endpoint, policy is OnBackendDown.RESET)
    served = dict.fromkeys(
        (service.protocol, vip) for service in wanted.services for vip in service.vips
    )
    staying = {service.name: service for service in wanted.services}
    for service in before.services:
        if service.name not in staying:
            yield EndFlows(service.name, None, reset=True)
        elif any((service.protocol, vip) not in served for vip in service.vips):
            spared = tuple(served)
            # The kernel translates what gets to this host, whatever the port.
            if staying[service.name].datapath.kernel_forwards:
                spared = tuple(
                    (protocol, replace(vip, first_port=1, last_port=LAST_PORT))
                    for protocol, vip in served
                )
            yield EndFlows(service.name, None, reset=True, spared=spared)
