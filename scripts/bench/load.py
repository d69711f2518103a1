"""Runs a workload from the client's namespace and returns its results."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from featherlb.lab import Node
from scripts.bench.figures import Kind, Workload
from scripts.bench.parse import Requests, Transfer, parse_iperf3, parse_wrk

SCRIPT = Path(__file__).with_name("wrk.lua")
GRACE = 15
"""Seconds that a load generator may take beyond its time before it counts as hung."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Where the client connects, as ADDRESS:PORT: over HTTP, wrk's threads in turn; and for bulk.

    `threads` are wrk's.
    """

    web: list[str]
    bulk: str
    threads: int


class LoadError(Exception):
    """A workload could not be run, with the reason."""


def run(client: Node, workload: Workload, targets: Targets, seconds: int) -> Requests | Transfer:
    """Run a workload for some seconds. LoadError if the load generator failed."""
    try:
        if workload.kind in (Kind.KEEPALIVE, Kind.CONNECT):
            return parse_wrk(_wrk(client, workload, targets, seconds))
        return parse_iperf3(_iperf3(client, workload, targets, seconds))
    except ValueError as error:
        raise LoadError(str(error)) from None
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"{error.cmd[4]} did not end within {error.timeout:.0f} s") from None


def _wrk(client: Node, workload: Workload, targets: Targets, seconds: int) -> str:
    command = ["wrk", f"-t{targets.threads}", f"-c{workload.parallel}", f"-d{seconds}s"]
    command += ["-s", str(SCRIPT)]
    if workload.kind is Kind.CONNECT:
        command += ["-H", "Connection: close"]
    command.append(f"http://{targets.web[0]}/")
    return _output(client, command, seconds, {"BENCH_TARGETS": " ".join(targets.web)})


def _iperf3(client: Node, workload: Workload, targets: Targets, seconds: int) -> str:
    address, _, port = targets.bulk.partition(":")
    command = ["iperf3", "-c", address, "-p", port, "-t", str(seconds)]
    command += ["-P", str(workload.parallel), "-i", "0", "--connect-timeout", "3000", "--json"]
    if workload.kind is Kind.BULK_REPLY:
        command.append("--reverse")
    return _output(client, command, seconds, {})


def _output(node: Node, command: list[str], seconds: int, environment: dict[str, str]) -> str:
    ended = subprocess.run(
        node.command(command),
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds + GRACE,
    )
    return ended.stdout
