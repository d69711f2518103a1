"""Checks the results of a run: one sentence per fault. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from scripts.e2e.access import AccessLog
from scripts.e2e.load import Load
from scripts.e2e.promises import PROMISES, Pool

ANSWERED = {"200", "499"}
"""nginx's statuses for a response, and for one that the client didn't wait for: wrk stops in the
middle of its last requests."""


def check(
    scheduler: str,
    weights: Sequence[int],
    loads: Sequence[Load],
    logs: Sequence[AccessLog],
    peers: Mapping[str, set[str]],
    connections: int,
) -> list[str]:
    """`loads` are by client, `logs` by backend, `peers` the addresses that each client may have at
    the backends, `connections` the number that each client opens."""
    return [
        *_errors(loads),
        *_statuses(logs),
        *_sums(loads, logs, connections),
        *_addresses(logs, peers),
        *_promise(scheduler, weights, loads, logs, connections),
    ]


def _errors(loads: Sequence[Load]) -> Iterator[str]:
    for number, load in enumerate(loads, 1):
        for kind, count in load.errors.items():
            if count:
                yield f"client {number} counted {count} {kind} errors"


def _statuses(logs: Sequence[AccessLog]) -> Iterator[str]:
    for number, log in enumerate(logs, 1):
        for status, count in log.statuses.items():
            if status not in ANSWERED:
                yield f"backend {number} answered {count} requests with status {status}"


def _sums(loads: Sequence[Load], logs: Sequence[AccessLog], connections: int) -> Iterator[str]:
    """Each response that a client saw comes from one backend, once.

    When wrk stops, each of its connections may have one request in flight: a backend may have
    answered it, and wrk doesn't count it.
    """
    for number, load in enumerate(loads, 1):
        answered = sum(log.requests[str(number)] for log in logs)
        if not load.requests <= answered <= load.requests + connections:
            yield (
                f"client {number} saw {load.requests} requests answered on {connections}"
                f" connections, but the backends answered {answered}"
            )
    if unknown := {client for log in logs for client in log.requests} - _names(loads):
        yield f"the backends answered requests of unknown clients: {', '.join(sorted(unknown))}"


def _addresses(logs: Sequence[AccessLog], peers: Mapping[str, set[str]]) -> Iterator[str]:
    for number, log in enumerate(logs, 1):
        for client, address in sorted(log.peers):
            if address not in peers.get(client, set()):
                yield f"backend {number} saw client {client} at {address}"


def _promise(
    scheduler: str,
    weights: Sequence[int],
    loads: Sequence[Load],
    logs: Sequence[AccessLog],
    connections: int,
) -> Iterator[str]:
    by_client = {name: [log.connections[name] for log in logs] for name in sorted(_names(loads))}
    silent = connections * len(loads) - sum(map(sum, by_client.values()))
    if silent < 0:
        yield f"the clients opened {-silent} extra connections: some had broken"
        return
    # Each wrk first opens a connection to test the server, and sends nothing on it.
    yield from PROMISES[scheduler].broken(Pool(weights, by_client, silent + len(loads)))


def _names(loads: Sequence[Load]) -> set[str]:
    return {str(number) for number in range(1, len(loads) + 1)}
