"""The API over a real Unix socket, with an instance that has a configuration but no workers."""

import asyncio
import json
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
    sent: str = "",
    load: Callable[[], Config] = load_wrong,
) -> T:
    """The answer to a question that is asked over the socket."""

    async def run() -> T:
        events = Events()
        controller = Controller(Settings(load=load, assign=False), events, Tasks(events))
        config = parse(FILE, "lb.yaml")
        controller.state = State(config, services=resolve(config, lambda name: []))
        runner = web.AppRunner(application(controller, token), shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(path)).start()
        try:
            async with aiohttp.ClientSession(
                "http://featherlb",
                connector=aiohttp.UnixConnector(str(path)),
                headers={"Authorization": f"Bearer {sent}"} if sent else None,
            ) as session:
                return await question(Client(session, path), controller)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


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
        with pytest.raises(ConfigError) as caught:
            await client.ask(method, target, body=body)
        assert said in str(caught.value)
        return controller.state.overrides

    assert serve(path, ask) == ()


def load_broken() -> Config:
    raise KeyError("health")


def test_a_bug_is_a_fault_and_a_refused_reload(path: Path) -> None:
    async def ask(client: Client, controller: Controller) -> schema.Status:
        with controller.events.listen() as listener:
            with pytest.raises(HostError, match=r"internal error: KeyError: 'health' \(.*\.py:\d+"):
                await client.ask("POST", "/v1/reload")
            event = await listener.get()
        assert event.kind == "reload-refused"
        assert "KeyError" in event.message
        async with client._session.post("/v1/reload") as answer:
            assert answer.status == 500
            assert schema.Fault.model_validate_json(await answer.text()).error
        return await client.get("/v1/status", schema.Status)

    status = serve(path, ask, load=load_broken)
    assert (status.reloads, status.reloads_refused) == (0, 2)
    assert status.reload_error.startswith("KeyError: 'health'")


def test_a_body_that_is_no_json(path: Path) -> None:
    async def ask(client: Client, controller: Controller) -> str:
        async with client._session.post("/v1/changes", data=b"{") as answer:
            assert answer.status == 400
            return await answer.text()

    assert json.loads(serve(path, ask)) == {"error": "the request body is not JSON"}


@pytest.mark.parametrize("sent", ["", "wrong", TOKEN + "x"])
def test_without_the_token_nothing_is_told(path: Path, sent: str) -> None:
    async def ask(client: Client, controller: Controller) -> None:
        with pytest.raises(ConfigError, match="Authorization: Bearer TOKEN"):
            await client.ask("GET", "/v1/config")
        assert "featherlb_reloads_total" in await client.ask("GET", "/metrics")
        assert "<title>featherlb</title>" in await client.ask("GET", "/")

    serve(path, ask, token=TOKEN, sent=sent)


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
        listed = await client.get("/v1/changes", schema.Changes)
        assert [one.remaining is None for one in listed.changes] == [True, False]
        return await client.ask("GET", "/v1/config")

    saved = parse(serve(path, ask, token=TOKEN, sent=TOKEN), "saved")
    assert [(str(one), one.weight) for one in saved.services[0].backends] == [
        ("10.0.1.2:80", 1),
        ("b:1", 7),
    ]


def test_events_reach_the_client(path: Path) -> None:
    async def ask(client: Client, controller: Controller) -> list[schema.Event]:
        events = client.events()
        first = asyncio.ensure_future(anext(events))
        while not controller.events._listeners:
            await asyncio.sleep(0.01)
        controller.events.emit("test", "hello", backend="b")
        found = [await first]
        await events.aclose()  # type: ignore[attr-defined]
        return found

    (event,) = serve(path, ask)
    assert (event.kind, event.message, event.details) == ("test", "hello", {"backend": "b"})


def test_nobody_there(path: Path) -> None:
    async def ask() -> None:
        connector = aiohttp.UnixConnector(str(path))
        async with aiohttp.ClientSession("http://featherlb", connector=connector) as session:
            with pytest.raises(HostError, match="is it running, and are you root"):
                await Client(session, path).ask("GET", "/v1/status")

    asyncio.run(ask())


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
