"""`python -m scripts.bench.redispatch`: what clients notice of servers that refuse connections,
or do not answer, beside other balancers.

For each balancer in turn, clients open connections and ask for a page: first one after the other
while one of two backends refuses them; then many at a time while one of three refuses and another
one is silent. Times are from the first SYN to the whole answer, as a proxy accepts before it asks.
"""

import asyncio
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import click

from scripts.bench.peers import Peer, PeerError, haproxy, peers
from scripts.bench.report import table
from scripts.bench.servers import HTTP_PORT, Site, forget_connections, site

RETRYING = Peer(
    "haproxy-redispatch",
    "HAProxy that tries other servers",
    partial(haproxy, 1, more="retries 3\n    option redispatch 1\n    timeout connect 1s"),
    ("haproxy",),
)
"""With the settings for the same as featherlb's `redispatch`: each attempt at another server."""
PEERS = (
    "featherlb-netlink-dnat",
    "featherlb-netlink-full",
    "featherlb-raw-dnat",
    "featherlb-offload-dnat",
    "featherlb-offload-full",
    "featherlb-ebpf-dnat",
    "haproxy-redispatch",
    "haproxy",
    "nftables",
)
REQUEST = b"GET / HTTP/1.0\r\n\r\n"
PATIENCE = 10
"""Seconds after which a connection counts as failed."""
LONGEST = 20
"""Seconds of the first part, at most: some balancers wait for each connection that was refused."""
PROMPT = 0.005
"""Seconds within which a connection that was refused on its way should be answered."""
RETRANSMISSION = 1.25
"""Seconds within which one is answered whose SYN was sent twice: 1 s (RFC 6298 section 2.1), and
what a hundred clients at a time take on a busy machine."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `count` connections met at one balancer. Times are seconds; `prompt` were answered
    within `PROMPT`, `retried` within `RETRANSMISSION`."""

    peer: str
    backends: str
    count: int
    errors: int
    median: float
    longest: float
    prompt: int
    retried: int


@click.command()
@click.option("--peer", "names", multiple=True, help=f"Balancers (default: {', '.join(PEERS)}).")
@click.option("--count", default=2000, show_default=True, help="Connections in each part.")
@click.option("--parallel", default=100, show_default=True, help="At a time, in the second part.")
@click.option("--output", type=click.Path(path_type=Path), help="A file for the results as JSON.")
def main(names: tuple[str, ...], count: int, parallel: int, output: Path | None) -> None:
    """Compare what clients notice of backends that refuse connections or are silent. Needs root."""
    if os.geteuid() != 0:
        raise click.ClickException("creating network namespaces requires root")
    known = {peer.name: peer for peer in (*peers(), RETRYING)}
    if unknown := set(names) - known.keys():
        raise click.UsageError(f"unknown balancer: {', '.join(sorted(unknown))}")
    results = []
    with (
        tempfile.TemporaryDirectory(prefix="featherlb-redispatch-") as directory,
        site(1, Path(directory)) as ready,
    ):
        for peer in (known[name] for name in names or PEERS):
            if peer.missing:
                click.echo(f"{peer.name}: not installed: {', '.join(peer.missing)}", err=True)
                continue
            for outcome in visit(ready, peer, count, parallel):
                results.append(outcome)
                click.echo(json.dumps(asdict(outcome)), err=True)
    click.echo(describe(results))
    if output:
        output.write_text(json.dumps([asdict(outcome) for outcome in results], indent=1) + "\n")


def visit(ready: Site, peer: Peer, count: int, parallel: int) -> Iterator[Outcome]:
    """Measure one balancer. What doesn't run here is reported, not raised."""
    first = ready.ports.start
    call = ready.lab.client.call
    for backends, size in (("1 serves, 1 refuses", 2), ("1 serves, 1 refuses, 1 is silent", 3)):
        forget_connections(ready.lab)
        broken = replace(ready, ports=range(first, first + size))
        try:
            with silent(ready, range(first + 2, first + size)), peer.run(broken):
                times: list[float | None]
                if size == 2:
                    end = time.monotonic() + LONGEST
                    times = []
                    while len(times) < count and time.monotonic() < end:
                        times.append(call(ask, ready.vip))
                else:
                    times = call(asyncio.run, ask_all(ready.vip, count, parallel))
        except PeerError as error:
            click.echo(f"{peer.name}: {error}", err=True)
            return
        yield summed(peer.name, backends, times)


@contextmanager
def silent(ready: Site, ports: range) -> Iterator[None]:
    """The server's host answers nothing at these ports."""
    node = ready.lab.backends[0]
    rules = [["INPUT", "-p", "tcp", "--dport", str(port), "-j", "DROP"] for port in ports]
    for rule in rules:
        node.run(["iptables", "-A", *rule])
    try:
        yield
    finally:
        for rule in rules:
            node.run(["iptables", "-D", *rule])


def ask(vip: str) -> float | None:
    """Seconds until a new connection has got its page, None if it fails."""
    begin = time.monotonic()
    try:
        with socket.create_connection((vip, HTTP_PORT), PATIENCE) as connection:
            connection.sendall(REQUEST)
            answer = b""
            while received := connection.recv(4096):
                answer += received
    except OSError:
        return None
    return time.monotonic() - begin if is_page(answer) else None


async def ask_all(vip: str, count: int, parallel: int) -> list[float | None]:
    """The same for many, so many at a time."""
    turns = asyncio.Semaphore(parallel)

    async def one() -> float | None:
        async with turns:
            begin = time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE):
                    reader, writer = await asyncio.open_connection(vip, HTTP_PORT)
                    try:
                        writer.write(REQUEST)
                        answer = await reader.read()
                    finally:
                        writer.close()
            except OSError:
                return None
            return time.monotonic() - begin if is_page(answer) else None

    return await asyncio.gather(*(one() for _ in range(count)))


def is_page(answer: bytes) -> bool:
    """Whether this is a server's whole answer, rather than a connection that was just closed."""
    return answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\n")


def summed(peer: str, backends: str, times: Sequence[float | None]) -> Outcome:
    """Of connections that took these times, None if they failed."""
    answered = [one for one in times if one is not None]
    return Outcome(
        peer,
        backends,
        count=len(times),
        errors=len(times) - len(answered),
        median=median(answered) if answered else float("nan"),
        longest=max(answered, default=float("nan")),
        prompt=sum(one <= PROMPT for one in answered),
        retried=sum(one <= RETRANSMISSION for one in answered),
    )


def describe(results: Sequence[Outcome]) -> str:
    """A Markdown table."""
    header = ["balancer", "backends", "errors", "median", "longest"]
    header += [f"in {PROMPT * 1000:.0f} ms", f"in {RETRANSMISSION} s"]
    rows = [
        [
            one.peer,
            one.backends,
            f"{one.errors:,} of {one.count:,}",
            f"{one.median * 1000:.2f} ms",
            f"{one.longest * 1000:,.1f} ms",
            f"{one.prompt / one.count:.1%}",
            f"{one.retried / one.count:.1%}",
        ]
        for one in results
    ]
    return table(header, rows)


if __name__ == "__main__":
    main(prog_name="python -m scripts.bench.redispatch")
