"""The API over a real Unix socket, with an instance that has a configuration but no workers."""

import asyncio
import json
import logging
import socket
from asyncio import to_thread as in_thread
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from featherlb.api import handlers, schema
from featherlb.api.client import Client
from featherlb.api.server import Access, http_server
from featherlb.config import Config
from featherlb.config.file import parse
from featherlb.config.resolve import resolve
from featherlb.control.controller import Controller
from featherlb.control.events import MAX_WAITING, Events
from featherlb.control.log_level import LogLevel
from featherlb.control.overrides import Action, Override, add
from featherlb.control.reload import Settings
from featherlb.control.tasks import Tasks
from featherlb.control.transition import State
from featherlb.model.errors import ConfigError, HostError

T = TypeVar("T")
FILE = """
services:
- {name: web, vip: 10.0.0.10:80, backends: ['10.0.1.2:80']}
- {name: kernel, vip: 10.0.0.10:81, datapath: offload, backends: ['10.0.1.2:80']}
"""
FAULT = {"service": "web", "kind": "drop"}
TOKEN = "a-token-of-the-test"


def load_wrong() -> Config:
    return parse("services: 1", "lb.yaml")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


def serve(
    path: Path,
    question: Callable[[Client, Controller], Awaitable[T]],
    *,
    token: str | None = None,
    load: Callable[[], Config] = load_wrong,
) -> T:
    """The answer to a question that is asked over the socket. The client's calls block, and are for
    a thread: `await in_thread(client.get, …)`."""

    async def run() -> T:
        events = Events()
        controller = Controller(Settings(load=load), events, Tasks(events))
        config = parse(FILE, "lb.yaml")
        controller.serving.state = State(config, services=resolve(config, lambda name: []))
        access = None if token is None else Access(token, ("lb.example.org",))
        runner = web.ServerRunner(http_server(controller, access), shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(path)).start()
        try:
            return await question(Client(path, timeout=30), controller)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


async def request(
    path: Path,
    method: str,
    target: str,
    *,
    data: bytes | None = None,
    token: str = "",
    host: str = "localhost",
) -> tuple[int, str]:
    """Status and text of the response to any request."""
    headers = {"Host": host} | ({"Authorization": f"Bearer {token}"} if token else {})
    connector = aiohttp.UnixConnector(str(path))
    async with (
        aiohttp.ClientSession("http://featherlb", connector=connector, headers=headers) as session,
        session.request(method, target, data=data) as response,
    ):
        return response.status, await response.text()


def test_whether_traffic_may_be_sent_here(path: Path) -> None:
    async def ask(client: Client, controller: Controller) -> None:
        status, text = await request(path, "GET", "/ready")
        assert (status, json.loads(text)) == (200, {"ready": True, "obstacles": []})
        down = [
            replace(one, backends=tuple(replace(each, weight=0) for each in one.backends))
            for one in controller.serving.state.services
        ]
        controller.serving.state = replace(controller.serving.state, services=tuple(down))
        status, text = await request(path, "GET", "/ready")
        assert (status, json.loads(text)["obstacles"]) == (503, ["no service has a usable backend"])
        with pytest.raises(ConfigError, match="this instance is no node of a cluster"):
            await in_thread(client.get, "/v1/cluster", schema.Cluster)

    serve(path, ask)


