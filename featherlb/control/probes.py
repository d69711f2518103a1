"""Health checks of a backend: TCP, HTTP(S), UDP, a script. Each probe goes to the address
that it is given, from this host. None outlasts its timeout.
"""

import asyncio
import errno
import math
import os
import socket
from collections.abc import Awaitable, Callable

from featherlb.model import CheckType, Endpoint, HealthCheck
from featherlb.system import processes

LOCAL_ERRORS = frozenset(
    {
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EAGAIN,
        errno.EADDRNOTAVAIL,
    }
)
"""This host lacks descriptors, memory, processes (EAGAIN of fork(2)) or source ports: that says
nothing about the backend."""


class NoVerdictError(Exception):
    """The check couldn't be made, for a reason of this host's, which the text says."""


class _FailedError(Exception):
    """The backend has answered, but not as wanted; the text says how."""


async def probe(check: HealthCheck, backend: Endpoint) -> str | None:
    """Check a backend once: None if it is healthy, or why not, in a few words. NoVerdictError if
    this host couldn't do it."""
    try:
        async with asyncio.timeout(check.timeout):
            await _PROBES[check.type](check, backend)
    except TimeoutError:
        if check.type is CheckType.UDP and check.expect is None:
            return None
        return f"no answer within {check.timeout:g} s"
    except _FailedError as error:
        return str(error)
    except OSError as error:
        if error.errno in LOCAL_ERRORS:
            raise NoVerdictError(os.strerror(error.errno).lower()) from None
        # aiohttp and asyncio wrap the system's words in sentences of their own.
        return os.strerror(error.errno).lower() if error.errno else "the connection broke"
    return None


async def _tcp(check: HealthCheck, backend: Endpoint) -> None:
    with _socket(backend, socket.SOCK_STREAM) as connection:
        await asyncio.get_running_loop().sock_connect(connection, _address(backend))


async def _http(check: HealthCheck, backend: Endpoint) -> None:
    # Where there is no such check, the import of an HTTP library would only delay the start.
    from featherlb.control.http_probe import request

    if failure := await request(check, backend):
        raise _FailedError(failure)


async def _udp(check: HealthCheck, backend: Endpoint) -> None:
    # Connected, so that an ICMP error about the datagram is an error of the socket.
    with _socket(backend, socket.SOCK_DGRAM) as connection:
        connection.connect(_address(backend))
        connection.send(check.send.encode("latin-1"))
        answer = await asyncio.get_running_loop().sock_recv(connection, 1 << 16)
    if check.expect is not None and check.expect.encode("latin-1") not in answer:
        raise _FailedError("the answer doesn't hold what is expected")


async def _script(check: HealthCheck, backend: Endpoint) -> None:
    variables = {
        "FEATHERLB_ADDRESS": str(backend.address),
        "FEATHERLB_PORT": str(backend.port),
    }
    user = None
    if check.user is not None:
        try:
            user = processes.find_user(check.user)
        except KeyError:
            raise NoVerdictError(f"there is no user '{check.user}'") from None
    seconds = math.ceil(check.timeout) + 1
    try:
        code = await processes.run(check.command, variables, user, seconds)
    except PermissionError as error:
        if user is None or error.filename is None:
            raise
        raise NoVerdictError(
            f"may not run it as '{user.name}' (this needs CAP_SETUID, CAP_SETGID and CAP_KILL)"
        ) from None
    if code < 0:
        raise _FailedError(f"killed by signal {-code}")
    if code > 0:
        raise _FailedError(f"exit code {code}")


def _socket(backend: Endpoint, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET if backend.address.version == 4 else socket.AF_INET6
    return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _address(backend: Endpoint) -> tuple[str, int]:
    return str(backend.address), backend.port


_PROBES: dict[CheckType, Callable[[HealthCheck, Endpoint], Awaitable[None]]] = {
    CheckType.TCP: _tcp,
    CheckType.HTTP: _http,
    CheckType.HTTPS: _http,
    CheckType.UDP: _udp,
    CheckType.SCRIPT: _script,
}
