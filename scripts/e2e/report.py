"""Results as a table, as text and as data for JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from scripts.e2e.run import Result


def table(results: Sequence[Result]) -> Table:
    """A row for each run."""
    drawn = Table(box=None, header_style="bold")
    for title in ("NAT", "scheduler"):
        drawn.add_column(title, no_wrap=True)
    for title in ("requests/s", "p50 ms", "p99 ms", "max ms", "errors"):
        drawn.add_column(title, justify="right", no_wrap=True)
    for title in ("requests by backend", "connections by backend", ""):
        drawn.add_column(title)
    for result in results:
        drawn.add_row(
            result.nat,
            result.scheduler,
            f"{result.rate:,.0f}",
            *(f"{result.latencies[name]:.2f}" for name in ("p50", "p99", "max")),
            str(sum(result.errors.values())),
            " ".join(f"{backend.requests:,}" for backend in result.backends),
            " ".join(str(backend.connections) for backend in result.backends),
            "[red]failed" if result.faults else "[green]as promised",
        )
    return drawn


def describe(result: Result) -> str:
    """One run in full, as plain text."""
    lines = [
        f"=== {result.scheduler}, {result.nat}: {result.promise}",
        result.output.rstrip(),
        *(
            f"{one.name} {one.address} weight {one.weight}:"
            f" {one.requests} requests on {one.connections} connections"
            for one in result.backends
        ),
        *(f"FAILED: {fault}" for fault in result.faults),
    ]
    return "\n".join(lines) + "\n\n"


def document(results: Sequence[Result]) -> dict[str, Any]:
    """All runs for JSON, but for what wrk printed."""
    return {
        "runs": [
            {key: value for key, value in asdict(result).items() if key != "output"}
            for result in results
        ]
    }
