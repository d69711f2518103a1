"""What wrk (with wrk.lua) and iperf3 print, as they printed it."""

import json

import pytest

from scripts.bench.parse import Requests, Transfer, parse_iperf3, parse_wrk

WRK = """Running 1s test @ http://10.0.0.10:80/
  2 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.02ms    2.39ms  24.46ms   77.90%
    Req/Sec    12.02k     1.58k   15.10k    70.00%
  23978 requests in 1.00s, 3.52MB read
Requests/sec:  23914.13
Transfer/sec:      3.51MB
{"requests": 23978, "microseconds": 1002671, "p50": 2431, "p99": 9840, "errors": 3}
"""


def test_wrk() -> None:
    rate = 23978 / 1.002671
    assert parse_wrk(WRK) == Requests(23978, rate, p50=0.002431, p99=0.00984, errors=3)


def test_wrk_that_could_not_connect() -> None:
    with pytest.raises(ValueError, match="unable to connect to"):
        parse_wrk("unable to connect to 10.0.0.10:80 Connection refused\n")


def test_wrk_without_any_answer() -> None:
    line = '{"requests": 0, "microseconds": 1000000, "p50": 0, "p99": 0, "errors": 64}\n'
    with pytest.raises(ValueError, match="no request was answered, 64 failed"):
        parse_wrk(line)


def test_iperf3_counts_what_was_received() -> None:
    end = {
        "sum_sent": {"bits_per_second": 2e9, "sender": True},
        "sum_received": {"bits_per_second": 1.5e9, "sender": True},
    }
    assert parse_iperf3(json.dumps({"start": {}, "intervals": [], "end": end})) == Transfer(1.5e9)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ('{"start": {}, "error": "unable to connect to server"}', "iperf3: unable to connect"),
        ("", "no report"),
        ("iperf3: parameter error", "no report but 'iperf3: parameter error'"),
    ],
)
def test_iperf3_that_failed(output: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_iperf3(output)
