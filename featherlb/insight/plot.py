"""A simulation as a picture: what each backend got, and what moved. Needs matplotlib, which the
extra `plot` installs."""

from pathlib import Path
from typing import Any

from featherlb.insight.simulate import Simulation
from featherlb.model.errors import ConfigError, HostError

SUFFIXES = (".svg", ".png")
PANEL_WIDTH, ROW_HEIGHT = 9.0, 0.2


def require(path: Path) -> None:
    """ConfigError if no picture can be written to a file of this name, HostError if matplotlib is
    missing."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError([f"--plot {path}: the name has to end in .svg or .png"])
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise HostError(
            "--plot needs matplotlib: install it with `pip install 'featherlb[plot]'`"
        ) from None


def draw(path: Path, simulation: Simulation) -> None:
    """Write the picture; HostError if the file can't be written."""
    from matplotlib.figure import Figure

    trials = simulation.trials
    rows = max(len(trials[0].shares), len(trials[0].moves)) * (len(trials) + 1)
    figure = Figure(figsize=(2 * PANEL_WIDTH, ROW_HEIGHT * rows + 1.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    shares = trials[0].shares
    _bars(
        left,
        f"{simulation.service}: share of the flows, by backend",
        [f"{one.backend}\nweight {one.weight}" for one in shares],
        {trial.scheduler: [one.share for one in trial.shares] for trial in trials},
        [one.wanted for one in shares],
        "by weight",
    )
    moves = trials[0].moves
    _bars(
        right,
        "flows that change backend",
        [one.change for one in moves],
        {trial.scheduler: [one.flows for one in trial.moves] for trial in trials},
        [one.least for one in moves],
        "minimum",
    )
    left.legend(fontsize=8)
    load = simulation.load
    figure.supxlabel(
        f"{load.flows:,} flows of {simulation.clients:,} clients in {load.clients},"
        f" {load.rate:,g} per second, open for {load.duration:g} s on average, seed {load.seed}",
        fontsize=8,
    )
    try:
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise HostError(f"cannot write {path}: {error.strerror}") from None


def _bars(
    axis: Any,
    title: str,
    rows: list[str],
    values: dict[str, list[float]],
    targets: list[float],
    target: str,
) -> None:
    """Groups of bars in per cent, one group a row, with a line at each row's target."""
    height = 0.8 / len(values)
    for index, (label, parts) in enumerate(values.items()):
        places = [row - 0.4 + height * (index + 0.5) for row in range(len(rows))]
        bars = axis.barh(places, [100 * part for part in parts], height=0.9 * height, label=label)
        axis.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    for row, wanted in enumerate(targets):
        axis.plot(
            [100 * wanted] * 2,
            [row - 0.45, row + 0.45],
            color="black",
            linewidth=1.2,
            label=target if row == 0 else None,
        )
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("%", fontsize=8)
    axis.set_title(title, fontsize=10)
