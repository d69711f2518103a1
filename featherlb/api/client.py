"""Client of the runtime API, over an instance's Unix socket."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import aiohttp
from pydantic import BaseModel

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
        raise HostError("\n".join(map(_death, found)))
    if not running:
        raise HostError("no featherlb runs in this network namespace: start it with `featherlb up`")
    if number is None:
        (number,) = running
    if number not in running:
        raise ConfigError([f"there is no instance {number} here (running: {names})"])
    return sockets[number]


def _death(record: Record) -> str:
    traffic = "packets to its VIPs are dropped"
    if record.offloads:
        traffic = "the kernel still forwards its open connections, but new ones fail"
    return (
        f"instance {record.instance} (pid {record.pid}) is dead; {traffic}: run `featherlb up` or"
        " `featherlb down`"
    )


class Client:
    """A connection to one instance."""

    def __init__(self, session: aiohttp.ClientSession, path: Path) -> None:
        self._session = session
        self._path = path

    async def get(
        self, path: str, answer: type[_Model], query: Mapping[str, object] | None = None
    ) -> _Model:
        """GET. The instance's refusal raises HostError or ConfigError."""
        return answer.model_validate_json(await self.ask("GET", path, query=query))

    async def post(self, path: str, body: BaseModel, answer: type[_Model]) -> _Model:
        data = body.model_dump(mode="json", by_alias=True, exclude_none=True)
        return answer.model_validate_json(await self.ask("POST", path, body=data))

    async def delete(
        self, path: str, answer: type[_Model], query: Mapping[str, object] | None = None
    ) -> _Model:
        return answer.model_validate_json(await self.ask("DELETE", path, query=query))

    async def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: object = None,
    ) -> str:
        """Any request; returns the response's text."""
        parameters = {key: str(value) for key, value in (query or {}).items() if value is not None}
        try:
            async with self._session.request(method, path, params=parameters, json=body) as answer:
                text = await answer.text()
        except aiohttp.ClientError as error:
            raise self._lost(error) from None
        except TimeoutError:
            raise HostError(
                f"featherlb did not answer on {self._path} within {TIMEOUT} s: see its log"
            ) from None
        if answer.status >= 400:
            reason = schema.Fault.model_validate_json(text).error
            raise ConfigError(reason.splitlines()) if answer.status < 500 else HostError(reason)
        return text

    async def events(self) -> AsyncIterator[schema.Event]:
        """Events from now on, until the instance stops."""
        timeout = aiohttp.ClientTimeout(total=None)
        try:
            async with self._session.get("/v1/events", timeout=timeout) as answer:
                async for line in answer.content:
                    yield schema.Event.model_validate_json(line)
        except aiohttp.ClientError as error:
            raise self._lost(error) from None

    def _lost(self, error: aiohttp.ClientError) -> HostError:
        if isinstance(error, aiohttp.ClientConnectorError) and error.strerror:
            reason = error.strerror.lower()
        else:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return HostError(
            f"cannot talk to featherlb on {self._path} ({reason}): is it running, and are you root?"
        )


@asynccontextmanager
async def connect(number: int | None = None) -> AsyncIterator[Client]:
    """A client of the instance; raises as `find_instance`."""
    path = find_instance(number)
    async with aiohttp.ClientSession(
        base_url="http://featherlb",
        connector=aiohttp.UnixConnector(str(path)),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT),
    ) as session:
        yield Client(session, path)
