"""The API over a real Unix socket, with an instance that has a configuration but no workers."""

import asyncio
import json
import socket
from asyncio import to_thread as in_thread
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import aiohttp
import pytest
from aiohttp import web

from featherlb.api import schema
from featherlb.api.client import Client
from featherlb.api.server import application
from featherlb.config import Config
from featherlb.config.file import parse
from featherlb.config.resolve import resolve
from featherlb.control.controller import Controller, Settings
from featherlb.control.events import MAX_WAITING, Events
from featherlb.control.overrides import Action, Override, add
from featherlb.control.tasks import Tasks
from featherlb.control.transition import State
from featherlb.model.errors import ConfigError, HostError

T = TypeVar("T")
FILE = "services:\n- {name: web, vip: 10.0.0.10:80, backends: ['10.0.1.2:80']}\n"
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
        controller = Controller(Settings(load=load, assign=False), events, Tasks(events))
        config = parse(FILE, "lb.yaml")
        controller.state = State(config, services=resolve(config, lambda name: []))
        runner = web.AppRunner(application(controller, token), shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(path)).start()
        try:
            return await question(Client(path, timeout=30), controller)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


async def request(
    path: Path, method: str, target: str, *, data: bytes | None = None, token: str = ""
) -> tuple[int, str]:
    """Status and text of the response to any request."""
    headers = {"Authorization": f"Bearer {token}"} if token else None
    connector = aiohttp.UnixConnector(str(path))
    async with (
        aiohttp.ClientSession("http://featherlb", connector=connector, headers=headers) as session,
        session.request(method, target, data=data) as response,
    ):
        return response.status, await response.text()


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
            "weight: is missing",
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
            {"action": "drain", "service": "web", "backend": "10.0.1.2"},
            "backend: '10.0.1.2' is not HOST:PORT",
        ),
        ("DELETE", "/v1/changes/7", None, "no change 7 is in force"),
        ("DELETE", "/v1/changes/x", None, "'x' is not the number of a change"),
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
        return controller.state.overrides

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

    assert json.loads(serve(path, ask)) == {"error": "the request body is not JSON"}


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


def test_the_running_configuration_without_what_reverts(path: Path) -> None:
    async def ask(client: Client, controller: Controller) -> str:
        state = controller.state
        for override in (
            Override(1, Action.ADD, "web", "b", 1, 7),
            Override(2, Action.DRAIN, "web", "b", 1, until=1e9),
        ):
            overrides = add(state.config, state.overrides, override)
            state = replace(state, overrides=overrides)
        controller.state = state
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
    with pytest.raises(HostError, match="is it running, and are you root"):
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
