"""The Markdown tables."""

from scripts.bench.report import describe, full, headline, number
from scripts.bench.summary import Spread
from tests.unit.scripts.samples import FACTS, TITLES, sample

FEATHERLB = "featherlb-netlink-dnat"
SAMPLES = [
    sample(round=number, peer=peer, rate=rate * number, p99=0.01)
    for number in (1, 2, 3)
    for peer, rate in ((FEATHERLB, 15_000.0), ("haproxy", 10_000.0), ("nftables", 20_000.0))
]


def cells(markdown: str, row: str) -> list[str]:
    """The cells of the first table row of this name."""
    line = next(line for line in markdown.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_numbers() -> None:
    assert number(102_449.0, 0) == "102,400"
    assert number(9_876.5, 0) == "9,876"
    assert number(8.96, 1) == "9.0"
    assert describe(Spread(2.0, 1.0, 3.5), 1) == "2.0 (1.0-3.5)"
    assert describe(None, 1) == "-"


def test_the_short_table_has_medians_and_says_where_they_come_from() -> None:
    text = headline(SAMPLES, TITLES, FACTS)
    assert cells(text, "featherlb") == ["30,000 (1.50)", "10.00 (1.00)"]
    assert cells(text, "HAProxy") == ["20,000 (1.00)", "10.00 (1.00)"]
    last = text.splitlines()[-1]
    for fact in (
        "2026-01-02",
        "2 cores",
        "6.1.0",
        "compiled",
        "haproxy 2.6.12",
        "of 3 alternat",
        "load average 0.0",
    ):
        assert fact in last


def test_ratios_stand_beside_their_spread() -> None:
    text = full(SAMPLES, TITLES, FACTS, [])
    to_haproxy, to_kernel = text.split("## Ratios to ")[1:]
    assert cells(to_haproxy, "keep-alive requests/s, 64 connections") == [
        "1.50 (1.50-1.50)",
        "1.00 (1.00-1.00)",
        "2.00 (2.00-2.00)",
    ]
    assert cells(to_kernel, "keep-alive requests/s, 64 connections")[0] == "0.75 (0.75-0.75)"


def test_a_balancer_without_processes_has_no_cost_of_its_own() -> None:
    samples = [sample(), sample(peer="nftables", cpu_peer=0.0, pss=0, rss_peak=0)]
    text = full(samples, TITLES, FACTS, [])
    processor = text.partition("## CPU")[2]
    assert cells(processor, "HAProxy")[0] == "250.0 (250.0-250.0)"
    assert cells(processor, "DNAT") == ["-", "750.0 (750.0-750.0)"]
    assert cells(text.partition("## Memory")[2], "DNAT") == ["-", "-"]


def test_failures_and_errors_are_told() -> None:
    text = full([sample(errors=7)], TITLES, FACTS, ["nginx, start, round 2: it broke"])
    assert "- nginx, start, round 2: it broke" in text
    assert "- haproxy, keepalive-64, round 1: 7 errors in 2000 requests" in text
    assert "with errors" not in full([sample()], TITLES, FACTS, [])
