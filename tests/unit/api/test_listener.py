"""Clients that take up room, come too often, or stand in line where nothing is left."""

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from featherlb.api import listener
from featherlb.api.listener import Connection, HttpServer, Listener, Refusal, Refusals

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def serve(
    limit: int | None,
    talk: Callable[[Callable[[], Awaitable[Client]], Refusals], Awaitable[None]],
    listening: socket.socket | None = None,
) -> None:
    """Talk to a server that answers 204, and tells its rest like the API's."""
    listening = listening or socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()

    async def run() -> None:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            connection = request.protocol
            assert isinstance(connection, Connection)
            server.work(connection)
            server.rest(connection)
            return web.Response(status=204)

        refusals = Refusals()
        server = HttpServer(handle, Connection, refusals)
        door = Listener(server, listening, limit)
        clients: list[Client] = []

        async def connect() -> Client:
            clients.append(await asyncio.open_connection(*address))
            return clients[-1]

        async with asyncio.timeout(60):
            await talk(connect, refusals)
        for _, writer in clients:
            writer.close()
        await door.stop()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)

    asyncio.run(run())


async def ask(client: Client) -> bytes:
    client[1].write(REQUEST)
    return await client[0].readuntil(b"\r\n\r\n")


def test_a_new_client_takes_the_place_of_the_one_that_rested_longest() -> None:
    async def talk(connect: Callable[[], Awaitable[Client]], refusals: Refusals) -> None:
        resting = [await connect() for _ in range(3)]
        for client in resting:
            assert b"204" in await ask(client)
        assert b"204" in await ask(resting[0])
        newcomer = await connect()
        assert b"204" in await ask(newcomer)
        assert await resting[1][0].read() == b""
        for client in (resting[0], resting[2], newcomer):
            assert b"204" in await ask(client)
        assert refusals.counts == {Refusal.CONNECTIONS: 1}

    serve(3, talk)


def test_many_times_the_limit_leaves_the_limit_open() -> None:
    async def talk(connect: Callable[[], Awaitable[Client]], refusals: Refusals) -> None:
        clients = [await connect() for _ in range(50)]
        assert b"204" in await ask(clients[-1])
        closed = 0
        for reader, _ in clients[:40]:
            # The others have been closed before.
            closed += await reader.read() == b""
        assert closed == 40

    serve(10, talk)


@pytest.mark.parametrize("sent", [b"", REQUEST[:-2]])
def test_who_does_not_ask_in_time_is_closed(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(listener, "IDLE_TIMEOUT", 0.1)

    async def talk(connect: Callable[[], Awaitable[Client]], refusals: Refusals) -> None:
        reader, writer = await connect()
        writer.write(sent)
        assert await reader.read() == b""

    serve(None, talk)


def test_without_descriptors_it_waits_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener, "ACCEPT_PAUSE", 0.05)

    class Short(socket.socket):
        """Has no descriptor left, four times."""

        tries = 0

        def accept(self) -> tuple[socket.socket, object]:
            Short.tries += 1
            if Short.tries <= 4:
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    async def talk(connect: Callable[[], Awaitable[Client]], refusals: Refusals) -> None:
        client = await connect()
        assert b"204" in await ask(client)
        assert refusals.counts == {Refusal.DESCRIPTORS: 4}

    short = Short()
    short.bind(("127.0.0.1", 0))
    short.listen()
    with caplog.at_level(logging.INFO, "featherlb"):
        serve(None, talk, short)
    assert [one.getMessage() for one in caplog.records if one.name == "featherlb"] == [
        "API: a connection can't be accepted for now (too many open files)"
    ]


def test_each_kind_of_refusal_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    refusals = Refusals(lambda: now)
    for _ in range(5):
        refusals.note(Refusal.TOKEN, "from 192.0.2.1")
    refusals.note(Refusal.NOT_HTTP)
    now = 60.0
    refusals.note(Refusal.TOKEN)
    assert caplog.messages == [
        "API: a request without the right token (from 192.0.2.1)",
        "API: a request that is not HTTP",
        "API: a request without the right token; 4 more since the last such line",
    ]
    assert refusals.counts[Refusal.TOKEN] == 6