@pytest.mark.parametrize(
    ("method", "target", "body", "said"),
    [
        ("GET", "/v1/nothing", None, "/v1/nothing: Not Found"),
        ("PUT", "/v1/status", None, "/v1/status: Method Not Allowed"),
        ("POST", "/v1/changes", {}, "action: Field required"),
        ("POST", "/v1/changes", [], "the request: "),
        (
            "POST",
            "/v1/changes",
            {"action": "drain", "service": "web", "backend": "10.0.1.2:80", "four": "10m"},
            "four: Extra inputs are not permitted",
        ),
        (
            "POST",
            "/v1/changes",
            {"action": "drain", "service": "web", "backend": "10.0.1.2:80", "for": "soon"},
            "for: 'soon' is not a duration",
        ),
        (
            "POST",
            "/v1/changes",
            {"action": "weight", "service": "web", "backend": "10.0.1.2:80"},
            "weight: missing (expected",
        ),
        (
            "POST",
            "/v1/changes",
            {"action": "remove", "service": "web", "backend": "10.0.1.2:80", "deadline": 5},
            "deadline: not allowed with remove",
        ),
        (
            "POST",
            "/v1/changes",
            {"action": "drain", "service": "web", "backend": "10.0.1.2:x"},
            "backend: port 'x' is not a number from 1 to 65535",
        ),
        ("DELETE", "/v1/changes/7", None, "no change 7 is in force"),
        ("DELETE", "/v1/changes/x", None, "'x' is not the number of a change"),
        ("POST", "/v1/faults", {"service": "mail", "kind": "drop"}, "there is no service 'mail'"),
        ("POST", "/v1/faults", {"service": "web", "kind": "noise"}, "'noise' is unknown"),
        ("POST", "/v1/faults", {"service": "web", "kind": "delay"}, "delay: missing"),
        ("POST", "/v1/faults", FAULT | {"delay": "80ms"}, "delay: not allowed with drop"),
        ("POST", "/v1/faults", FAULT | {"share": "0%"}, "share: '0.0' is no share"),
        ("POST", "/v1/faults", FAULT | {"for": "2h"}, "for: 7200 s (expected at most 3600 s)"),
        ("POST", "/v1/faults", FAULT | {"backend": "10.0.1.9:80"}, "'web' has no backend"),
        ("POST", "/v1/faults", FAULT | {"service": "kernel"}, "forwards its packets past"),
        ("DELETE", "/v1/faults/7", None, "no fault 7 is in force"),
        ("GET", "/v1/flows?cursor=x", None, "cursor: "),
        ("GET", "/v1/flows?client=x", None, "client: 'x' is not an address or network"),
        ("DELETE", "/v1/flows", None, "select the flows to end with a filter"),
        ("POST", "/v1/reload", None, "lb.yaml:1: services: 1 is a number"),
    ],
)
def test_refusals_say_what_is_wrong(
    path: Path, method: str, target: str, body: object, said: str
) -> None:
    async def ask(client: Client, controller: Controller) -> tuple[Override, ...]:
        text = None if body is None else json.dumps(body)
        with pytest.raises(ConfigError) as caught:
            await in_thread(client.ask, method, target, body=text)
        assert said in str(caught.value)
        return controller.serving.state.overrides

    assert serve(path, ask) == ()


def load_broken() -> Config:
    raise KeyError("health")


def test_a_bug_is_a_fault_and_a_refused_reload(path: Path) -> None:
    async def ask(client: Client, controller: Controller) -> schema.Status:
        with controller.events.listen() as listener:
            with pytest.raises(HostError, match=r"internal error: KeyError: 'health' \(.*\.py:\d+"):
                await in_thread(client.ask, "POST", "/v1/reload")
            event = await listener.get()
        assert event.kind == "reload-refused"
        assert "KeyError" in event.message
        status, text = await request(path, "POST", "/v1/reload")
        assert status == 500
        assert schema.Fault.model_validate_json(text).error
        return await in_thread(client.get, "/v1/status", schema.Status)

    status = serve(path, ask, load=load_broken)
    assert (status.reloads, status.reloads_refused) == (0, 2)
    assert status.reload_error.startswith("KeyError: 'health'")


def test_a_body_that_is_no_json(path: Path) -> None:
    async def ask(client: Client, controller: Controller) -> str:
        status, text = await request(path, "POST", "/v1/changes", data=b"{")
        assert status == 400
        return text

    assert json.loads(serve(path, ask))["error"].startswith("the request body is not JSON: ")


