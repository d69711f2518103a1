"""Results as a chart (PNG)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from scripts.e2e.run import Result

COLORS = ("#1f6f8b", "#99a8b2", "#e6b450", "#7a9e7e", "#b56576", "#6d597a")
FAULT = "#c0392b"


def draw(path: Path, results: Sequence[Result], caption: str) -> None:
    """One bar per run: requests/s on the left, each backend's share of the connections on the
    right, with a line at the share that its weight promises."""
    names = [f"{result.scheduler}, {result.nat}" for result in results]
    canvas, (rates, shares) = pyplot.subplots(
        1, 2, figsize=(14, 0.4 * len(results) + 1.6), sharey=True, layout="constrained"
    )
    for row, result in enumerate(results):
        rates.barh(row, result.rate, color=FAULT if result.faults else COLORS[0])
        rates.annotate(
            f"{result.rate:,.0f}   p99 {result.latencies['p99']:.1f} ms",
            (result.rate, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
        total = sum(backend.connections for backend in result.backends) or 1
        left = 0.0
        for number, backend in enumerate(result.backends):
            share = backend.connections / total
            shares.barh(row, share, left=left, color=COLORS[number % len(COLORS)])
            left += share
    first = results[0].backends
    weights = [backend.weight for backend in first]
    for number in range(1, len(weights)):
        place = sum(weights[:number]) / sum(weights)
        shares.axvline(place, color="black", linewidth=0.8, linestyle=":")
    rates.set_yticks(range(len(names)), names, fontsize=8)
    rates.invert_yaxis()
    rates.set_xlim(0, max(result.rate for result in results) * 1.45)
    rates.set_title("requests/s", fontsize=10, loc="left")
    shares.set_xlim(0, 1)
    shares.set_title("connections by backend (dotted: by weight)", fontsize=10, loc="left")
    canvas.supxlabel(caption, fontsize=8, color="#444444")
    canvas.savefig(path, dpi=100)
    pyplot.close(canvas)
