"""Whether backends are reachable, answer, and answer through this host; and whether VIPs answer.

Connections are closed as soon as they are open. UDP backends get the payload of their health
check, or an empty datagram.
"""

import asyncio
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import product

from featherlb.control.probes import NoVerdictError, probe
from featherlb.doctor.finding import Finding, error, note, warning
from featherlb.doctor.subject import Subject
from featherlb.host.advice import OUTSIDERS
from featherlb.model import (
    LOOPBACK,
    Address,
    Backend,
    CheckType,
    Endpoint,
    HealthCheck,
    NatMode,
    Protocol,
    Route,
    Service,
)
from featherlb.net.build import probe_reset, syn_probe
from featherlb.system import rtnetlink
from featherlb.system.capture import Capture
from featherlb.system.raw_socket import RawSender

PATIENCE = 2.0
"""Seconds to wait for an answer: enough for one retransmission."""
CONCURRENCY = 64
"""Probes in flight at once."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The results of probing a backend; None means success."""

    service: Service
    backend: Backend
    failure: str | None
    """Why a connection or a datagram failed."""
    check_failure: str | None
    """Why the service's health check failed."""
    checked: bool
    """The service has health checks, so featherlb notices a failure."""
    drained: bool
    """It gets no new flows."""

    @property
    def healthy(self) -> bool:
        return self.failure is None and self.check_failure is None


def check_routes(subject: Subject) -> Iterator[Finding]:
    """Whether this host has a route to each backend."""
    for service in subject.services:
        for backend in service.backends:
            address = backend.endpoint.address
            if rtnetlink.route(address) is None:
                yield error(
                    f"this host has no route to backend {backend} of service '{service.name}'; add"
                    " one",
                    f"ip route add {address}/{address.max_prefixlen} via GATEWAY",
                )


def check_backends(subject: Subject) -> Iterator[Finding]:
    """Probes every backend, as health checks do."""
    yield from judge_backends(asyncio.run(_ask_all(subject)), subject.running is not None)


async def _ask_all(subject: Subject) -> list[Answer]:
    turn = asyncio.Semaphore(CONCURRENCY)
    drained = _drained(subject)

    async def ask(service: Service, backend: Backend) -> Answer:
        check = subject.check_of(service)
        async with turn:
            failure = check_failure = None
            # Of several ports, any may have no server at the moment.
            if not backend.endpoint.last_port:
                failure = await _ask(_plain(service.protocol, check), backend.endpoint)
            if check is not None:
                check_failure = await _ask(check, check.endpoint(service.probed(backend)))
        return Answer(
            service=service,
            backend=backend,
            failure=failure,
            check_failure=check_failure,
            checked=check is not None,
            drained=(service.name, str(backend)) in drained or backend.weight == 0,
        )

    return await asyncio.gather(
        *(ask(service, one) for service in subject.services for one in service.backends)
    )


def _drained(subject: Subject) -> set[tuple[str, str]]:
    answers = subject.running.services.services if subject.running else []
    return {
        (service.name, backend.address)
        for service in answers
        for backend in service.backends
        if backend.state in ("drained", "leaving")
    }


def _plain(protocol: Protocol, check: HealthCheck | None) -> HealthCheck:
    """The simplest probe that a server of this protocol answers."""
    if protocol is Protocol.TCP:
        return HealthCheck(CheckType.TCP, timeout=PATIENCE)
    if check is not None and check.type is CheckType.UDP:
        return replace(check, address=None, port=None, timeout=PATIENCE)
    return HealthCheck(CheckType.UDP, timeout=PATIENCE)


def judge_backends(answers: Iterable[Answer], running: bool) -> Iterator[Finding]:
    answers = list(answers)
    for one in answers:
        if one.healthy:
            continue
        name = f"backend {one.backend} of service '{one.service.name}'"
        pool = [other for other in answers if other.service is one.service and not other.drained]
        if one.failure is not None:
            text = f"{name} is unreachable: {one.failure}; start its server or check the route"
        else:
            text = f"{name} fails its health check: {one.check_failure}"
        if one.drained:
            yield note(f"{text} (it gets no new connections)")
        elif not any(other.healthy for other in pool):
            yield error(f"{text} (no backend of this service is healthy)")
        elif one.checked:
            yield warning(f"{text} (its health check keeps connections away)")
        else:
            yield error(
                f"{text}; it still gets new connections, because the service has no `health` check",
                f"featherlb backend drain {one.service.name} {one.backend}" if running else "",
            )


def check_return(subject: Subject) -> Iterator[Finding]:
    """Whether backends' replies to clients pass through this host in `dnat` mode.

    Sends a SYN with a client's source address and checks whether the answer arrives here, on any
    interface. The client is the one that the operator names, or a documentation address, which
    backends answer by their default route.
    """
    asked = {
        service.probed(backend): (service, route)
        for service in subject.services
        if service.protocol is Protocol.TCP and service.nat is NatMode.DNAT
        for backend in service.backends
        if not backend.local
        and (route := rtnetlink.route(backend.endpoint.address)) is not None
        and route.source is not None
    }
    first = random.randrange(33000, 60000)
    clients = {}
    # A backend that doesn't answer this host either proves nothing.
    for number, endpoint in enumerate(asyncio.run(_reachable(asked))):
        client = subject.client
        if client is None or client.version != endpoint.address.version:
            client = OUTSIDERS[endpoint.address.version]
        clients[endpoint] = Endpoint(client, first + number % 5000)
    silent = clients.keys() - _answered(clients)
    yield from judge_return(
        {
            endpoint: (service, clients[endpoint].address, route)
            for endpoint, (service, route) in asked.items()
            if endpoint in silent
        },
        named=subject.client is not None,
    )


