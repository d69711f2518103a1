"""`python -m scripts.bench.scale [SERVICES]`: what a configuration of thousands of services costs.

Prints the time and the CPU time (supervisor, workers, and the programs that they run) until an
instance is ready, of changes and reloads, and of doing nothing; its memory; and the time of
`featherlb check`. Needs root: it runs in the lab.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from featherlb.lab import Lab, Node
from scripts.bench.cost import TICK, memory

PROGRAM = str(Path(sys.executable).with_name("featherlb"))
BACKENDS = 3
START_TIMEOUT = 600


def configuration(services: int, addresses: int, flag: Path) -> str:
    """The services share this number of VIPs, and have backends of their own. The last one's
    health is checked: its backends are up while a file is there."""
    lines = ["services:"]
    for number in range(services):
        turn, vip = divmod(number, addresses)
        lines.append(f"  - name: s{number}")
        lines.append(f"    vip: 10.9.{vip >> 8}.{vip & 255}:{1000 + turn}")
        lines.append("    backends:")
        lines += [f"      - {backend(number, member)}" for member in range(BACKENDS)]
    check = f"{{type: script, command: [test, -e, {flag}], interval: 1s, rise: 1, fall: 1}}"
    lines.append(f"    health: {check}")
    return "\n".join(lines) + "\n"


def backend(service: int, member: int) -> str:
    """The backends are addresses of the lab's backend network, 10.0.1.0/24, and ports."""
    number = service * BACKENDS + member
    return f"10.0.1.{number % 200 + 2}:{8000 + number // 200}"


class Running:
    """A `featherlb up` in the lab."""

    def __init__(self, node: Node, path: Path) -> None:
        self._node = node
        self.process = node.popen(
            [PROGRAM, "up", "--config", str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            raise click.ClickException("featherlb did not start")

    def pids(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [
            self.process.pid,
            *(int(pid) for one in children for pid in one.read_text().split()),
        ]

    def cpu(self) -> float:
        """Seconds of all its processes, and of the programs that have ended."""
        total = 0
        for pid in self.pids():
            # A program that has ended meanwhile counts for its parent.
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                # utime, stime, and those of children that were waited for (proc_pid_stat(5)).
                total += sum(map(int, fields[11:15]))
        return total * TICK

    def ask(self, method: str, path: str, body: object = None) -> object:
        """What the API answers."""
        table = self._node.call(Path("/proc/thread-self/net/unix").read_text)
        (place,) = {line.split()[-1] for line in table.splitlines() if line.endswith(".sock")}
        text = json.dumps(body or {})
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(place)
            connection.sendall(
                f"{method} {path} HTTP/1.0\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()
            )
            answer = connection.makefile("rb").read()
        head, _, found = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise click.ClickException(found.decode())
        return json.loads(found)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@contextmanager
def measured(title: str, running: Running | None = None) -> Iterator[None]:
    """Print the time and the CPU time of the block."""
    began, spent = time.monotonic(), running.cpu() if running else 0.0
    yield
    elapsed = time.monotonic() - began
    cost = f", {1000 * (running.cpu() - spent):7.0f} ms of CPU" if running else ""
    click.echo(f"{title:30} {elapsed:6.2f} s{cost}")


@click.command()
@click.argument("services", type=click.IntRange(1), default=5000)
@click.option("--addresses", type=click.IntRange(1), default=1, help="Number of VIPs.")
@click.option("--idle", type=float, default=5.0, help="Seconds for what it costs to do nothing.")
def main(services: int, addresses: int, idle: float) -> None:
    """Measure an instance of many services, with three backends each."""
    if os.geteuid() != 0:
        raise click.ClickException("this needs root")
    with tempfile.TemporaryDirectory() as directory, Lab(clients=1, backends=1) as lab:
        path = Path(directory, "lb.yaml")
        flag = Path(directory, "up")
        flag.touch()
        path.write_text(configuration(services, addresses, flag))
        click.echo(f"{services} services with {BACKENDS} backends each, {addresses} VIPs")
        with measured("check"):
            subprocess.run([PROGRAM, "check", str(path)], check=True, stdout=subprocess.DEVNULL)
        with measured("ready"):
            running = Running(lab.balancer, path)
            running.wait_until_ready()
        click.echo(f"{'':38} {1000 * running.cpu():9.0f} ms of CPU")
        try:
            measure(running, path, idle)
            lose_health(running, flag)
            pss, _ = memory(running.pids())
            click.echo(f"{'memory (PSS)':30} {pss / 1e6:6.0f} MB")
        finally:
            with measured("stop"):
                running.stop()


def lose_health(running: Running, flag: Path) -> None:
    """The last service's backends fall. The checks themselves cost as much before and after."""

    def effective() -> float:
        answer = running.ask("GET", "/v1/services")
        assert isinstance(answer, dict)
        last = answer["services"][-1]
        return sum(float(one["effective_weight"]) for one in last["backends"])

    if not effective():
        raise click.ClickException("the health checks fail")
    pause = 3.0
    before = running.cpu()
    time.sleep(pause)
    checks = running.cpu() - before
    before = running.cpu()
    flag.unlink()
    time.sleep(pause)
    spent = running.cpu() - before - checks
    if effective():
        raise click.ClickException("a change of health was not applied")
    click.echo(f"{'health of three backends':40} {1000 * max(0.0, spent):7.0f} ms of CPU")


def measure(running: Running, path: Path, idle: float) -> None:
    """The changes, one after the other."""
    time.sleep(2)
    with measured("idle", running):
        time.sleep(idle)
    change = {"service": "s0", "backend": backend(0, 1)}
    for title, action in (("drain", "drain"), ("enable", "enable"), ("weight", "weight")):
        body = {**change, "action": action} | ({"weight": 3} if action == "weight" else {})
        with measured(title, running):
            running.ask("POST", "/v1/changes", body)
    with measured("add a backend", running):
        running.ask("POST", "/v1/changes", {**change, "action": "add", "backend": "10.0.1.250:80"})
    with measured("reload without a difference", running):
        running.ask("POST", "/v1/reload")
    path.write_text(path.read_text().replace(f"- {backend(1, 1)}\n", "- 10.0.1.251:80\n"))
    with measured("reload with another backend", running):
        running.ask("POST", "/v1/reload")
    with measured("status", running):
        running.ask("GET", "/v1/status")
    with measured("backends", running):
        running.ask("GET", "/v1/services")


if __name__ == "__main__":
    main(prog_name="python -m scripts.bench.scale")
