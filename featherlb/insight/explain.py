"""Explains what happens to a client's packet to a VIP in a running instance, and why.

Asking changes nothing: the worker that has the client's flows tells what its next pick would be
without making it (`core/pools/explain.py`).
"""

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

from featherlb.control.controller import Controller
from featherlb.control.view import BackendView, ServiceView
from featherlb.control.workers import Cursor, FlowFilter
from featherlb.core.path.export import Explanation, FlowView, read_flows
from featherlb.core.path.hooks import TABLE, Action, Row
from featherlb.core.pools.explain import Binding, Candidate
from featherlb.host import HostPlan
from featherlb.insight.rules import Met, Packet, rules_met
from featherlb.model import Address, Endpoint, Health, Hook, NatMode, Protocol, Role, Service, Vip
from featherlb.model.errors import ConfigError
from featherlb.model.reason import Reason
from featherlb.system import rtnetlink
from featherlb.system.ruleset import State
from featherlb.worker.protocol import Explain

ASSUMED_PORT = 50000
"""The client's port, if none is given."""
MAX_FLOWS = 20
"""Flows of the client that are listed, if its port is not given."""
MAX_RECORDS = 1 << 16
"""Flow records that are searched for them."""


@dataclass(frozen=True, slots=True)
class CandidateAnswer:
    """A backend at this moment, as the scheduler of the client's worker sees it.

    `weight` is configured, `effective_weight` what the scheduler gets: 0 if the backend takes no
    new flows. `progress` is below 1 in slow start.
    """

    backend: str
    address: str
    role: Role
    state: str
    failure: str
    weight: int
    effective_weight: int
    active: int
    max_connections: int | None
    progress: float


