"""What the runtime API answers: the routes, and a handler for each, which translates between HTTP
and the controller.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import asdict
from importlib import resources
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel

from featherlb.api import schema
from featherlb.api.listener import BODY_TIMEOUT, Refusals
from featherlb.api.show import (
    NO_PACKET,
    show_change,
    show_cluster,
    show_explanation,
    show_fault,
    show_flow,
    show_packet,
    show_record,
    show_services,
    show_stats,
    show_status,
)
from featherlb.config import values
from featherlb.config.canary import DEFAULT_CONDITION, condition
from featherlb.config.types import MaxFlowsConfig, MaxNewConfig
from featherlb.control.cluster import Cluster
from featherlb.control.controller import Controller
from featherlb.control.faults import MAX_DELAY, MAX_DURATION, FaultView
from featherlb.control.overrides import (
    NO_BACKEND,
    Action,
    Canary,
    Limiting,
    Override,
    find_service,
)
from featherlb.control.workers import Cursor, FlowFilter
from featherlb.core.flows.tcp_state import TIMEOUT_CLASS, State, TimeoutClass
from featherlb.core.path.export import read_flows
from featherlb.core.path.recording import Wanted
from featherlb.model import Address, Endpoint, Label, Protocol, Refusal, Role
from featherlb.model.errors import ConfigError
from featherlb.model.fault import Fault, FaultKind

_Result = TypeVar("_Result")

RECORDS_PER_ANSWER = 1 << 16
"""Records scanned per request, so that a rare match doesn't keep the client waiting."""
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "script-src 'self'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
    )
)
"""Of the page: no external scripts, no framing by other pages."""
_STATES = values.one_of(dict(zip(schema.FLOW_STATES, State, strict=True)))
MOST_SHOWN = 10
"""Clients that are named."""
SAMPLE = 1 << 14
"""Records sampled for the list of busiest clients."""
_ROUTES = {
    ("GET", "/v1/status"): "status",
    ("GET", "/v1/services"): "services",
    ("GET", "/v1/stats"): "stats",
    ("GET", "/v1/flows"): "flows",
    ("DELETE", "/v1/flows"): "end_flows",
    ("GET", "/v1/clients"): "clients",
    ("GET", "/v1/explain"): "explain",
    ("GET", "/v1/changes"): "changes",
    ("POST", "/v1/changes"): "change",
    ("DELETE", "/v1/changes/{number}"): "revert",
    ("POST", "/v1/limits"): "limit",
    ("GET", "/v1/faults"): "faults",
    ("POST", "/v1/faults"): "inject",
    ("DELETE", "/v1/faults/{number}"): "end_fault",
    ("POST", "/v1/reload"): "reload",
    ("POST", "/v1/log-level"): "log_level",
    ("POST", "/v1/plan"): "plan",
    ("GET", "/v1/config"): "config",
    ("GET", "/v1/host"): "host",
    ("GET", "/v1/events"): "events",
    ("GET", "/v1/capture"): "capture",
    ("GET", "/v1/recorder"): "recorder",
    ("POST", "/v1/recorder"): "save_recording",
    ("GET", "/v1/cluster"): "cluster",
    ("POST", "/v1/cluster"): "leave_or_join",
    ("GET", "/ready"): "ready",
    ("GET", "/metrics"): "metrics",
    ("GET", "/"): "page",
    ("GET", "/page.js"): "script",
}
"""Method and path to the handler's name."""


def routes() -> list[tuple[str, str]]:
    """The served methods and paths."""
    return list(_ROUTES)


async def dispatch(handlers: "Handlers", request: web.BaseRequest) -> web.StreamResponse:
    """The response of the route's handler; FeatherlbError or HTTPException if there is none."""
    path, arguments = request.path, []
    parent, _, last = path.rpartition("/")
    if (request.method, f"{parent}/{{number}}") in _ROUTES:
        path, arguments = f"{parent}/{{number}}", [last]
    name = _ROUTES.get((request.method, path))
    if name is None:
        known = any(path == other for _, other in _ROUTES)
        raise web.HTTPMethodNotAllowed(request.method, ()) if known else web.HTTPNotFound
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    handler: Callable[..., Awaitable[web.StreamResponse]] = getattr(handlers, name)
    return await handler(request, *arguments)


def respond(model: BaseModel, status: int = 200) -> web.Response:
    return web.json_response(text=model.model_dump_json(by_alias=True), status=status)


