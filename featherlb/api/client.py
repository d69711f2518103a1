"""Asks the runtime API over an instance's Unix socket."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import aiohttp
from pydantic import BaseModel

from featherlb.api import schema
from featherlb.model.errors import ConfigError, HostError
from featherlb.system.journal import Journal

_Model = TypeVar("_Model", bound=BaseModel)

TIMEOUT = 60
"""Seconds for an answer: a reload waits for resolvers and for the kernel."""


def find_instance(number: int | None) -> Path:
    """The socket of the instance to talk to; with None, of the only one that runs here.

    HostError if none runs, ConfigError if it is not clear which one is meant.
    """
    directory = Journal().directory
    running = {int(path.stem): path for path in directory.glob("*.sock") if path.stem.isdecimal()}
    if not running:
        raise HostError("no featherlb runs in this network namespace: start it with `featherlb up`")
    names = ", ".join(map(str, sorted(running)))
    if number is None and len(running) > 1:
        raise ConfigError([f"several instances run here: choose one with --instance ({names})"])
    if number is None:
        (number,) = running
    if number not in running:
        raise ConfigError([f"there is no instance {number} here (there is: {names})"])
    return running[number]


class Client:
    """A connection to one instance."""

    def __init__(self, session: aiohttp.ClientSession, path: Path) -> None:
        self._session = session
        self._path = path

    async def get(
        self, path: str, answer: type[_Model], query: Mapping[str, object] | None = None
    ) -> _Model:
        """GET; HostError and ConfigError as the instance says."""
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
        """Any request; the answer's text."""
        parameters = {key: str(value) for key, value in (query or {}).items() if value is not None}
        try:
            async with self._session.request(method, path, params=parameters, json=body) as answer:
                text = await answer.text()
        except aiohttp.ClientError as error:
            raise self._lost(error) from None
        except TimeoutError:
            raise HostError(f"featherlb does not answer on {self._path}: see its log") from None
        if answer.status >= 400:
            reason = schema.Fault.model_validate_json(text).error
            raise ConfigError(reason.splitlines()) if answer.status < 500 else HostError(reason)
        return text

    async def events(self) -> AsyncIterator[schema.Event]:
        """What happens from now on, until the instance stops."""
        timeout = aiohttp.ClientTimeout(total=None)
        try:
            async with self._session.get("/v1/events", timeout=timeout) as answer:
                async for line in answer.content:
                    yield schema.Event.model_validate_json(line)
        except aiohttp.ClientError as error:
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> HostError:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return HostError(
            f"featherlb can't be reached on {self._path} ({reason}): is it running, and are you"
            " root?"
        )


@asynccontextmanager
async def connect(number: int | None = None) -> AsyncIterator[Client]:
    """A client of the instance; errors as `find_instance`."""
    path = find_instance(number)
    async with aiohttp.ClientSession(
        base_url="http://featherlb",
        connector=aiohttp.UnixConnector(str(path)),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT),
    ) as session:
        yield Client(session, path)