DRAIN: dict[str, object] = {"action": "drain", "service": "web", "backend": "10.0.1.2:80"}
ODD_TEXT = st.text() | st.sampled_from(
    ["", "x" * 9999, "1" * 5000, "\n", "\ud800", "\udcff", "\x00", "web\x1b[31m", "٣", "1e999"]
)
ODD: st.SearchStrategy[object] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 10**18]),
    st.floats(),
    ODD_TEXT,
    st.lists(st.none(), max_size=2),
    st.dictionaries(st.text(max_size=5), st.none(), max_size=2),
)
BODIES = st.one_of(
    st.binary(),
    st.sampled_from(
        [b"{", b'{"a":' * 9999, b"[" * 9999 + b"]" * 9999, b"1" * 5000, b'{"x": ' + b"9" * 5000]
    ),
    st.dictionaries(st.sampled_from([*DRAIN, "for", "deadline", "weight", "x"]), ODD).map(
        lambda odd: json.dumps(DRAIN | odd).encode("utf-8", "surrogatepass")
    ),
)
TARGETS = st.sampled_from(["/v1/changes", "/v1/reload", "/v1/log-level", "/v1/flows", "/v1/stats"])


def raw_request(method: str, target: bytes, body: bytes, headers: bytes = b"") -> bytes:
    """A request as it is on the wire, whatever its parts are."""
    length = str(len(body)).encode()
    return (
        method.encode()
        + b" "
        + target
        + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        + headers
        + b"Content-Length: "
        + length
        + b"\r\n\r\n"
        + body
    )


async def exchange(path: Path, sent: bytes) -> tuple[int, bytes]:
    """Status and body of the response to these bytes."""
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(sent)
        answer = await reader.read()
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def faults_of(path: Path, *requests: bytes, token: str | None = None) -> list[tuple[int, str]]:
    """Status and fault of each response; what is no documented fault object fails the test."""

    async def ask(client: Client, controller: Controller) -> list[tuple[int, str]]:
        found = []
        for one in requests:
            status, body = await exchange(path, one)
            error = schema.Fault.model_validate_json(body).error if status >= 400 else ""
            assert status < 400 or error
            found.append((status, error))
        return found

    return serve(path, ask, token=token)