def respond_fault(text: str, status: int) -> web.Response:
    # What a client has sent may be no Unicode.
    text = text.encode("utf-8", "backslashreplace").decode()
    return respond(schema.Fault(error=text), status)


_LIMIT_KEYS = {
    Action.ALLOW: ("networks",),
    Action.DENY: ("networks",),
    Action.MAX_FLOWS: ("limit", "prefix", "refusal", "off"),
    Action.MAX_NEW: ("rate", "burst", "prefix", "refusal", "off"),
}
"""The keys that fit an action, the one that it requires first."""


def _canary(wanted: schema.ChangeRequest) -> Canary | None:
    """The trial that a new backend is to pass; ConfigError if that makes no sense."""
    if wanted.canary is None:
        if wanted.abort_if is not None:
            raise ConfigError(["abort_if: not allowed without canary"])
        return None
    if wanted.action is not Action.ADD:
        raise ConfigError([f"canary: not allowed with {wanted.action}"])
    if wanted.duration is None:
        raise ConfigError(["for: missing (expected how long the canary is on trial, such as 10m)"])
    if wanted.weight == 0:
        raise ConfigError(["weight: a canary's must not be 0, as it has this weight in the end"])
    try:
        abort_if = condition(wanted.abort_if or DEFAULT_CONDITION)
    except ValueError as error:
        raise ConfigError([f"abort_if: {error}"]) from None
    return Canary(wanted.canary, time.monotonic() + wanted.duration, abort_if)


def _limiting(wanted: schema.LimitRequest) -> Limiting:
    """What a request changes for clients; ConfigError if its keys don't fit each other."""
    needed, *others = _LIMIT_KEYS[wanted.action]
    if wanted.off:
        needed, others = "off", ["prefix"]
    given = wanted.model_dump(exclude_none=True, exclude={"action", "service", "duration"})
    for key in given.keys() - {needed, *others}:
        raise ConfigError([f"{key}: not allowed with {'off' if wanted.off else wanted.action}"])
    if not given.get(needed):
        raise ConfigError([f"{needed}: missing ({wanted.action} requires it)"])
    refusal = wanted.refusal or Refusal.DROP
    try:
        if wanted.networks:
            return Limiting(networks=tuple(map(values.network, wanted.networks)))
        limit: MaxFlowsConfig | MaxNewConfig | None = None
        if wanted.limit is not None:
            limit = MaxFlowsConfig(wanted.limit, wanted.prefix, refusal)
        elif wanted.rate is not None:
            limit = MaxNewConfig(values.rate(wanted.rate), wanted.burst, wanted.prefix, refusal)
        return Limiting(limit=limit, prefix=wanted.prefix)
    except ValueError as error:
        raise ConfigError([f"{needed}: {error}"]) from None


