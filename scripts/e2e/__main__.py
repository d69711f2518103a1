"""`python -m scripts.e2e`: every scheduler under load in containers; tests/e2e/runs/<time>.*.

`make e2e` installs what it needs first. Exits with 1 if a run fails.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from featherlb.core.pools import schedulers as schedulers
from scripts.e2e import engine, record, report
from scripts.e2e.engine import EngineError
from scripts.e2e.run import Result, run
from scripts.e2e.settings import TOP, Settings

DEFAULT = Settings()


def _list(kind: Callable[[str], Any]) -> Callable[..., tuple[Any, ...]]:
    def split(context: click.Context, parameter: click.Parameter, value: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(word) for word in value.split(","))
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return split


def _joined(values: tuple[Any, ...]) -> str:
    return ",".join(map(str, values))


def _mode(word: str) -> str:
    if word not in DEFAULT.nat:
        raise ValueError(f"{word} is not a NAT mode: {', '.join(DEFAULT.nat)}")
    return word


@click.command(context_settings={"show_default": True})
@click.option(
    "--seconds", default=DEFAULT.seconds, type=click.IntRange(1), help="Duration of the load."
)
@click.option(
    "--threads", default=DEFAULT.threads, type=click.IntRange(1), help="wrk threads, in total."
)
@click.option(
    "--connections",
    default=DEFAULT.connections,
    type=click.IntRange(1),
    help="Connections, in total.",
)
@click.option(
    "--clients", default=DEFAULT.clients, type=click.IntRange(1), help="Client containers."
)
@click.option(
    "--weights",
    default=_joined(DEFAULT.weights),
    callback=_list(int),
    help="Weights of the backends, one per backend.",
)
@click.option("--nat", default=_joined(DEFAULT.nat), callback=_list(_mode), help="NAT modes.")
@click.option("--datapath", default=DEFAULT.datapath, help="How packets reach featherlb.")
@click.option(
    "--schedulers",
    "chosen",
    default=_joined(DEFAULT.schedulers),
    callback=_list(schedulers.canonical_name),
    help="Schedulers to test.",
)
@click.option(
    "--timeout",
    default=DEFAULT.timeout,
    type=click.IntRange(1),
    help="Seconds until a request without a response fails.",
)
@click.option("--no-build", is_flag=True, help="Use the existing images.")
def main(
    seconds: int,
    threads: int,
    connections: int,
    clients: int,
    weights: tuple[int, ...],
    nat: tuple[str, ...],
    datapath: str,
    chosen: tuple[str, ...],
    timeout: int,
    no_build: bool,
) -> None:
    """Run each scheduler under load in containers, count on both sides, and compare."""
    settings = Settings(
        seconds=seconds,
        threads=threads,
        connections=connections,
        clients=clients,
        weights=weights,
        nat=nat,
        datapath=datapath,
        schedulers=chosen,
        timeout=timeout,
    )
    if obstacle := engine.obstacle():
        raise click.ClickException(obstacle)
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        results = _run(settings, console, no_build)
    except EngineError as error:
        raise click.ClickException(str(error)) from None
    failed = _write(results, settings, console)
    if failed:
        raise SystemExit(1)


def _run(settings: Settings, console: Console, no_build: bool) -> list[Result]:
    if not no_build:
        with console.status("building the images") if console.is_terminal else nullcontext():
            engine.build(TOP)
    columns = (TextColumn("{task.description:40}"), BarColumn(), TimeElapsedColumn())
    results: list[Result] = []
    with Progress(*columns, console=console, transient=True) as progress:
        steps = len(settings.nat) * len(settings.schedulers)
        task = progress.add_task("starting the containers", total=steps * settings.seconds)

        def tick(nat: str, scheduler: str, gone: float) -> None:
            done = len(results) * settings.seconds + gone
            progress.update(task, description=f"{nat}: {scheduler}", completed=done)

        for result in run(settings, tick):
            results.append(result)
            if not console.is_terminal:
                console.print(f"{result.nat}, {result.scheduler}: {result.rate:,.0f} requests/s")
            for fault in result.faults:
                console.print(f"[red]{result.nat}, {result.scheduler}: {fault}")
    return results


def _write(results: list[Result], settings: Settings, console: Console) -> int:
    """Write and show the results; returns the number of failed runs."""
    drawn = report.table(results)
    path = record.write(
        "",
        record.facts("scripts.e2e", settings),
        "".join(map(report.describe, results)),
        drawn,
        report.document(results),
    )
    console.print(drawn)
    files = ".log, .json"
    try:
        from scripts.e2e import plot
    except ImportError:
        console.print("no plot: matplotlib is not installed (pip install '.[bench]')")
    else:
        caption = (
            f"{settings.threads} threads, {settings.connections} connections, "
            f"{settings.seconds} s each"
        )
        plot.draw(path.with_suffix(".png"), results, caption)
        files += ", .png"
    failed = sum(bool(result.faults) for result in results)
    console.print(f"{len(results) - failed} of {len(results)} runs as promised; {path}{{{files}}}")
    return failed


if __name__ == "__main__":
    main(prog_name="python -m scripts.e2e")