async def _reachable(endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """The endpoints that accept a connection from this host."""
    turn = asyncio.Semaphore(CONCURRENCY)

    async def ask(endpoint: Endpoint) -> str | None:
        async with turn:
            return await _ask(_plain(Protocol.TCP, None), endpoint)

    asked = list(endpoints)
    failures = await asyncio.gather(*map(ask, asked))
    return [one for one, failure in zip(asked, failures, strict=True) if failure is None]


async def _ask(check: HealthCheck, endpoint: Endpoint) -> str | None:
    """As `probe`, and what is wrong with this host counts as well."""
    try:
        return await probe(check, endpoint)
    except NoVerdictError as problem:
        return f"this host can't check it ({problem})"


def _answered(clients: Mapping[Endpoint, Endpoint]) -> set[Endpoint]:
    """The backends whose answers to SYNs from these clients arrive at this host."""
    links = [
        link.name for link in rtnetlink.links().values() if link.running and link.name != LOOPBACK
    ]
    families = {backend.address.version for backend in clients}
    sequence = random.getrandbits(32)
    found: set[Endpoint] = set()
    with closing(RawSender()) as sender, Capture(list(product(links, families))) as capture:
        # Twice, because a packet may get lost.
        for _ in range(2):
            wanted = {(one, client) for one, client in clients.items() if one not in found}
            for backend, client in wanted:
                sender.send(syn_probe(client, backend, sequence))
            found |= {backend for backend, _ in capture.wait_for(wanted, PATIENCE / 2)}
        for backend, client in clients.items():
            sender.send(probe_reset(client, backend, sequence))
    return found


def judge_return(
    silent: Mapping[Endpoint, tuple[Service, Address, Route]], named: bool
) -> Iterator[Finding]:
    """`silent` backends answer this host but not the client through it: service, client, route.

    If the operator has not `named` the client, backends may still answer some clients this way.
    """
    hint = "" if named else "; if only some clients come this way, name one with --client"
    for endpoint, (service, client, route) in silent.items():
        yield (error if named else warning)(
            f"backend {endpoint} of service '{service.name}' answers this host, but its replies to"
            f" a client ({client}) don't pass through here; make this host the backend's gateway"
            f" or set `nat: full`{hint}",
            f"ip route replace default via {route.source}",
            str(endpoint.address),
        )


def check_traffic(subject: Subject) -> Iterator[Finding]:
    """Connects to each VIP of the running instance, as a client on this host."""
    own: dict[int, Address] = {
        one.address.version: one.address.ip
        for one in rtnetlink.addresses()
        if one.interface != LOOPBACK and not one.address.ip.is_link_local
    }
    targets = [
        (service, Endpoint(own.get(vip.address.version, vip.address), vip.first_port))
        if vip.wildcard
        else (service, Endpoint(vip.address, vip.first_port))
        for service in subject.services
        for vip in service.vips
        # Behind a range of ports, any may have no server at the moment.
        if not any(backend.endpoint.last_port for backend in service.backends)
    ]
    allowed = [target for target in targets if _may_connect(*target)]
    yield from judge_traffic(asyncio.run(_try_all(subject, allowed)))
    for service, vip in targets:
        if (service, vip) not in allowed:
            yield note(
                f"service '{service.name}' doesn't let this host in ('allow', 'deny'), so only"
                f" remote clients can test VIP {vip}"
            )


def _may_connect(service: Service, vip: Endpoint) -> bool:
    """Whether the service lets this host in, by the address that it connects from."""
    route = rtnetlink.route(vip.address)
    own = route.source if route is not None and route.source is not None else vip.address
    return service.admission.admits(own)


async def _try_all(
    subject: Subject, targets: Iterable[tuple[Service, Endpoint]]
) -> list[tuple[Service, Endpoint, str | None]]:
    turn = asyncio.Semaphore(CONCURRENCY)

    async def ask(service: Service, vip: Endpoint) -> tuple[Service, Endpoint, str | None]:
        async with turn:
            check = _plain(service.protocol, subject.check_of(service))
            return service, vip, await _ask(check, vip)

    return await asyncio.gather(*(ask(*target) for target in targets))


def judge_traffic(results: Sequence[tuple[Service, Endpoint, str | None]]) -> Iterator[Finding]:
    for service, vip, failure in results:
        if failure is None:
            continue
        if not service.backends:
            yield error(
                f"service '{service.name}' has no backend, so VIP {vip} refuses connections; add"
                " one",
                f"featherlb backend add {service.name} IP:PORT",
            )
        elif failure == "network is unreachable":
            yield note(f"this host has no route to VIP {vip}, so only remote clients can test it")
        else:
            yield error(
                f"VIP {vip} of service '{service.name}' doesn't answer a client on this host:"
                f" {failure}"
            )
    if any(failure is None for _, _, failure in results):
        yield note(
            "VIPs were tested from this host: remote clients pass other hooks and routes, which"
            " only they can test"
        )