def _number(text: str, what: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ConfigError([f"{values.quote(text)} is not the number of a {what}"])
    return int(text)


async def _body(request: web.BaseRequest) -> object:
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            text = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(
            reason=f"the request was not complete within {BODY_TIMEOUT:g} s"
        ) from None
    except ConnectionError:
        raise web.HTTPBadRequest(reason="the client left before its request was complete") from None
    if not text:
        return {}
    try:
        return schema.parse(text)
    except ValueError as error:
        raise ConfigError([f"the request body is not JSON: {error}"]) from None


class Handlers:
    """One method per route."""

    def __init__(self, controller: Controller, refusals: Refusals, *, local: bool) -> None:
        """`local`: clients are root of this host."""
        self._local = local
        self._controller = controller
        self._refusals = refusals
        self._changes: set[asyncio.Task[Any]] = set()

    async def _complete(self, change: Coroutine[Any, Any, _Result]) -> _Result:
        """The result of a change. Neither a client that disconnects nor the end of the API cancels
        it half way."""
        task = asyncio.create_task(change)
        # The loop keeps only weak references to tasks.
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def status(self, request: web.BaseRequest) -> web.Response:
        return respond(show_status(await self._controller.view(backends=False)))

    async def services(self, request: web.BaseRequest) -> web.Response:
        return respond(show_services(await self._controller.view()))

    async def stats(self, request: web.BaseRequest) -> web.Response:
        return respond(show_stats(await self._controller.view(backends=False)))

    async def flows(self, request: web.BaseRequest) -> web.Response:
        query = schema.read(schema.FlowsQuery, dict(request.query))
        wanted = self._filter(query)
        worker, _, record = query.cursor.partition(":")
        found: list[schema.Flow] = []
        scanned = 0
        place: str | None = None
        start = Cursor(int(worker), max(1, int(record)))
        async for page, following in self._controller.data.workers.copies(start):
            place = f"{following.worker}:{following.record}" if following else None
            found += [show_flow(flow) for _, _, flow in read_flows(page) if wanted.matches(flow)]
            scanned += len(page.records) // 128
            if len(found) >= query.limit or scanned >= RECORDS_PER_ANSWER:
                break
            await asyncio.sleep(0)
        return respond(schema.Flows(flows=found, next=place))

    async def end_flows(self, request: web.BaseRequest) -> web.Response:
        parameters = dict(request.query)
        everything = parameters.pop("all", "") == "true"
        query = schema.read(schema.FlowQuery, parameters)
        if query.is_empty and not everything:
            raise ConfigError(["select the flows to end with a filter, or add all=true"])
        return respond(schema.Ended(count=await self._controller.end_flows(self._filter(query))))

    async def clients(self, request: web.BaseRequest) -> web.Response:
        workers = self._controller.data.workers
        counts: Counter[Address] = Counter()
        half_open: Counter[Address] = Counter()
        scanned = 0
        whole = False
        async for page, _ in workers.copies(Cursor()):
            for _, _, flow in read_flows(page):
                counts[flow.client.address] += 1
                if TIMEOUT_CLASS[flow.state] is TimeoutClass.HALF_OPEN:
                    half_open[flow.client.address] += 1
            scanned += len(page.records) // 128
            if scanned >= SAMPLE:
                break
            await asyncio.sleep(0)
        else:
            whole = True
        flows = counts.total()
        if not whole:
            view = await self._controller.view(backends=False)
            flows = sum(one.core.flows for one in view.statistics.values())
        shares = [
            schema.ClientShare(client=str(client), flows=number, half_open=half_open[client])
            for client, number in counts.most_common(MOST_SHOWN)
        ]
        refused = [
            schema.RefusedClient(client=one.client, service=one.service, packets=one.packets)
            for one in await workers.offenders(MOST_SHOWN)
        ]
        return respond(
            schema.Clients(clients=shares, refused=refused, sampled=counts.total(), flows=flows)
        )

    async def explain(self, request: web.BaseRequest) -> web.Response:
        # Imported on demand: most instances are never asked.
        from featherlb.insight.explain import explain

        query = schema.read(schema.ExplainQuery, dict(request.query))
        return respond(show_explanation(await explain(self._controller, query.client, query.vip)))

    async def changes(self, request: web.BaseRequest) -> web.Response:
        overrides = self._controller.serving.state.overrides
        trials = self._controller.canaries.view.trials
        shown = [show_change(one, trials.get(one.number)) for one in overrides]
        return respond(schema.Changes(changes=shown))

    async def change(self, request: web.BaseRequest) -> web.Response:
        wanted = schema.read(schema.ChangeRequest, await _body(request))
        if wanted.action is Action.WEIGHT and wanted.weight is None:
            raise ConfigError(["weight: missing (expected an integer from 0 to 65535)"])
        if wanted.weight is not None and wanted.action not in (Action.WEIGHT, Action.ADD):
            raise ConfigError([f"weight: not allowed with {wanted.action}"])
        for key in ("role", "max_connections", "labels"):
            if getattr(wanted, key) is not None and wanted.action is not Action.ADD:
                raise ConfigError([f"{key}: not allowed with {wanted.action}"])
        if wanted.deadline is not None and wanted.action is not Action.DRAIN:
            raise ConfigError([f"deadline: not allowed with {wanted.action}"])
        service = find_service(self._controller.serving.state.running, wanted.service).name
        canary = _canary(wanted)
        if canary is not None:
            await self._controller.canaries.begin(service, canary)
        try:
            backend = values.backend(wanted.backend)
        except ValueError as error:
            raise ConfigError([f"backend: {error}"]) from None
        now = time.monotonic()
        override = Override(
            number=0,
            action=wanted.action,
            service=service,
            key=backend,
            weight=wanted.weight,
            role=wanted.role or Role.PRIMARY,
            max_connections=wanted.max_connections,
            labels=tuple(Label(*pair) for pair in (wanted.labels or {}).items()),
            until=None if wanted.duration is None or canary else now + wanted.duration,
            deadline=None if wanted.deadline is None else now + wanted.deadline,
            canary=canary,
        )
        return await self._make(override)

    async def limit(self, request: web.BaseRequest) -> web.Response:
        wanted = schema.read(schema.LimitRequest, await _body(request))
        now = time.monotonic()
        return await self._make(
            Override(
                number=0,
                action=Action(wanted.action),
                service=find_service(self._controller.serving.state.running, wanted.service).name,
                key=NO_BACKEND,
                until=None if wanted.duration is None else now + wanted.duration,
                limiting=_limiting(wanted),
            )
        )

    async def _make(self, override: Override) -> web.Response:
        made = await self._complete(self._controller.changes.make(override))
        change = show_change(made.override).model_dump()
        return respond(schema.Made(**change, replaces=list(made.replaced)))

    async def revert(self, request: web.BaseRequest, number: str) -> web.Response:
        found = _number(number, "change")
        return respond(show_change(await self._complete(self._controller.changes.revert(found))))

    async def faults(self, request: web.BaseRequest) -> web.Response:
        view = await self._controller.view(backends=False)
        return respond(schema.InjectedFaults(faults=[show_fault(one) for one in view.faults]))

    async def inject(self, request: web.BaseRequest) -> web.Response:
        wanted = schema.read(schema.FaultRequest, await _body(request))
        if (wanted.delay is None) is (wanted.kind is FaultKind.DELAY):
            what = "missing" if wanted.delay is None else f"not allowed with {wanted.kind}"
            raise ConfigError([f"delay: {what} (expected a time such as 80ms with kind delay)"])
        if wanted.loss is not None and wanted.kind is not FaultKind.DROP:
            raise ConfigError([f"loss: not allowed with {wanted.kind}"])
        if not 0 < (wanted.delay or 1) <= MAX_DELAY:
            raise ConfigError([f"delay: {wanted.delay:g} s (expected at most {MAX_DELAY} s)"])
        if not 0 < wanted.duration <= MAX_DURATION:
            raise ConfigError([f"for: {wanted.duration:g} s (expected at most {MAX_DURATION} s)"])
        try:
            backend = None if wanted.backend is None else values.backend(wanted.backend)
        except ValueError as error:
            raise ConfigError([f"backend: {error}"]) from None
        fault = Fault(
            number=0,
            service=find_service(self._controller.serving.state.running, wanted.service).name,
            kind=wanted.kind,
            until=time.monotonic() + wanted.duration,
            share=wanted.share,
            delay=wanted.delay or 0,
            loss=100 if wanted.loss is None else wanted.loss,
        )
        adding = self._controller.faults.add(fault, backend, wanted.seed)
        return respond(show_fault(FaultView(await self._complete(adding), 0, 0)))

    async def end_fault(self, request: web.BaseRequest, number: str) -> web.Response:
        found = _number(number, "fault")
        return respond(show_fault(await self._complete(self._controller.faults.remove(found))))

    async def reload(self, request: web.BaseRequest) -> web.Response:
        wanted = schema.read(schema.ReloadRequest, await _body(request))
        if wanted.dry_run:
            return respond(schema.Reloaded(differences=await self._controller.reloader.preview()))
        differences = await self._complete(self._controller.reloader.reload(discard=wanted.discard))
        return respond(schema.Reloaded(differences=differences))

    async def log_level(self, request: web.BaseRequest) -> web.Response:
        wanted = schema.read(schema.LogLevelRequest, await _body(request))
        until = None if wanted.duration is None else time.monotonic() + wanted.duration
        await self._complete(self._controller.log_switch.set(wanted.level, until))
        return respond(schema.LogLevelChange(level=wanted.level, remaining=wanted.duration))

    async def plan(self, request: web.BaseRequest) -> web.Response:
        from featherlb.insight.plan import plan

        wanted = schema.read(schema.PlanRequest, await _body(request))
        found = await plan(self._controller, wanted.config, Path(wanted.path))
        return respond(schema.Planned.model_validate(asdict(found)))

    async def config(self, request: web.BaseRequest) -> web.Response:
        # Imported on demand, like metrics: most instances never need them.
        from featherlb.config.writer import write

        text = write(self._controller.lasting_config())
        return web.Response(text=text, content_type="application/yaml")

    async def host(self, request: web.BaseRequest) -> web.Response:
        deviations = await self._controller.deviations()
        assign = self._controller.data.options.assign
        return respond(schema.Host(assign=assign, deviations=deviations))

    async def events(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = "application/x-ndjson"
        # A client that disconnects is no error.
        with self._controller.events.listen() as listener, suppress(ConnectionError):
            await response.prepare(request)
            while True:
                event = await listener.get()
                line = schema.Event(
                    kind=event.kind,
                    message=event.message,
                    time=event.time,
                    missed=event.missed,
                    details=event.details,
                )
                await response.write(line.model_dump_json().encode() + b"\n")
        return response

    async def capture(self, request: web.BaseRequest) -> web.StreamResponse:
        if not self._local:
            raise web.HTTPForbidden(reason="packets are captured over the Unix socket only")
        query = schema.read(schema.CaptureQuery, dict(request.query))
        flows = self._filter(query)
        protocol = Protocol[query.protocol.upper()] if query.protocol else None
        wanted = Wanted(flows.service, flows.client, flows.backend, protocol, query.length)
        response = web.StreamResponse()
        response.content_type = "application/x-ndjson"
        async with aclosing(self._controller.captures.run(wanted)) as capture:
            # A client that disconnects is no error.
            with suppress(ConnectionError):
                async for packets, missed in capture:
                    if not response.prepared:
                        await response.prepare(request)
                    # Also without packets: that shows whether the client is still there.
                    lines = [show_packet(one) for one in packets] or [NO_PACKET]
                    lines[0] = lines[0].model_copy(update={"missed": missed})
                    text = "".join(line.model_dump_json() + "\n" for line in lines)
                    await response.write(text.encode())
        return response

    async def recorder(self, request: web.BaseRequest) -> web.Response:
        query = schema.read(schema.RecorderQuery, dict(request.query))
        wanted = self._filter(
            schema.FlowQuery.model_construct(client=query.client, backend=query.backend)
        )
        recordings = self._controller.recordings
        # Decoding all of them takes a while.
        most = query.limit if query.client is query.backend is None else None
        found = [
            (worker, one)
            for worker, one in await recordings.read(most)
            if (wanted.client is None or (one.client and one.client.address in wanted.client))
            and (wanted.backend is None or (one.backend and wanted.backend.covers(one.backend)))
        ]
        return respond(
            schema.Recording(
                records=[show_record(*one) for one in found[-query.limit :]],
                saved=list(map(str, recordings.saved)),
            )
        )

    async def save_recording(self, request: web.BaseRequest) -> web.Response:
        path = await self._controller.recordings.save("asked for")
        return respond(schema.SavedRecording(path=str(path)))

    async def ready(self, request: web.BaseRequest) -> web.Response:
        obstacles = self._controller.obstacles()
        answer = schema.Readiness(ready=not obstacles, obstacles=obstacles)
        return respond(answer, 503 if obstacles else 200)

    async def cluster(self, request: web.BaseRequest) -> web.Response:
        self._require_cluster()
        return respond(show_cluster(await self._controller.view(backends=False)))

    async def leave_or_join(self, request: web.BaseRequest) -> web.Response:
        wanted = schema.read(schema.ClusterRequest, await _body(request))
        self._require_cluster().leave(wanted.leaving)
        return respond(show_cluster(await self._controller.view(backends=False)))

    def _require_cluster(self) -> Cluster:
        found = self._controller.cluster
        if found is None:
            raise ConfigError(["this instance is no node of a cluster"])
        return found

    async def metrics(self, request: web.BaseRequest) -> web.Response:
        from featherlb.api.metrics import render

        body, content_type = render(await self._controller.view(), self._refusals.counts)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def page(self, request: web.BaseRequest) -> web.Response:
        return web.Response(
            text=_resource("page.html"),
            content_type="text/html",
            headers={"Content-Security-Policy": _POLICY},
        )

    async def script(self, request: web.BaseRequest) -> web.Response:
        return web.Response(text=_resource("page.js"), content_type="text/javascript")

    def _filter(self, query: schema.FlowQuery | schema.CaptureQuery) -> FlowFilter:
        """The query as a filter; ConfigError for values that can't match anything."""
        service = query.service
        try:
            client = ip_network(query.client, strict=False) if query.client else None
        except ValueError:
            raise ConfigError(
                [
                    f"client: {values.quote(query.client or '')} is not an address or network such"
                    " as 10.0.0.0/8"
                ]
            ) from None
        try:
            backend = Endpoint.of_backend(query.backend) if query.backend else None
        except ValueError as error:
            raise ConfigError([f"backend: {error}"]) from None
        state, older = None, None
        if isinstance(query, schema.FlowQuery):
            older = query.older
            if query.state:
                try:
                    state = _STATES(query.state)
                except ValueError as error:
                    raise ConfigError([f"state: {error}"]) from None
        if service is not None:
            service = find_service(self._controller.serving.state.running, service).name
        return FlowFilter(service, client, backend, state, older)


def _resource(name: str) -> str:
    return resources.files("featherlb.api").joinpath(name).read_text(encoding="utf-8")
