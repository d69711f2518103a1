"""Serves the runtime API over HTTP: sockets, access, and what becomes of faults.

File permissions restrict the Unix socket to root. TCP, if configured, requires a token, except for
metrics and the page, which change nothing.
"""

import asyncio
import hmac
import logging
import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from aiohttp import web

from featherlb.api.handlers import Handlers, dispatch, respond_fault
from featherlb.api.listener import (
    MAX_CONNECTIONS,
    Connection,
    HttpServer,
    Listener,
    Refusal,
    Refusals,
)
from featherlb.config import values
from featherlb.control.controller import Controller
from featherlb.model import Endpoint
from featherlb.model.errors import ConfigError, FeatherlbError, HostError
from featherlb.system import journal, kernel_state
from featherlb.system.failure import explain, log_traceback

log = logging.getLogger("featherlb")

SOCKET_INTERVAL = 2.0
"""Seconds between two checks that the Unix socket is still there."""
_BACKLOG = 128
"""Connections that wait to be accepted."""


class Server:
    """The API of one instance."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._local: Listener | None = None
        self._remote: Listener | None = None
        self._refusals = Refusals()
        self._path: Path | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; HostError if that is impossible."""
        self._path = socket_path(self._controller.data.options.queue)
        await self._listen_locally(self._path)
        self._task = self._controller.tasks.start("api", self._keep, vital=False)
        if api := self._controller.serving.state.config.api:
            try:
                listening = _listen_remotely(api.listen)
            except OSError as error:
                raise HostError(
                    f"the API can't listen on {api.listen}: {error.strerror}; choose another"
                    " `api: listen:`"
                ) from None
            server = http_server(self._controller, Access(api.token, api.hosts), self._refusals)
            self._remote = Listener(server, listening, _connection_limit())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        for listener in (self._local, self._remote):
            if listener is not None:
                await listener.stop()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    async def _listen_locally(self, path: Path) -> None:
        if self._local is not None:
            await self._local.stop()
        try:
            listening = _listen(path)
        except OSError as error:
            raise HostError(f"the API can't listen on {path}: {error.strerror}") from None
        self._local = Listener(http_server(self._controller, None, self._refusals), listening, None)

    async def _keep(self) -> None:
        """Listen again whenever the Unix socket has been removed, as cleaners of /run do."""
        assert self._path is not None
        while True:
            await asyncio.sleep(SOCKET_INTERVAL)
            if not self._path.is_socket():
                await self._listen_locally(self._path)
                log.warning("%s was removed: the API listens on it again", self._path)


def socket_path(instance: int) -> Path:
    """The API socket of an instance in this network namespace."""
    return journal.Journal().directory / f"{instance}.sock"


def _listen(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # No client may connect before the mode is set.
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(_BACKLOG)
    return listener


def _listen_remotely(place: Endpoint) -> socket.socket:
    address = place.address
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return socket.create_server((str(address), place.port), family=family, backlog=_BACKLOG)


def _connection_limit() -> int:
    """Of TCP clients: the Unix socket, health checks and workers need descriptors, too."""
    limit = kernel_state.descriptors()
    return MAX_CONNECTIONS if limit is None else min(MAX_CONNECTIONS, limit.limit // 4)


@dataclass(frozen=True, slots=True)
class Access:
    """What a TCP client has to present: below /v1/ the token, and anywhere else the token or a
    host's name that leads here.

    A page on the Internet can have its own name point to this host (DNS rebinding), and so have a
    visitor's browser read from here as if it were the page's own; but not change the name.
    """

    token: str
    hosts: tuple[str, ...] = ()
    """Names of this host, in addition to those that it knows."""

    def has_token(self, request: web.BaseRequest) -> bool:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        return hmac.compare_digest(given, f"Bearer {self.token}".encode())

    def names_us(self, header: str) -> bool:
        """Whether a Host header has an address or a name of this host."""
        name = re.sub(r":[0-9]*$", "", header).strip("[]").rstrip(".").lower()
        with suppress(ValueError):
            ip_address(name)
            return True
        known = {"localhost", socket.gethostname().lower(), *(one.lower() for one in self.hosts)}
        return name in known


def http_server(
    controller: Controller, access: Access | None, refusals: Refusals | None = None
) -> HttpServer:
    """The API, open to everybody without `access`. Needs a running loop."""
    refusals = refusals or Refusals()
    handlers = Handlers(controller, refusals, local=access is None)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        try:
            if access is not None and (fault := _refuse(access, request, refusals)):
                return fault
            return await dispatch(handlers, request)
        except ConfigError as error:
            return respond_fault(str(error), 400)
        except FeatherlbError as error:
            return respond_fault(str(error), 503)
        except web.HTTPException as error:
            return respond_fault(f"{request.path}: {error.reason}", error.status)
        except Exception as error:
            log.error("%s %s failed: %s", request.method, request.path, explain(error))
            log_traceback(error)
            return respond_fault(f"internal error: {explain(error)}", 500)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, Connection)
        server.work(connection)
        try:
            return await answer(request)
        finally:
            server.rest(connection)

    server = HttpServer(handle, _Connection, refusals)
    return server


class _Connection(Connection):
    """HTTP on one connection. What is not HTTP gets a fault as well."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        # Further lines show the place in what was sent.
        reason = (message or str(exc)).split("\n")[0].rstrip(":")
        self.server.refusals.note(Refusal.NOT_HTTP, values.quote(reason))
        if request.writer.output_size > 0:
            raise ConnectionError("the response has begun")
        response = respond_fault(f"this is not a request of HTTP: {reason}", status)
        response.force_close()
        return response


def _refuse(
    access: Access, request: web.BaseRequest, refusals: Refusals
) -> web.StreamResponse | None:
    """The fault that a client without access gets, None if it has access."""
    if access.has_token(request):
        return None
    if request.path.startswith("/v1/"):
        refusals.note(Refusal.TOKEN, f"from {request.remote}")
        return respond_fault("this requires the header `Authorization: Bearer TOKEN`", 401)
    name = request.headers.get("Host")
    if name is None or access.names_us(name):
        return None
    refusals.note(Refusal.HOST, f"{values.quote(name)}, from {request.remote}")
    return respond_fault(
        f"{values.quote(name)} is no known name of this host: use an address, add the name to"
        " `api: hosts:`, or present the token",
        421,
    )
