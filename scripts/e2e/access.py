"""Reads nginx's access log, in the format of docker/backend/nginx.conf."""

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from scripts.e2e.engine import Container, docker

PATH = "/var/log/nginx/access.log"


@dataclass(slots=True)
class AccessLog:
    """What one backend answered, by the name that each client gives itself."""

    requests: Counter[str] = field(default_factory=Counter)
    """By client."""
    connections: Counter[str] = field(default_factory=Counter)
    """By client, only those with a request."""
    statuses: Counter[str] = field(default_factory=Counter)
    peers: set[tuple[str, str]] = field(default_factory=set)
    """Pairs of client and address."""
    times: list[int] = field(default_factory=list)
    """Times of the requests, in Unix milliseconds, in order."""


def parse(text: str) -> AccessLog:
    """ValueError for a line of another format."""
    log = AccessLog()
    connections = set()
    for line in text.splitlines():
        time, address, client, connection, _, status = line.split()
        log.requests[client] += 1
        log.statuses[status] += 1
        log.peers.add((client, address))
        connections.add((client, connection))
        log.times.append(int(time.replace(".", "")))
    log.connections.update(client for client, _ in connections)
    return log


def text(backend: Container) -> str:
    """The complete log of a backend, running or dead."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory, "access.log")
        docker("cp", f"{backend.id}:{PATH}", str(copy))
        return copy.read_text()


def empty(backend: Container) -> None:
    """Empty the log; nginx appends, so nothing is lost or kept."""
    backend.exec("truncate", "--size=0", PATH)
