"""Generates load with wrk in the clients' containers, and reads its counts."""

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scripts.e2e.engine import Container, EngineError
from scripts.e2e.settings import VIP, Settings

PERCENTILES = ("p50", "p75", "p90", "p99", "p999", "max")
ERRORS = ("connect", "read", "write", "status", "timeout")
PID_FILE = "/tmp/wrk.pid"
GRACE = 30
"""Seconds beyond its time after which wrk counts as hung."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one client's wrk counted; latencies are in ms, the duration in seconds."""

    requests: int
    duration: float
    latencies: dict[str, float]
    errors: dict[str, int]
    output: str

    @property
    def rate(self) -> float:
        return self.requests / self.duration


def parse(output: str) -> Load:
    """The line of JSON that wrk.lua prints last. ValueError if there is none."""
    last = output.rstrip().rpartition("\n")[2]
    try:
        counts = json.loads(last)
    except json.JSONDecodeError:
        raise ValueError(f"wrk printed no result but {last!r}") from None
    return Load(
        requests=counts["requests"],
        duration=counts["duration"] / 1e6,
        latencies={name: counts[name] / 1e3 for name in PERCENTILES},
        errors={name: counts[name] for name in ERRORS},
        output=output,
    )


def run(
    clients: Sequence[Container], settings: Settings, tick: Callable[[float], None]
) -> list[Load]:
    """Load from all clients at once, for `settings.seconds`; `tick` gets the seconds elapsed.

    EngineError if wrk failed in one of them.
    """
    running = start(clients, settings, settings.seconds)
    for second in range(settings.seconds):
        try:
            running[0].wait(1)
            break
        except subprocess.TimeoutExpired:
            tick(second + 1)
    return collect(running)


def start(
    clients: Sequence[Container], settings: Settings, seconds: int
) -> "list[subprocess.Popen[str]]":
    """Start wrk in each client; each calls itself by its number, from 1, in a header."""
    return [
        client.popen(
            "sh",
            "-c",
            f'echo $$ >{PID_FILE}; exec wrk "$@"',
            "wrk",
            f"-t{settings.threads_each}",
            f"-c{settings.connections_each}",
            f"-d{seconds}s",
            f"--timeout={settings.timeout}s",
            f"--header=X-Client: {number}",
            "--script=/usr/local/share/wrk.lua",
            f"http://{VIP}:80/",
        )
        for number, client in enumerate(clients, 1)
    ]


def stop(clients: Sequence[Container]) -> None:
    """Stop the load early; wrk still prints its counts."""
    for client in clients:
        client.exec("sh", "-c", f"kill -INT $(cat {PID_FILE})")


def collect(running: "Sequence[subprocess.Popen[str]]") -> list[Load]:
    """Wait for each wrk to end, and read its counts."""
    loads = []
    try:
        for process in running:
            output, _ = process.communicate(timeout=GRACE)
            loads.append(parse(output))
    except ValueError as error:
        raise EngineError(str(error)) from None
    except subprocess.TimeoutExpired:
        raise EngineError(f"wrk did not end within {GRACE} s") from None
    finally:
        for process in running:
            process.kill()
            process.wait()
    return loads
