"""Samples as a chart (PNG)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from scripts.bench.figures import PLOTTED, Figure, Sample
from scripts.bench.report import BASES, number
from scripts.bench.summary import by_round, ratios, spread

FEATHERLB, PEER, BASE = "#1f6f8b", "#b9b9b9", "#7d7d7d"
COLUMNS = 2
PANEL_WIDTH, ROW_HEIGHT = 8.0, 0.34


def draw(path: Path, samples: Sequence[Sample], titles: Mapping[str, str], caption: str) -> None:
    """One panel a figure, one bar a peer: the median from zero, a line from the smallest to the
    largest value, a dot for each round, and the ratios to the bases in words."""
    figures = [
        figure for figure in PLOTTED if any(by_round(samples, name, figure) for name in titles)
    ]
    rows = -(-len(figures) // COLUMNS)
    height = ROW_HEIGHT * len(titles) + 0.9
    canvas, axes = pyplot.subplots(
        rows,
        COLUMNS,
        figsize=(COLUMNS * PANEL_WIDTH, rows * height + 1.0),
        squeeze=False,
        layout="constrained",
    )
    for axis, figure in zip(axes.flat, figures, strict=False):
        _panel(axis, samples, titles, figure)
    for axis in axes.flat[len(figures) :]:
        axis.set_axis_off()
    canvas.supxlabel(caption, fontsize=8, color="#444444", wrap=True)
    canvas.savefig(path, dpi=100)
    pyplot.close(canvas)


def _panel(axis: Any, samples: Sequence[Sample], titles: Mapping[str, str], figure: Figure) -> None:
    bases = {base: by_round(samples, base, figure) for base in BASES}
    right = 0.0
    for row, name in enumerate(titles):
        values = by_round(samples, name, figure)
        found = spread(values.values())
        if found is None:
            axis.text(0, row, " not measured", va="center", fontsize=8, color="#777777")
            continue
        right = max(right, found.high)
        axis.barh(row, found.median, color=_color(name), height=0.72)
        axis.plot([found.low, found.high], [row, row], color="black", linewidth=1.2)
        axis.plot(list(values.values()), [row] * len(values), "o", color="black", markersize=2.5)
        label = number(found.median, figure.decimals)
        for base, called in BASES.items():
            pairs = spread(ratios(values, bases[base]))
            if pairs and name != base:
                label += f"   {pairs.median:.2f}x {called}"
        axis.annotate(
            label,
            (found.high, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    haproxy = spread(bases["haproxy"].values())
    if haproxy:
        axis.axvline(haproxy.median, color="#c0392b", linewidth=0.8, linestyle=":")
    better = "more" if figure.more_is_better else "less"
    axis.set_title(f"{figure.title}  ({better} is better)", fontsize=10, loc="left")
    axis.set_yticks(range(len(titles)), list(titles.values()), fontsize=8)
    axis.invert_yaxis()
    # Room on the right for the labels.
    axis.set_xlim(0, right * 1.8 or 1)
    axis.tick_params(axis="x", labelsize=8)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _color(name: str) -> str:
    if name.startswith("featherlb"):
        return FEATHERLB
    return BASE if name in BASES else PEER