@dataclass(frozen=True, slots=True)
class HookAnswer:
    """A hook that does something to the flow's packets of one direction."""

    direction: str
    hook: str
    action: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole story.

    `flow` is the open flow that the client's packets belong to; `reopens` says that a packet which
    opens a connection would be scheduled anew all the same. `backend` is where a new flow would go,
    `target` the address and port there, `outcome` what its first packet would be counted under;
    `reasons` say why, in the order of the decisions.
    """

    service: str
    protocol: Protocol
    client: Endpoint
    port_assumed: bool
    vip: Endpoint
    scheduler: str
    nat: NatMode
    datapath: str
    panic: bool
    worker: int
    workers: int
    flow: FlowView | None
    reopens: bool
    flows: tuple[FlowView, ...]
    outcome: Reason
    backend: Endpoint | None
    target: Endpoint | None
    reasons: tuple[str, ...]
    binding: Binding | None
    candidates: tuple[CandidateAnswer, ...]
    hooks: tuple[HookAnswer, ...]
    rules: tuple[Met, ...]


async def explain(controller: Controller, client: str, vip: str) -> Answer:
    """What a packet of `client` (an address, with or without port) to `vip` meets.

    `vip` is a service's name, or a VIP with or without port and protocol (`10.0.0.10:53/udp`).
    ConfigError if either doesn't make sense or no service fits, HostError if the worker can't say.
    """
    address, port = _client(client)
    service, target = find_vip(controller.serving.state.services, vip)
    if address.version != target.address.version:
        raise ConfigError([f"the client {address} and the VIP {target} are of different families"])
    source = Endpoint(address, port or ASSUMED_PORT)
    worker, told = await controller.data.workers.explain(Explain(service.protocol, source, target))
    view = await controller.view()
    shown = next((one for one in view.services if one.config.name == service.name), None)
    if shown is None:
        raise ConfigError([f"the service '{service.name}' was removed just now"])
    own = {one.address.ip for one in await asyncio.to_thread(rtnetlink.addresses)}
    picked = None if told.refused else told.decision.backend
    backend = picked and service.reached(picked, target.port)
    stays = told.flow.backend if told.flow and not told.reopens else backend
    route = Route(service, source, target, stays, worker, own)
    flows: tuple[FlowView, ...] = ()
    if port is None:
        flows = await _flows(controller, service, address)
    return Answer(
        service=service.name,
        protocol=service.protocol,
        client=source,
        port_assumed=port is None,
        vip=target,
        scheduler=service.scheduler,
        nat=service.nat,
        datapath=str(service.datapath),
        panic=shown.panic,
        worker=worker,
        workers=len(view.workers),
        flow=told.flow,
        reopens=told.reopens,
        flows=flows,
        outcome=_outcome(told),
        backend=picked,
        target=backend,
        reasons=tuple(_reasons(told)),
        binding=told.decision.binding,
        candidates=tuple(_candidate(one, shown) for one in told.decision.candidates),
        hooks=tuple(route.hooks()),
        rules=tuple(route.rules(controller.data.plan)),
    )


def find_vip(services: Sequence[Service], text: str) -> tuple[Service, Endpoint]:
    """The service that a text means, and the address and port of its VIP; ConfigError if it is none
    or several."""
    for service in services:
        if text == service.name:
            return service, _any_of(service.vips[0])
    place, _, protocol = text.partition("/")
    fitting = [
        (service, endpoint, vip)
        for service in services
        if protocol in ("", str(service.protocol))
        for vip in service.vips
        if (endpoint := _at(vip, place)) is not None
    ]
    # A service with all ports of a VIP leaves others theirs.
    taken = {(one.protocol, endpoint) for one, endpoint, vip in fitting if not vip.all_ports}
    found = [
        (service, endpoint)
        for service, endpoint, vip in fitting
        if not (vip.all_ports and (service.protocol, endpoint) in taken)
    ]
    # An address of its own precedes the wildcard.
    found = [one for one in found if not _is_wildcard(*one)] or found
    if len(found) == 1:
        return found[0]
    if found:
        choice = ", ".join(f"{endpoint}/{service.protocol}" for service, endpoint in found)
        raise ConfigError([f"'{text}' fits several services: choose one of {choice}"])
    known = ", ".join(f"{vip}/{service.protocol}" for service in services for vip in service.vips)
    raise ConfigError([f"there is no service or VIP '{text}' (VIPs: {known or 'none'})"])


def _client(text: str) -> tuple[Address, int | None]:
    try:
        return ip_address(text.strip("[]")), None
    except ValueError:
        pass
    try:
        endpoint = Endpoint.parse(text)
    except ValueError as error:
        raise ConfigError([f"client: {error} (expected ADDRESS or ADDRESS:PORT)"]) from None
    return endpoint.address, endpoint.port


def _any_of(vip: Vip) -> Endpoint:
    return Endpoint(vip.address, vip.first_port)


def _at(vip: Vip, place: str) -> Endpoint | None:
    """The endpoint of a VIP that a text without protocol means, None if it means another one."""
    try:
        address = ip_address(place.strip("[]"))
    except ValueError:
        try:
            wanted = Endpoint.parse(place)
        except ValueError:
            return None
        fits = vip.first_port <= wanted.port <= vip.last_port and (
            vip.address == wanted.address
            or (vip.wildcard and vip.address.version == wanted.address.version)
        )
        return wanted if fits else None
    return _any_of(vip) if address == vip.address else None


def _is_wildcard(service: Service, endpoint: Endpoint) -> bool:
    return all(vip.address != endpoint.address for vip in service.vips)


def _outcome(told: Explanation) -> Reason:
    if told.refused is not None:
        return told.refused
    if told.decision.backend is not None:
        return Reason.FORWARD
    usable = any(one.weight for one in told.decision.candidates)
    return Reason.POOL_FULL if usable else Reason.NO_BACKEND


def _reasons(told: Explanation) -> list[str]:
    reasons = list(told.conditions)
    if told.refused is not None:
        return reasons
    reasons += told.decision.reasons
    if told.clash:
        reasons.append(
            f"{told.clash.backend} has a connection from this port already, through"
            f" {told.clash.vip}: until that has closed, a new connection gets another port"
        )
    elif told.full and not told.flow:
        reasons.append("the flow table is full: the flow that is idle longest is evicted for it")
    return reasons


def _candidate(one: Candidate, service: ServiceView) -> CandidateAnswer:
    view: BackendView | None = next(
        (each for each in service.backends if each.endpoint == one.backend), None
    )
    state = "drained" if view and view.drained else (view and view.health) or Health.UP
    return CandidateAnswer(
        backend=str(view.config if view else one.backend),
        address=str(one.backend),
        role=one.role,
        state=str(state),
        failure=view.failure if view else "",
        weight=view.config.weight if view else one.weight,
        effective_weight=one.weight,
        active=one.active,
        max_connections=one.max_connections,
        progress=one.progress,
    )


async def _flows(controller: Controller, service: Service, client: Address) -> tuple[FlowView, ...]:
    """The open flows of this client to the service, some at least."""
    wanted = FlowFilter(service=service.name, client=ip_network(client))
    found: list[FlowView] = []
    scanned = 0
    async for page, _ in controller.data.workers.copies(Cursor()):
        found += [flow for _, _, flow in read_flows(page) if wanted.matches(flow)]
        scanned += len(page.records) // 128
        if len(found) >= MAX_FLOWS or scanned >= MAX_RECORDS:
            break
        await asyncio.sleep(0)
    return tuple(found[:MAX_FLOWS])


@dataclass(frozen=True, slots=True)
class Route:
    """The way of a flow's packets through this host, whose addresses are `own`."""

    service: Service
    client: Endpoint
    vip: Endpoint
    backend: Endpoint | None
    worker: int
    own: Collection[Address]

    @property
    def _from_here(self) -> bool:
        return self.client.address in self.own

    @property
    def _to_here(self) -> bool:
        return self.backend is not None and self.backend.address in self.own

    def forward_hooks(self) -> list[Hook]:
        """The netfilter hooks of the client's packets, in order."""
        if self._from_here:
            arriving = [Hook.OUTPUT]
            return arriving if self._to_here else [*arriving, Hook.POSTROUTING]
        leaving = [Hook.INPUT] if self._to_here else [Hook.FORWARD, Hook.POSTROUTING]
        return [Hook.PREROUTING, *leaving]

    def reply_hooks(self) -> list[Hook]:
        """Those of the backend's."""
        if self._to_here:
            return [Hook.OUTPUT, *([Hook.INPUT] if self._from_here else [Hook.POSTROUTING])]
        leaving = [Hook.INPUT] if self._from_here else [Hook.FORWARD, Hook.POSTROUTING]
        return [Hook.PREROUTING, *leaving]

    def hooks(self) -> list[HookAnswer]:
        """The hooks that do something, as docs/packet-path.md has them."""
        datapath = self.service.datapath
        if datapath.takes_frames and not self._from_here:
            rows = [(Row.FRAMED, "forward"), (Row.FRAMED, "reply")]
        elif datapath.kernel_forwards:
            return [
                HookAnswer("forward", self.forward_hooks()[0].name, "open"),
                HookAnswer("forward", "conntrack", "rewrite"),
                HookAnswer("reply", "conntrack", "rewrite"),
            ]
        else:
            full = self.service.nat is NatMode.FULL
            rows = [
                (Row.QUEUED, "forward"),
                (Row.QUEUED if full else Row.QUEUED_DNAT_REPLY, "reply"),
            ]
        passed = {"forward": self.forward_hooks(), "reply": self.reply_hooks()}
        found = [
            HookAnswer(direction, hook.name, action.name.lower())
            for row, direction in rows
            for hook in (Hook.WIRE, *passed[direction])
            # No rule queues a packet at FORWARD.
            if hook is not Hook.FORWARD and (action := Action(TABLE[row][hook])) is not Action.PASS
        ]
        if datapath.carries and not self._from_here and not self._to_here:
            # Once the flow is open. Its other packets go the way above.
            found += [HookAnswer(way, "tc ingress", "rewrite") for way in ("forward", "reply")]
        return found

    def rules(self, plan: HostPlan | None) -> list[Met]:
        """The instance's rules that the opening packet meets: as it comes, and once it has been
        rewritten."""
        if plan is None:
            return []
        packet = Packet(self.service.protocol, self.client, self.vip, True, self.worker, self.own)
        found: list[Met] = []
        for number, hook in enumerate(self.forward_hooks()):
            met, packet = rules_met(plan, hook, packet)
            found += met
            if number == 0 and self.backend is not None:
                packet = replace(packet, destination=self.backend)
                if self.service.datapath.kernel_forwards:
                    packet = replace(packet, states=frozenset({State.NEW, State.DNAT}))
        return found
