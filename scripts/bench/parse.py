"""Parses the output of the load generators."""

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Requests:
    """What wrk counted; `p50` and `p99` are seconds, `rate` is requests/s.

    `errors` are connections refused, broken or timed out, and answers other than 2xx and 3xx.
    """

    requests: int
    rate: float
    p50: float
    p99: float
    errors: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """The rate at iperf3's receiver, in bit/s."""

    rate: float


def parse_wrk(output: str) -> Requests:
    """The line of JSON that wrk.lua prints last. ValueError if there is none, or no request."""
    last = output.rstrip().rpartition("\n")[2]
    try:
        counts = json.loads(last)
    except json.JSONDecodeError:
        raise ValueError(f"wrk printed no result but {last!r}") from None
    if not counts["requests"]:
        raise ValueError(f"no request was answered, {counts['errors']} failed")
    return Requests(
        requests=counts["requests"],
        rate=counts["requests"] / (counts["microseconds"] / 1e6),
        p50=counts["p50"] / 1e6,
        p99=counts["p99"] / 1e6,
        errors=counts["errors"],
    )


def parse_iperf3(output: str) -> Transfer:
    """The report of `iperf3 --json`. ValueError with its error message if it failed."""
    try:
        report = json.loads(output)
    except json.JSONDecodeError:
        raise ValueError(f"iperf3 printed no report but {output[:80]!r}") from None
    if "error" in report:
        raise ValueError(f"iperf3: {report['error']}")
    return Transfer(rate=report["end"]["sum_received"]["bits_per_second"])
