"""`python -m scripts.bench.flood`: what clients notice of a SYN flood, beside other balancers.

For each balancer in turn: its rate of requests without a flood, then the same with SYNs from random
addresses, while connections that are open stay open and new ones are opened ten times a second.
Only the shares and ratios of one run mean anything: the generator takes its part of the machine.
"""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import click

from featherlb.lab import Node
from scripts.bench.cost import memory
from scripts.bench.figures import Kind, Workload
from scripts.bench.load import LoadError, Targets
from scripts.bench.load import run as run_load
from scripts.bench.parse import Requests
from scripts.bench.peers import Peer, PeerError, peers, wait_until_answering
from scripts.bench.report import table
from scripts.bench.servers import HTTP_PORT, Site, forget_connections, site
from scripts.bench.spoof import SOURCES

PEERS = (
    "featherlb-netlink-dnat",
    "featherlb-raw-dnat",
    "featherlb-offload-dnat",
    "haproxy",
    "nftables",
)
LOAD = Workload(Kind.KEEPALIVE, 32)
IDLE = 100
"""Connections that are open and silent during the flood."""
EVERY = 0.1
"""Seconds between two new connections."""
PATIENCE = 5
"""Seconds after which a new connection counts as failed."""
BACKENDS = 3


@dataclass(frozen=True, slots=True)
class Flood:
    """What one balancer did under one flood. Times are in milliseconds, memory is in bytes.

    `sent` are SYNs per second, `kept` is the share of the rate of requests without a flood. Of
    `tried` new connections `opened` were answered, and `idle` of the idle ones still were after it.
    `recovery` is the time until a new connection was answered afterwards.
    """

    peer: str
    asked: int
    sent: float
    kept: float
    tried: int
    opened: int
    median: float
    idle: int
    growth: int
    recovery: float


@click.command()
@click.option("--peer", "names", multiple=True, help=f"Balancers (default: {', '.join(PEERS)}).")
@click.option("--rate", "rates", multiple=True, type=int, help="SYNs/s (default: 30000, 100000).")
@click.option("--seconds", default=10, show_default=True, help="Of each measurement.")
@click.option("--rounds", default=1, show_default=True, help="Over all balancers.")
@click.option("--output", type=click.Path(path_type=Path), help="A file for the results as JSON.")
def main(
    names: tuple[str, ...],
    rates: tuple[int, ...],
    seconds: int,
    rounds: int,
    output: Path | None,
) -> None:
    """Compare what clients notice of a SYN flood. Needs root."""
    if os.geteuid() != 0:
        raise click.ClickException("creating network namespaces requires root")
    known = {peer.name: peer for peer in peers()}
    if unknown := set(names) - known.keys():
        raise click.UsageError(f"unknown balancer: {', '.join(sorted(unknown))}")
    chosen = [known[name] for name in names or PEERS if not known[name].missing]
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="featherlb-flood-") as directory,
        site(BACKENDS, Path(directory)) as ready,
    ):
        route_back(ready.lab.balancer, ready.lab.client)
        for _ in range(rounds):
            for peer in chosen:
                for flood in visit(ready, peer, rates or (30_000, 100_000), seconds):
                    results.append(flood)
                    click.echo(json.dumps(asdict(flood)), err=True)
    click.echo(describe(results))
    if output:
        output.write_text(json.dumps([asdict(flood) for flood in results], indent=1) + "\n")


def visit(ready: Site, peer: Peer, rates: tuple[int, ...], seconds: int) -> Iterator[Flood]:
    """Measure one balancer. What it can't stand is reported, not raised."""
    forget_connections(ready.lab)
    try:
        with peer.run(ready):
            wait_until_answering(ready, f"{ready.vip}:{HTTP_PORT}")
            for rate in rates:
                yield measure(ready, peer, rate, seconds)
    except (PeerError, LoadError) as error:
        click.echo(f"{peer.name}: {error}", err=True)


