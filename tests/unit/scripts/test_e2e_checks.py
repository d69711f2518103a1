"""Which runs of the end-to-end test are good ones: sums, errors, addresses."""

from dataclasses import replace

import pytest

from scripts.e2e import access
from scripts.e2e.checks import check
from scripts.e2e.load import ERRORS, Load, parse

WRK = """Running 1s test @ http://10.213.0.200:80/
  2 threads and 64 connections
  23978 requests in 1.00s, 3.52MB read
{"requests": 6, "duration": 1500000, "p50": 20285, "p75": 27781, "p90": 49546, "p99": 98030, \
"p999": 132748, "max": 154225, "connect": 0, "read": 0, "write": 0, "status": 0, "timeout": 0}
"""
PEERS = {"1": {"10.0.0.2"}, "2": {"10.0.0.3"}}


def line(client: int, connection: int, number: int = 1, status: int = 200) -> str:
    return f"1795326200.158 10.0.0.{client + 1} {client} {connection} {number} {status}\n"


FIRST = line(1, 1) + line(1, 1, 2) + line(1, 1, 3) + line(2, 3) + line(2, 3, 2) + line(2, 3, 3)
SECOND = line(1, 7) + line(1, 7, 2) + line(1, 7, 3) + line(2, 9) + line(2, 9, 2) + line(2, 9, 3)


def faults(first: str = FIRST, second: str = SECOND, load: Load | None = None) -> list[str]:
    """Of a run with two clients that open two connections each, and two backends."""
    logs = [access.parse(first), access.parse(second)]
    return check("round-robin", (1, 1), [load or parse(WRK), parse(WRK)], logs, PEERS, 2)


def test_what_wrk_prints() -> None:
    load = parse(WRK)
    assert (load.requests, load.rate) == (6, 4.0)
    assert (load.latencies["p50"], load.latencies["max"]) == (20.285, 154.225)
    assert load.errors == dict.fromkeys(ERRORS, 0)


def test_wrk_that_could_not_connect() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        parse("unable to connect to 10.213.0.200:80 Connection refused\n")


def test_what_nginx_writes() -> None:
    log = access.parse(FIRST)
    assert (log.requests, log.connections) == ({"1": 3, "2": 3}, {"1": 1, "2": 1})
    assert log.peers == {("1", "10.0.0.2"), ("2", "10.0.0.3")}
    assert log.times == [1795326200158] * 6


def test_a_good_run() -> None:
    assert faults() == []


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_of_any_kind_is_a_fault(kind: str) -> None:
    load = parse(WRK)
    assert faults(load=replace(load, errors=load.errors | {kind: 2})) == [
        f"client 1 counted 2 {kind} errors"
    ]


def test_each_connection_may_have_a_request_on_its_way_at_the_end() -> None:
    assert faults(first=FIRST + line(1, 1, 4, 499), second=SECOND + line(1, 7, 4)) == []
    assert faults(first=FIRST + line(1, 1, 4) + line(1, 1, 5), second=SECOND + line(1, 7, 4)) == [
        "client 1 saw 6 requests answered on 2 connections, but the backends answered 9"
    ]


def test_an_answer_that_no_backend_gave_is_a_fault() -> None:
    assert faults(second=SECOND.replace(line(2, 9, 3), "")) == [
        "client 2 saw 6 requests answered on 2 connections, but the backends answered 5"
    ]


def test_requests_of_others_are_a_fault() -> None:
    assert faults(second=SECOND + line(3, 11)) == [
        "the backends answered requests of unknown clients: 3",
        "backend 2 saw client 3 at 10.0.0.4",
    ]


def test_a_status_that_is_no_answer_is_a_fault() -> None:
    assert faults(first=FIRST.replace(line(1, 1), line(1, 1, 1, 400))) == [
        "backend 1 answered 1 requests with status 400"
    ]


def test_another_address_than_the_clients_own_is_a_fault() -> None:
    strange = SECOND.replace("10.0.0.3", "10.0.0.1")
    assert faults(second=strange) == ["backend 2 saw client 2 at 10.0.0.1"]


def test_a_connection_more_is_one_that_was_broken() -> None:
    assert faults(first=FIRST.replace(line(1, 1, 3), line(1, 2))) == [
        "the clients opened 1 extra connections: some had broken"
    ]


def test_the_schedulers_promise_is_checked() -> None:
    loads = [parse(WRK), parse(WRK)]
    logs = [access.parse(FIRST), access.parse(SECOND)]
    assert check("source-hash", (1, 1), loads, logs, PEERS, 2) == [
        "client 1 was sent to 2 backends: [1, 1]",
        "client 2 was sent to 2 backends: [1, 1]",
    ]
    logs = [access.parse(FIRST + SECOND), access.parse("")]
    assert check("source-hash", (1, 1), loads, logs, PEERS, 2) == []