@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from(["GET", "POST", "DELETE", "PUT"]),
            TARGETS,
            st.dictionaries(
                st.sampled_from(["service", "client", "backend", "state", "older", "cursor"]),
                ODD_TEXT,
                max_size=2,
            ),
            BODIES,
        ),
        min_size=1,
        max_size=10,
    )
)
@settings(max_examples=30)
def test_whatever_is_sent_the_answer_is_a_fault_object(
    requests: list[tuple[str, str, dict[str, str], bytes]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.sock"
    path.unlink(missing_ok=True)
    sent = []
    for method, target, query, body in requests:
        text = f"{target}?{urlencode(query, errors='surrogatepass')}"
        sent.append(raw_request(method, text.encode(), body))
    assert [error for status, error in faults_of(path, *sent) if status == 500] == []


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        (b"nonsense\r\n\r\n", 400, "not a request of HTTP"),
        (b"GET /v1/status HTTP/1.1\r\nHost: x\r\na b: c\r\n\r\n", 400, "not a request of HTTP"),
        (raw_request("GET", b"/" + b"x" * 9000, b""), 400, "not a request of HTTP"),
        (raw_request("POST", b"/v1/changes", b"1" * (2 << 20)), 413, "Too Large"),
        (raw_request("POST", b"/v1/changes", b"1" * 5000), 400, "not JSON: number out of range"),
        (
            raw_request("POST", b"/v1/log-level", b'{"level": "info", "for": %d}' % 10**400),
            400,
            "too long",
        ),
        (raw_request("POST", b"/v1/changes", b"[" * 500), 400, "not JSON: recursion limit"),
        (raw_request("POST", b"/v1/changes", b'"\\ud800"'), 400, "not JSON: "),
        (raw_request("DELETE", b"/v1/changes/" + b"9" * 5000, b""), 400, "is not the number"),
        (raw_request("DELETE", b"/v1/changes/%ff", b""), 400, "is not the number"),
        (raw_request("GET", b"/v1/%ff%f0", b""), 404, "Not Found"),
        (raw_request("GET", b"/v1/flows?service=%ff", b""), 400, "there is no service"),
        (raw_request("GET", b"/v1/flows?older=" + b"9" * 5000, b""), 400, "too long"),
        (raw_request("GET", b"/v1/flows?state=establishd", b""), 400, "mean 'established'?"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_faults_of_requests_are_told_in_a_fault_object(
    path: Path, sent: bytes, status: int, said: str
) -> None:
    ((found, error),) = faults_of(path, sent)
    assert (found, said in error) == (status, True), error
    assert len(error) < 500
    assert "\n" not in error


def test_a_token_of_other_bytes_is_a_wrong_token(path: Path) -> None:
    for given_token in (b"\xff\xfe", "tökén".encode(), b"x" * 5000):
        headers = b"Authorization: Bearer " + given_token + b"\r\n"
        ((status, error),) = faults_of(
            path, raw_request("GET", b"/v1/changes", b"", headers), token=TOKEN
        )
        assert (status, "Authorization: Bearer TOKEN" in error) == (401, True)


def test_a_client_that_leaves_in_the_middle_is_no_error(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(client: Client, controller: Controller) -> None:
        _, writer = await asyncio.open_unix_connection(str(path))
        writer.write(raw_request("POST", b"/v1/changes", b"{}")[:-1])
        await writer.drain()
        # Another request has been handled since.
        await in_thread(client.get, "/v1/changes", schema.Changes)
        writer.close()
        await writer.wait_closed()
        await in_thread(client.get, "/v1/changes", schema.Changes)

    with caplog.at_level(logging.INFO):
        serve(path, ask)
    assert [record.getMessage() for record in caplog.records if record.name != "asyncio"] == []


def test_a_client_that_waits_to_send_its_body_is_told_to(path: Path) -> None:
    async def ask(client: Client, controller: Controller) -> bytes:
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(
                b"POST /v1/changes HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                b"Content-Length: 2\r\nConnection: close\r\n\r\n"
            )
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"{}")
            answer = await reader.read()
            writer.close()
            return answer

    assert b"action: Field required" in serve(path, ask)


def test_the_log_level_returns(path: Path) -> None:
    async def ask(client: Client, controller: Controller) -> list[str]:
        found = []
        for level, duration in (
            ("debug", 60.0),
            ("warning", 50.0),
            ("info", None),
            ("debug", 0.01),
        ):
            request = schema.LogLevelRequest(level=LogLevel(level), duration=duration)
            answer = await in_thread(client.post, "/v1/log-level", request, schema.LogLevelChange)
            assert answer.remaining == duration
            status = await in_thread(client.get, "/v1/status", schema.Status)
            assert (status.log_level, status.log_level_remaining is None) == (
                level,
                duration is None,
            )
            found.append(logging.getLevelName(log.level))
        due = controller.log_switch.until
        assert due is not None
        await controller.log_switch.expire(due)
        assert controller.log_switch.until is None
        return [*found, logging.getLevelName(log.level)]

    log = logging.getLogger("featherlb")
    before = log.level
    log.setLevel(logging.INFO)
    try:
        assert serve(path, ask) == ["DEBUG", "WARNING", "INFO", "DEBUG", "INFO"]
    finally:
        log.setLevel(before)


@pytest.mark.parametrize("sent", ["", "wrong", TOKEN + "x"])
def test_without_the_token_nothing_is_told(path: Path, sent: str) -> None:
    async def ask(client: Client, controller: Controller) -> None:
        status, text = await request(path, "GET", "/v1/config", token=sent)
        assert status == 401
        assert "Authorization: Bearer TOKEN" in schema.Fault.model_validate_json(text).error
        status, text = await request(path, "GET", "/metrics", token=sent)
        assert (status, "featherlb_reloads_total" in text) == (200, True)
        status, text = await request(path, "GET", "/", token=sent)
        assert (status, "<title>featherlb</title>" in text) == (200, True)

    serve(path, ask, token=TOKEN)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:9180", 200),
        (socket.gethostname(), 200),
        ("127.0.0.1:9180", 200),
        ("[::1]", 200),
        ("[2001:db8::1]:9180", 200),
        ("LB.example.org.:9180", 200),
        ("rebound.example.net:9180", 421),
        ("127.0.0.1.example.net", 421),
        ("localhost.example.net", 421),
    ],
)
def test_metrics_are_not_for_pages_of_other_hosts(path: Path, host: str, status: int) -> None:
    async def ask(client: Client, controller: Controller) -> None:
        for target in ("/metrics", "/", "/page.js"):
            assert (await request(path, "GET", target, host=host))[0] == status
        assert (await request(path, "GET", "/metrics", host=host, token=TOKEN))[0] == 200

    serve(path, ask, token=TOKEN)


def test_a_body_that_does_not_arrive_is_not_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "BODY_TIMEOUT", 0.1)
    sent = raw_request("POST", b"/v1/changes", b"{}")[:-1]
    ((status, error),) = faults_of(path, sent)
    assert (status, error) == (408, "/v1/changes: the request was not complete within 0.1 s")