def measure(ready: Site, peer: Peer, rate: int, seconds: int) -> Flood:
    """One flood at one rate."""
    client = ready.lab.client
    targets = Targets([f"{ready.vip}:{HTTP_PORT}"], "", BACKENDS)
    without = requests(client, targets, seconds)
    idle = [client.connect(ready.vip, HTTP_PORT) for _ in range(IDLE)]
    pids = ready.lab.balancer.pids()
    before = memory(pids)[0]
    opener = Opener(client, ready.vip)
    with generator(ready, rate, seconds + 1) as sent:
        opener.start()
        with_flood = requests(client, targets, seconds)
        opener.stop()
    growth = memory(pids)[0] - before
    recovery = opener.connect()
    answered = sum(map(answers, idle))
    times = opener.times
    return Flood(
        peer=peer.name,
        asked=rate,
        sent=sent[0] / (seconds + 1),
        kept=with_flood / without,
        tried=opener.tried,
        opened=len(times),
        median=median(times) * 1000 if times else float("nan"),
        idle=answered,
        growth=growth,
        recovery=float("nan") if recovery is None else recovery * 1000,
    )


def requests(client: Node, targets: Targets, seconds: int) -> float:
    """Requests/s; 0 if none was answered."""
    try:
        outcome = run_load(client, LOAD, targets, seconds)
    except LoadError:
        return 0.0
    assert isinstance(outcome, Requests)
    return outcome.rate


@contextmanager
def generator(ready: Site, rate: int, seconds: int) -> Iterator[list[int]]:
    """Have SYNs sent meanwhile; afterwards the list holds how many there were."""
    client = ready.lab.client
    link, mac = next_hop(client, ready.vip)
    command = [sys.executable, "-m", "scripts.bench.spoof", link, mac, ready.vip, str(HTTP_PORT)]
    sent: list[int] = []
    with client.popen(
        [*command, str(rate), str(seconds)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield sent
        sent.append(int(process.stdout.readline()))


def route_back(balancer: Node, client: Node) -> None:
    """Give the balancer a route to the spoofed addresses, by way of the client: on a host without
    one, the kernel has nobody to answer, and a balancer behind its cookies saves half of the work.
    """
    balancer.run(["ip", "route", "replace", SOURCES, "via", client.address])


def next_hop(client: Node, vip: str) -> tuple[str, str]:
    """The link towards the VIP, and the MAC address there."""
    route = client.run(["ip", "route", "get", vip]).stdout
    link = re.search(r"dev (\S+)", route)
    gateway = re.search(r"via (\S+)", route)
    hop = gateway.group(1) if gateway else vip
    neighbour = client.run(["ip", "neighbour", "show", hop]).stdout
    mac = re.search(r"lladdr (\S+)", neighbour)
    if link is None or mac is None:
        raise LoadError(f"the client has no neighbour {hop}")
    return link.group(1), mac.group(1)


class Opener:
    """Opens connections, asks for a page and closes them, in a thread of its own."""

    def __init__(self, client: Node, vip: str) -> None:
        self.times: list[float] = []
        """Seconds until each connection was open."""
        self.tried = 0
        self._client = client
        self._vip = vip
        self._ending = threading.Event()
        self._thread = threading.Thread(target=client.call, args=(self._run,))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join()

    def connect(self) -> float | None:
        """Seconds until one more connection is answered, None if it isn't."""
        begin = time.monotonic()
        return None if self._client.call(self._open) is None else time.monotonic() - begin

    def _run(self) -> None:
        while not self._ending.wait(EVERY):
            self.tried += 1
            if (seconds := self._open()) is not None:
                self.times.append(seconds)

    def _open(self) -> float | None:
        begin = time.monotonic()
        try:
            with socket.create_connection((self._vip, HTTP_PORT), PATIENCE) as connection:
                seconds = time.monotonic() - begin
                return seconds if answers(connection) else None
        except OSError:
            return None


def answers(connection: socket.socket) -> bool:
    """Whether the server at the other end answers a request on this connection."""
    connection.settimeout(PATIENCE)
    asking = http.client.HTTPConnection("unused")
    asking.sock = connection
    try:
        asking.request("GET", "/")
        return asking.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


def describe(results: list[Flood]) -> str:
    """A Markdown table."""
    header = ["balancer", "SYN/s", "requests/s kept", "new connections", "median", "idle ones kept"]
    header += ["memory", "recovery"]
    rows = [
        [
            flood.peer,
            f"{flood.sent:,.0f} (of {flood.asked:,})",
            f"{flood.kept:.0%}",
            f"{flood.opened} of {flood.tried}",
            f"{flood.median:.1f} ms",
            f"{flood.idle} of {IDLE}",
            f"{flood.growth / 2**20:+.1f} MiB",
            f"{flood.recovery:.0f} ms",
        ]
        for flood in results
    ]
    return table(header, rows)


if __name__ == "__main__":
    main(prog_name="python -m scripts.bench.flood")
