"""Accepts the API's connections, and holds out against clients that mean no good.

asyncio's servers have no limit of connections. Where no descriptors are left, each of them logs a
hundred tries to accept in a row, and plans as many more (`_accept_connection` in Python's
asyncio/selector_events.py).
"""

import asyncio
import logging
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from enum import StrEnum

from aiohttp import web

log = logging.getLogger("featherlb")

IDLE_TIMEOUT = 20.0
"""Seconds that a TCP client may take for the line and headers of a request, and rest between two.
"""
BODY_TIMEOUT = 20.0
"""Seconds that a client may take for a request's body."""
LINGER = 2.0
"""Seconds for which the rest of a body is read once the request has been answered: a connection
that is closed while the client sends can lose the answer."""
MAX_CONNECTIONS = 128
"""TCP connections of clients at a time. Some scrapers and browsers need far fewer."""
ACCEPT_PAUSE = 1.0
"""Seconds until accepting is tried again, if this process or the host has run out of something."""
GRACE = 1.0
"""Seconds that requests in work have to end when the API does."""
LOG_INTERVAL = 60.0
"""Seconds between two lines about refusals of one kind."""


class Refusal(StrEnum):
    """Why a client was turned away."""

    TOKEN = "token"
    HOST = "host"
    NOT_HTTP = "not-http"
    SLOW = "slow"
    CONNECTIONS = "connections"
    DESCRIPTORS = "descriptors"


_TEXTS = {
    Refusal.TOKEN: "a request without the right token",
    Refusal.HOST: "a request with the name of another host",
    Refusal.NOT_HTTP: "a request that is not HTTP",
    Refusal.SLOW: "a request that didn't arrive in time",
    Refusal.CONNECTIONS: "too many connections: the one that rested longest was closed",
    Refusal.DESCRIPTORS: "a connection can't be accepted for now",
}


class Refusals:
    """Counts refusals, and logs each kind once a minute at most."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[Refusal, tuple[float, int]] = {}
        self.counts: Counter[Refusal] = Counter()

    def note(self, kind: Refusal, detail: str = "") -> None:
        """Count one. `detail` may hold what a client has sent; one line, quoted by the caller."""
        self.counts[kind] += 1
        now = self._clock()
        when, count = self._last.get(kind, (-LOG_INTERVAL, 0))
        if now - when < LOG_INTERVAL:
            return
        more = self.counts[kind] - count - 1
        self._last[kind] = now, self.counts[kind]
        log.warning(
            "API: %s%s%s",
            _TEXTS[kind],
            f" ({detail})" if detail else "",
            f"; {more} more since the last such line" if more else "",
        )


class HttpServer(web.Server):
    """aiohttp's server, which knows the connections that rest: those without a request in work."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        connection: "Callable[[HttpServer], Connection]",
        refusals: Refusals,
    ) -> None:
        super().__init__(handler)
        self.refusals = refusals
        self._new = connection
        self.open = 0
        """Connections."""
        self._resting: dict[Connection, None] = {}
        """The one that has rested longest is the first."""

    def __call__(self) -> web.RequestHandler:
        return self._new(self)

    def rest(self, connection: "Connection") -> None:
        """It waits for a request from now on."""
        self._resting.pop(connection, None)
        self._resting[connection] = None

    def work(self, connection: "Connection") -> None:
        """It has a request, or is closed."""
        self._resting.pop(connection, None)

    def close_one(self) -> bool:
        """Close the connection that has rested longest; False if none rests."""
        connection = next(iter(self._resting), None)
        if connection is None:
            return False
        self.work(connection)
        connection.abort()
        return True


class Connection(web.RequestHandler):
    """One connection, which tells its server whether it rests."""

    __slots__ = ("_transport", "server")

    def __init__(self, server: HttpServer) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=IDLE_TIMEOUT,
            lingering_time=LINGER,
        )
        self.server = server
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.server.open += 1
        self.server.rest(self)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._transport = None
        self.server.open -= 1
        self.server.work(self)
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close at once, also towards a client that reads nothing."""
        if isinstance(self._transport, asyncio.WriteTransport):
            self._transport.abort()


class Listener:
    """Accepts connections on a listening socket, which it owns."""

    def __init__(self, server: HttpServer, listening: socket.socket, limit: int | None) -> None:
        """Accept from now on, `limit` connections at a time; None: any number."""
        self._server = server
        self._socket = listening
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._beginning: set[asyncio.Task[object]] = set()
        listening.setblocking(False)
        self._resume()

    async def stop(self) -> None:
        """Accept no more, and close what is open."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._server.pre_shutdown()
        await self._server.shutdown(GRACE)

    def _resume(self) -> None:
        self._pause = None
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            # The kernel calls the socket readable all the while.
            self._server.refusals.note(Refusal.DESCRIPTORS, (error.strerror or "").lower())
            self._server.close_one()
            self._loop.remove_reader(self._socket)
            self._pause = self._loop.call_later(ACCEPT_PAUSE, self._resume)
            return
        beginning = len(self._beginning)
        if self._limit is not None and self._server.open + beginning >= self._limit:
            self._server.refusals.note(Refusal.CONNECTIONS)
            # A new client speaks at once, unlike one that only takes up room.
            if not self._server.close_one():
                connection.close()
                return
        connection.setblocking(False)
        task: asyncio.Task[object] = self._loop.create_task(
            self._loop.connect_accepted_socket(self._server, connection)
        )
        self._beginning.add(task)
        task.add_done_callback(self._begun)

    def _begun(self, task: "asyncio.Task[object]") -> None:
        self._beginning.discard(task)
        if not task.cancelled():
            # Who left already is no error.
            task.exception()