def test_the_running_configuration_without_what_reverts(path: Path) -> None:
    async def ask(client: Client, controller: Controller) -> str:
        state = controller.serving.state
        for override in (
            Override(1, Action.ADD, "web", ("b", 1, 0), 7),
            Override(2, Action.DRAIN, "web", ("b", 1, 0), until=1e9),
        ):
            overrides = add(state.config, state.overrides, override)
            state = replace(state, overrides=overrides)
        controller.serving.state = state
        _, text = await request(path, "GET", "/v1/changes", token=TOKEN)
        listed = schema.Changes.model_validate_json(text)
        assert [one.remaining is None for one in listed.changes] == [True, False]
        status, text = await request(path, "GET", "/v1/config", token=TOKEN)
        assert status == 200
        return text

    saved = parse(serve(path, ask, token=TOKEN), "saved")
    assert [(str(one), one.weight) for one in saved.services[0].backends] == [
        ("10.0.1.2:80", 1),
        ("b:1", 7),
    ]


def test_events_reach_the_client(path: Path) -> None:
    async def ask(client: Client, controller: Controller) -> list[schema.Event]:
        events = client.events()
        first = asyncio.ensure_future(in_thread(next, events))
        while not controller.events._listeners:
            await asyncio.sleep(0.01)
        controller.events.emit("test", "hello", backend="b")
        found = [await first]
        events.close()
        return found

    (event,) = serve(path, ask)
    assert (event.kind, event.message, event.details) == ("test", "hello", {"backend": "b"})


def test_nobody_there(path: Path) -> None:
    with pytest.raises(HostError, match="is it running"):
        Client(path, timeout=30).ask("GET", "/v1/status")


def test_no_response_in_time(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(HostError, match=r"did not answer on .* within 0.1 s: see its log"):
            Client(path, timeout=0.1).ask("GET", "/v1/status")


def test_a_slow_listener_loses_the_oldest_and_knows() -> None:
    async def run() -> None:
        events = Events()
        with events.listen() as listener:
            for number in range(MAX_WAITING + 3):
                events.emit("test", str(number))
            event = await listener.get()
            assert (event.message, event.missed) == ("3", 3)
            assert (await listener.get()).missed == 0
        events.emit("test", "nobody listens")

    asyncio.run(run())


def test_a_change_is_completed_even_if_the_api_ends_meanwhile(path: Path) -> None:
    async def run() -> None:
        controller = Controller(Settings(load=load_wrong), Events(), Tasks(Events()))
        config = parse(FILE, "lb.yaml")
        controller.serving.state = State(config, services=resolve(config, lambda name: []))
        runner = web.ServerRunner(http_server(controller, None), shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(path)).start()
        body = {"action": "drain", "service": "web", "backend": "10.0.1.2:80"}
        # Another change comes first.
        async with controller.serving._applying:
            data = json.dumps(body).encode()
            asking = asyncio.create_task(request(path, "POST", "/v1/changes", data=data))
            while not controller.serving._applying._waiters:
                await asyncio.sleep(0.01)
            await runner.cleanup()
            with pytest.raises(Exception, match="isconnected"):
                await asking
            before = controller.serving.state.overrides
        await controller.serving.overrides_changed.wait()
        after = controller.serving.state.overrides
        assert [len(before), *(one.action for one in after)] == [0, Action.DRAIN]

    asyncio.run(asyncio.wait_for(run(), 60))
