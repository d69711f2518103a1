"""Client of the runtime API, over an instance's Unix socket."""

import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import urlencode

from pydantic import BaseModel, ValidationError

from featherlb.api import schema
from featherlb.model.errors import ConfigError, HostError
from featherlb.system.journal import Journal, Record

_Model = TypeVar("_Model", bound=BaseModel)

TIMEOUT = 60
"""Seconds to wait for a response: a reload waits for resolvers and for the kernel."""


def find_instance(number: int | None) -> Path:
    """The socket of the instance `number`, or of the only one running in this network namespace.

    HostError if none runs or it is dead, ConfigError if the choice is unclear.
    """
    journal = Journal()
    paths = journal.directory.glob("*.sock")
    sockets = {int(path.stem): path for path in paths if path.stem.isdecimal()}
    dead = {record.instance: record for record in journal.records() if not record.alive}
    running = sorted(sockets.keys() - dead.keys())
    names = ", ".join(map(str, running))
    if number is None and len(running) > 1:
        raise ConfigError([f"several instances run here: choose one with --instance ({names})"])
    if number in dead or (number is None and dead and not running):
        found = dead.values() if number is None else [dead[number]]
        raise HostError("\n".join(map(death, found)))
    if not running:
        raise HostError("no featherlb runs in this network namespace: start it with `featherlb up`")
    if number is None:
        (number,) = running
    if number not in running:
        raise ConfigError([f"there is no instance {number} here (running: {names})"])
    return sockets[number]


def death(record: Record) -> str:
    """What a dead instance means for traffic, and the way out."""
    traffic = "packets to its VIPs are dropped"
    if record.offloads:
        traffic = "the kernel still forwards its open connections, but new ones fail"
    return (
        f"instance {record.instance} (pid {record.pid}) is dead; {traffic}: run `featherlb up` or"
        " `featherlb down`"
    )


class Client:
    """Asks one instance. A refusal raises HostError or ConfigError, no response HostError.

    Its calls block: a command asks one thing after the other, and an asynchronous library would
    take half of its start.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout

    def get(
        self, path: str, answer: type[_Model], query: Mapping[str, object] | None = None
    ) -> _Model:
        return self._read(answer, self.ask("GET", path, query=query))

    def post(self, path: str, body: BaseModel, answer: type[_Model]) -> _Model:
        try:
            text = body.model_dump_json(by_alias=True, exclude_none=True)
        except ValueError:
            raise ConfigError(["an argument is not UTF-8 text"]) from None
        return self._read(answer, self.ask("POST", path, body=text))

    def delete(
        self, path: str, answer: type[_Model], query: Mapping[str, object] | None = None
    ) -> _Model:
        return self._read(answer, self.ask("DELETE", path, query=query))

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: str | None = None,
    ) -> str:
        """Any request, `body` being JSON; returns the response's text."""
        parameters = {key: value for key, value in (query or {}).items() if value is not None}
        if parameters:
            # The arguments of a command may be no Unicode: the instance refuses them.
            path = f"{path}?{urlencode(parameters, errors='surrogateescape')}"
        with self._request(method, path, body, self._timeout) as response:
            status, text = response.status, response.read().decode(errors="replace")
        if status >= 400:
            self._refuse(status, text)
        return text

    def events(self) -> Generator[schema.Event, None, None]:
        """Events from now on, until the instance stops."""
        with self._request("GET", "/v1/events", None, None) as response:
            for line in response:
                yield self._read(schema.Event, line.decode(errors="replace"))

    def capture(self, query: Mapping[str, object]) -> Generator[schema.CapturedPacket, None, None]:
        """Packets from now on, until the instance stops; now and then one without data."""
        parameters = {key: value for key, value in query.items() if value is not None}
        path = f"/v1/capture?{urlencode(parameters, errors='surrogateescape')}"
        with self._request("GET", path, None, None) as response:
            if response.status >= 400:
                self._refuse(response.status, response.read().decode(errors="replace"))
            for line in response:
                yield self._read(schema.CapturedPacket, line.decode(errors="replace"))

    def _refuse(self, status: int, text: str) -> NoReturn:
        """Raise what an instance answers that refuses a request."""
        reason = self._read(schema.Fault, text).error
        raise ConfigError(reason.splitlines()) if status < 500 else HostError(reason)

    def _read(self, model: type[_Model], text: str) -> _Model:
        """The text of a response as data; HostError if it isn't what this version expects."""
        try:
            return model.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise HostError(
                f"cannot read the answer of featherlb on {self._path}"
                f" ({place}{': ' if place else ''}{first['msg']}): if it is of another version,"
                " restart it"
            ) from None

    @contextmanager
    def _request(
        self, method: str, path: str, body: str | None, timeout: float | None
    ) -> Iterator[HTTPResponse]:
        connection = _Connection(self._path, timeout)
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, body and body.encode(), headers)
            yield connection.getresponse()
        except TimeoutError as error:
            raise HostError(
                f"featherlb did not answer on {self._path} within {self._timeout:g} s: see its log"
            ) from error
        except (OSError, HTTPException) as error:
            system = error.strerror if isinstance(error, OSError) else None
            message = " ".join(str(error).split())
            reason = system.lower() if system else message or type(error).__name__
            denied = isinstance(error, PermissionError)
            hint = "run this as root, with sudo" if denied else "is it running?"
            raise HostError(
                f"cannot talk to featherlb on {self._path} ({reason}): {hint}"
            ) from None
        finally:
            connection.close()


class _Connection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        super().__init__("featherlb", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def connect(number: int | None = None, timeout: float = TIMEOUT) -> Client:
    """A client of the instance, which waits `timeout` seconds for a response; raises as
    `find_instance`."""
    return Client(find_instance(number), timeout)
