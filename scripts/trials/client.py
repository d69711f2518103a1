"""The clients of a trial: `python client.py SETTINGS`, where SETTINGS is JSON.

`targets` are [name, protocol, address, port] of services behind which `echo.py` answers. To each
TCP service `long` connections stay open and are asked every `pause` seconds, and one client after
the other connects, asks and closes. To each UDP service one client keeps its port, and others ask
once. With `lifetime`, long connections are closed after some such time, and others take their
place.

Prints a line of JSON for each thing that went wrong (`kind`), and one twice a second with what was
done since the last one. Times are those of CLOCK_MONOTONIC. SIGTERM ends it, after it has closed
its connections. A script that imports only the standard library, so that it starts fast.
"""

import asyncio
import json
import random
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Any

LENGTH = struct.Struct("!I")
SIZES = (16, 16, 16, 1000, 5000, 40000)
"""Of what is sent over TCP, in bytes."""
DATAGRAMS = (16, 16, 1000)
PATIENCE = 60
"""Seconds after which a silent connection counts as broken, and a new one as failed."""
DATAGRAM_PATIENCE = 1
REPORT_INTERVAL = 0.5
PAUSE_AFTER_FAILURE = 0.25


class Service:
    """What happened to one service since the last report."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.answered = time.monotonic()
        self.clear()

    def clear(self) -> None:
        self.answers = self.opened = self.lost = 0
        self.gap = 0.0

    def answer(self) -> None:
        now = time.monotonic()
        self.gap = max(self.gap, now - self.answered)
        self.answered = now
        self.answers += 1

    def report(self) -> dict[str, float]:
        gap = max(self.gap, time.monotonic() - self.answered)
        found = {"answers": self.answers, "opened": self.opened, "lost": self.lost, "gap": gap}
        self.clear()
        return found

    def wrong(self, kind: str, backend: int | None, error: BaseException) -> None:
        why = str(error) or type(error).__name__
        event = {"kind": kind, "service": self.name, "backend": backend, "why": why}
        print(json.dumps({"time": time.monotonic(), **event}), flush=True)


class CorruptError(Exception):
    """An answer that isn't what was asked for."""


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """Ask once over a connection; the number of the backend that answered."""
    body = random.randbytes(random.choice(SIZES))
    writer.write(LENGTH.pack(len(body)) + body)
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    if length != len(body):
        raise CorruptError(f"{length} bytes instead of {len(body)}")
    answer = await reader.readexactly(length)
    if answer[1:] != body[1:]:
        raise CorruptError("other bytes than were sent")
    return answer[0]


async def converse(
    service: Service, address: str, port: int, pause: float, ending: asyncio.Event, lifetime: float
) -> None:
    """A connection that stays open for `lifetime` seconds, or 0: is asked once."""
    backend = None
    writer = None
    begin = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(address, port)
            backend = await exchange(reader, writer)
        service.opened += 1
        service.answer()
        while time.monotonic() - begin < lifetime and not ending.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), pause * random.uniform(0.5, 1.5))
            async with asyncio.timeout(PATIENCE):
                if await exchange(reader, writer) != backend:
                    raise CorruptError("another backend answers")
            service.answer()
        writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            if await reader.read():
                raise CorruptError("bytes at the end")
    except CorruptError as error:
        service.wrong("corrupt", backend, error)
    except (OSError, EOFError) as error:
        service.wrong("failed" if backend is None else "broken", backend, error)
        await asyncio.sleep(PAUSE_AFTER_FAILURE)
    finally:
        if writer is not None:
            writer.close()


async def connect_again_and_again(
    service: Service, address: str, port: int, pause: float, ending: asyncio.Event, lifetime: float
) -> None:
    await asyncio.sleep(random.uniform(0, pause))
    while not ending.is_set():
        spread = lifetime * random.uniform(0.5, 1.5)
        await converse(service, address, port, pause, ending, spread)
        if not lifetime:
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))


async def send_datagrams(
    service: Service, address: str, port: int, pause: float, ending: asyncio.Event, *, keep: bool
) -> None:
    """Send a datagram, wait for its answer: from one port if `keep`, else each from another."""
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    one = None
    while not ending.is_set():
        if one is None:
            one = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            one.connect((address, port))
            service.opened += 1
        body = random.randbytes(random.choice(DATAGRAMS))
        try:
            async with asyncio.timeout(DATAGRAM_PATIENCE):
                await loop.sock_sendall(one, body)
                # What comes late answers an earlier datagram.
                while (await loop.sock_recv(one, 2000))[1:] != body[1:]:
                    pass
            service.answer()
        except (OSError, TimeoutError):
            service.lost += 1
        if not keep:
            one.close()
            one = None
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))
    if one is not None:
        one.close()


async def main(settings: dict[str, Any]) -> None:
    """Until SIGTERM."""
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    services = []
    tasks = []
    pause = settings["pause"]
    lifetime = settings["lifetime"] or float("inf")
    for name, protocol, address, port in settings["targets"]:
        service = Service(name)
        services.append(service)
        if protocol == "tcp":
            for kept in [lifetime] * settings["long"] + [0]:
                one = connect_again_and_again(service, address, port, pause, ending, kept)
                tasks.append(asyncio.create_task(one))
        else:
            for keep in (True, False):
                one = send_datagrams(service, address, port, pause, ending, keep=keep)
                tasks.append(asyncio.create_task(one))
    while not ending.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), REPORT_INTERVAL)
        done = {service.name: service.report() for service in services}
        print(json.dumps({"time": time.monotonic(), "services": done}), flush=True)
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
