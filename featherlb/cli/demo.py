"""`featherlb demo`: balances real connections in network namespaces, with a live table.

Builds a lab (`featherlb.lab`), runs `featherlb up` in it as a user would, and counts requests at
the backends. Nothing outside the lab's namespaces changes.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from featherlb.cli.asking import new_console
from featherlb.cli.help import WholeNumber, examples
from featherlb.lab import Lab, load
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from featherlb.model.errors import HostError

SCHEDULER = "weighted-round-robin"
WEIGHTS = (1, 1, 2)
"""One per backend; unequal, so that the counts show the schedule."""
KEPT, SHORT = 8, 8
"""Persistent connections, and load workers that open one per request."""
START_TIMEOUT = 15
REFRESH_INTERVAL = 0.5
RATE_WINDOW = 4
"""Rates are averages over this many intervals."""

Counters = dict[str, int]


@click.command(epilog=examples("featherlb demo", "featherlb demo --seconds 30"))
@click.option(
    "--seconds",
    type=WholeNumber(1, 3600),
    default=10,
    show_default=True,
    metavar="N",
    help="Duration of the load.",
)
def demo(seconds: int) -> None:
    """Balance real connections in network namespaces, with a live table.

    The client, the balancer and three backends each get a network namespace, which is deleted at
    the end.
    """
    if os.geteuid() != 0:
        raise HostError(
            "the demo creates network namespaces, which requires root: sudo featherlb demo"
        )
    # Like Ctrl-C, so that the namespaces are deleted as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = new_console()
    with Lab(clients=1, backends=len(WEIGHTS)) as lab, ExitStack() as stack:
        servers = [stack.enter_context(HttpServer(node)) for node in lab.backends]
        command = up_command(servers)
        console.print(Text("$ featherlb " + " ".join(command)), soft_wrap=True, highlight=False)
        stack.enter_context(running(lab, command))
        load = stack.enter_context(Load(lab))
        view = BackendTable(servers)
        with (
            suppress(KeyboardInterrupt),
            Live(console=console, auto_refresh=False, transient=True) as live,
        ):
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                live.update(view.draw(load.latest, time.monotonic()), refresh=True)
                time.sleep(REFRESH_INTERVAL)
        result = load.stop()
        console.print(view.summary(result, lab))
    if result["errors"]:
        raise HostError(
            f"{result['errors']} requests failed, most recently: {result['last_error']}"
        )
    if not result["requests"]:
        raise HostError("no request was answered")


def up_command(servers: list[HttpServer]) -> list[str]:
    """The arguments of `featherlb` that put the servers behind the VIP."""
    command = ["up", "--vip", f"{VIP}:80", "--scheduler", SCHEDULER]
    for server, weight in zip(servers, WEIGHTS, strict=True):
        command += ["--backend", f"{server.node.address}:{server.port}@{weight}"]
    return command


@contextmanager
def running(lab: Lab, command: list[str]) -> Iterator[None]:
    """`featherlb up` on the balancer's host; HostError with its reason if it fails."""
    process = lab.balancer.popen(
        [sys.executable, "-P", "-m", "featherlb", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Not the current directory: it may have a featherlb.yaml.
        cwd="/",
    )
    assert process.stdout is not None
    assert process.stderr is not None
    watchdog = threading.Timer(START_TIMEOUT, process.kill)
    watchdog.start()
    ready = process.stdout.readline() == "ready\n"
    watchdog.cancel()
    if not ready:
        process.kill()
        raise HostError(f"`featherlb up` did not start: {process.stderr.read().strip()}")
    # Its log must not fill the pipe.
    threading.Thread(target=process.stderr.read, daemon=True).start()
    try:
        yield
    finally:
        process.terminate()
        process.wait()


class Load:
    """The load generator on the client's host; `latest` is its last report."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.latest: dict[str, Any] = {
            "requests": 0,
            "connections": 0,
            "errors": 0,
            "last_answer": "",
        }

    def __enter__(self) -> "Load":
        script = str(Path(load.__file__))
        arguments = [script, VIP, "80", str(KEPT), str(SHORT)]
        self._process = self._lab.client.popen(
            [sys.executable, "-I", *arguments], stdout=subprocess.PIPE
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.latest = json.loads(line)

    def stop(self) -> dict[str, Any]:
        """Stop it and return its last report."""
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        return self.latest

    def __exit__(self, *_: object) -> None:
        self.stop()


class BackendTable:
    """The table of backends, from the servers' own counters."""

    def __init__(self, servers: list[HttpServer]) -> None:
        self._servers = servers
        self._past: deque[tuple[float, list[Counters]]] = deque(maxlen=RATE_WINDOW + 1)

    def draw(self, load: dict[str, Any], now: float) -> RenderableType:
        """Counts up to `now` (seconds), and rates over the last intervals."""
        current = [server.counters() for server in self._servers]
        self._past.append((now, current))
        then, earlier = self._past[0]
        elapsed = now - then
        rates = [
            {what: (new[what] - old[what]) / elapsed if elapsed else 0 for what in new}
            for new, old in zip(current, earlier, strict=True)
        ]
        return Group(self._table(current, rates), client_line(load))

    def summary(self, load: dict[str, Any], lab: Lab) -> RenderableType:
        """The final counts, and the client's result."""
        current = [server.counters() for server in self._servers]
        return Group(
            self._table(current),
            client_line(load),
            seen_line(load, lab),
        )

    def _table(
        self, counters: list[Counters], rates: list[dict[str, float]] | None = None
    ) -> Table:
        table = Table("backend", "address")
        for heading in ("weight", "flows", "requests"):
            table.add_column(heading, justify="right")
        if rates:
            table.add_column("flows/s", justify="right")
            table.add_column("requests/s", justify="right")
        table.add_column("share of requests")
        total = sum(count["requests"] for count in counters)
        for index, (server, weight, count) in enumerate(
            zip(self._servers, WEIGHTS, counters, strict=True)
        ):
            row = [server.node.name, f"{server.node.address}:{server.port}", str(weight)]
            row += [f"{count['connections']:,}", f"{count['requests']:,}"]
            if rates:
                row += [f"{rates[index][what]:,.0f}" for what in ("connections", "requests")]
            table.add_row(*row, share(count["requests"], total))
        return table


def share(part: int, total: int) -> RenderableType:
    """A bar with its percentage."""
    percentage = 100 * part / total if total else 0
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(100, percentage, width=20), f"{percentage:3.0f} %")
    return grid


def seen_line(load: dict[str, Any], lab: Lab) -> Text:
    """The client address that a backend reported."""
    if not load["last_answer"]:
        return Text("no backend answered")
    answer = json.loads(load["last_answer"])
    whose = "the client's own" if answer["peer"] == lab.client.address else "the balancer's"
    return Text(f"{answer['backend']} saw the address {answer['peer']}: {whose}")


def client_line(load: dict[str, Any]) -> Text:
    errors = load["errors"]
    return Text.assemble(
        f"client: {load['requests']:,} requests over {load['connections']:,} connections, ",
        (f"{errors:,} errors" if errors else "no errors", "red" if errors else "green"),
    )
