"""Host names to addresses, remembered: a name that can't be resolved keeps its last answer.

A look-up can take as long as the resolver likes: dozens of seconds where a DNS server is silent. So
each has a thread of its own, which nobody waits for longer than `LIMIT`; an answer that comes later
counts when it comes.
"""

import asyncio
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address

from featherlb.model import Address

LIMIT = 5.0
"""Seconds that `refresh` waits for answers: what resolv.conf(5) has a resolver wait for one server.
"""
AT_ONCE = 32
"""Look-ups at the same time, at most."""


class Resolver:
    """The last answer for each name."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        """Set when there is another answer; whoever acts on it clears it."""
        self._answers: dict[str, Sequence[Address]] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(AT_ONCE)

    async def refresh(self, names: Iterable[str]) -> None:
        """Ask for all of these names at once, each one once. Returns when they are answered, or
        after `LIMIT`."""
        if asking := [self._ask(name) for name in dict.fromkeys(names)]:
            await asyncio.wait(asking, timeout=LIMIT)

    def answers(self, names: Iterable[str]) -> Mapping[str, Sequence[Address]]:
        """The last addresses of these names, in the resolver's order; none for a name that never
        had any."""
        return {name: self._answers.get(name, ()) for name in names}

    def _ask(self, name: str) -> "asyncio.Task[None]":
        task = self._asking.get(name)
        if task is None:
            task = self._asking[name] = asyncio.create_task(self._look_up(name))
            task.add_done_callback(lambda _: self._asking.pop(name))
        return task

    async def _look_up(self, name: str) -> None:
        async with self._room:
            found = await _in_thread(name)
        # A resolver that rotates its answers has not changed them.
        if found and set(found) != set(self._answers.get(name, ())):
            self._answers[name] = found
            self.changed.set()


def look_up(names: Iterable[str]) -> Mapping[str, Sequence[Address]]:
    """The addresses of these names, as far as they are known within `LIMIT`. Blocks: not for a
    running asyncio loop."""

    async def ask() -> Mapping[str, Sequence[Address]]:
        resolver = Resolver()
        wanted = list(names)
        await resolver.refresh(wanted)
        return resolver.answers(wanted)

    return asyncio.run(ask())


def _in_thread(name: str) -> "asyncio.Future[Sequence[Address]]":
    """The addresses of a name now; none if it can't be resolved."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Sequence[Address]] = loop.create_future()

    def deliver(found: Sequence[Address]) -> None:
        if not answer.done():
            answer.set_result(found)

    def run() -> None:
        found = _addresses(name)
        # The loop may have ended meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(deliver, found)

    try:
        # A thread of asyncio's own pool would delay the end of the process until it has an answer.
        threading.Thread(target=run, name=f"look up {name}", daemon=True).start()
    except RuntimeError:
        # This host has no room for another thread.
        deliver(())
    return answer


def _addresses(name: str) -> list[Address]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(ip_address(str(entry[4][0])) for entry in found))
