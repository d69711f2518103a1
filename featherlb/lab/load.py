"""A load generator for the lab: `python load.py ADDRESS PORT KEPT SHORT [PAUSE]`.

Asks the HTTP servers behind a VIP over KEPT connections that stay open, and by SHORT workers
that open a new connection for every request, as fast as they answer, or each of them with a
pause of PAUSE seconds between its requests. Prints a line of JSON four
times a second and a last one when SIGTERM ends it: `requests`, `connections`, `errors`,
`last_error` and `last_answer` so far. A script that imports only the standard library, so that
it starts fast.
"""

import asyncio
import json
import signal
import sys
from dataclasses import asdict, dataclass

REPORT_INTERVAL = 0.25
TIMEOUT = 5


@dataclass
class Load:
    """What the client has seen so far."""

    requests: int = 0
    connections: int = 0
    errors: int = 0
    last_error: str = ""
    last_answer: str = ""

    def report(self) -> None:
        print(json.dumps(asdict(self)), flush=True)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """One request; the content of its answer; raises OSError or EOFError if there is none."""
    writer.write(b"GET / HTTP/1.1\r\nHost: vip\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise OSError(f"answer {head[:40]!r}")
    length = int(head.lower().partition(b"content-length:")[2].split(maxsplit=1)[0])
    return (await reader.readexactly(length)).decode()


async def worker(load: Load, address: str, port: int, requests: int | None, pause: float) -> None:
    """Connect again and again; `requests` on each connection, None for no limit."""
    while True:
        try:
            async with asyncio.timeout(TIMEOUT):
                reader, writer = await asyncio.open_connection(address, port)
            load.connections += 1
            try:
                asked = 0
                while requests is None or asked < requests:
                    async with asyncio.timeout(TIMEOUT):
                        load.last_answer = await ask(reader, writer)
                    asked += 1
                    load.requests += 1
                    if pause:
                        await asyncio.sleep(pause)
            finally:
                writer.close()
        except (OSError, EOFError) as error:
            load.errors += 1
            load.last_error = str(error) or type(error).__name__
            await asyncio.sleep(REPORT_INTERVAL)


async def main(address: str, port: int, kept: int, short: int, pause: float) -> None:
    load = Load()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    limits = [None] * kept + [1] * short
    workers = [asyncio.create_task(worker(load, address, port, limit, pause)) for limit in limits]
    while not stopped.is_set():
        try:
            await asyncio.wait_for(stopped.wait(), REPORT_INTERVAL)
        except TimeoutError:
            load.report()
    for task in workers:
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    load.report()


if __name__ == "__main__":
    pause = float(sys.argv[5]) if sys.argv[5:] else 0
    port, kept, short = map(int, sys.argv[2:5])
    asyncio.run(main(sys.argv[1], port, kept, short, pause))
