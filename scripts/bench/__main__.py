"""`python -m scripts.bench`: measure, and write bench-results/<date and time>/.

`make bench` installs what it needs first.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import featherlb
from scripts.bench import facts as machine
from scripts.bench import report
from scripts.bench.figures import QUICK, WORKLOADS, Sample
from scripts.bench.peers import Peer, peers
from scripts.bench.run import Failure, Plan, run
from scripts.bench.servers import site

RESULTS = Path(__file__).parents[2] / "bench-results"
PROGRAMS = ("ip", "ss", "nginx", "wrk", "iperf3")
LIMIT, QUICK_LIMIT = 540, 100
"""Seconds for the rounds, so that a run stays below ten (quick: two) minutes."""


def _chosen(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> list[str] | None:
    return value.split(",") if value else None


@click.command()
@click.option("--quick", is_flag=True, help="Three workloads, at most two minutes.")
@click.option(
    "--peers", "names", callback=_chosen, metavar="A,B", help="Balancers to measure; see --list."
)
@click.option(
    "--workloads", "wanted", callback=_chosen, metavar="A,B", help="Workloads to run; see --list."
)
@click.option(
    "--rounds", type=click.IntRange(1), default=9, help="Maximum number of rounds (default: 9)."
)
@click.option(
    "--seconds", type=click.IntRange(1), default=1, help="Duration of each sample (default: 1)."
)
@click.option(
    "--backends", type=click.IntRange(1), default=2, help="Number of backends (default: 2)."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIRECTORY",
    help="Directory of the results (default: bench-results/<date and time>).",
)
@click.option("--list", "listing", is_flag=True, help="List balancers and workloads.")
@click.option(
    "--markdown-only",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Measure nothing; print the short table of a results.json.",
)
def main(
    quick: bool,
    names: list[str] | None,
    wanted: list[str] | None,
    rounds: int,
    seconds: int,
    backends: int,
    output: Path | None,
    listing: bool,
    markdown_only: Path | None,
) -> None:
    """Compare featherlb with its peers in network namespaces, all in the same run. Needs root."""
    if listing:
        for peer in peers():
            click.echo(f"{peer.name:32} {peer.title}")
        for workload in WORKLOADS:
            click.echo(workload.name)
        return
    if markdown_only:
        stored = json.loads(markdown_only.read_text())
        samples = [Sample(**sample) for sample in stored["samples"]]
        click.echo(report.headline(samples, stored["peers"], stored["facts"]), nl=False)
        return
    _check_host()
    # Like Ctrl-C, so that the namespaces are deleted as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console()
    chosen = _choose_peers(names, console)
    workload_names = wanted or (list(QUICK) if quick else [w.name for w in WORKLOADS])
    if unknown := set(workload_names) - {w.name for w in WORKLOADS}:
        raise click.UsageError(f"unknown workload: {', '.join(sorted(unknown))}; see --list")
    plan = Plan(
        peers=chosen,
        workloads=[w for w in WORKLOADS if w.name in workload_names],
        seconds=seconds,
        rounds=rounds,
        deadline=time.monotonic() + (QUICK_LIMIT if quick else LIMIT),
    )
    facts = machine.gather(["python -m scripts.bench", *sys.argv[1:]])
    facts["build"] = "compiled" if featherlb.COMPILED else "interpreted"
    facts["backends"] = backends
    outcome = _run(plan, backends, console)
    directory = output or RESULTS / datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    _write(directory, plan, facts, outcome, console)


def _check_host() -> None:
    if os.geteuid() != 0:
        raise click.ClickException("creating network namespaces requires root: sudo make bench")
    if missing := [program for program in PROGRAMS if not shutil.which(program)]:
        raise click.ClickException(f"not installed: {', '.join(missing)}; run: make bench")


def _choose_peers(names: list[str] | None, console: Console) -> list[Peer]:
    known = {peer.name: peer for peer in peers()}
    if unknown := set(names or ()) - known.keys():
        raise click.UsageError(f"unknown balancer: {', '.join(sorted(unknown))}; see --list")
    chosen = []
    for name in names or known:
        if missing := known[name].missing:
            console.print(f"[yellow]{name} is skipped: {', '.join(missing)} not installed")
        else:
            chosen.append(known[name])
    return chosen


def _run(plan: Plan, backends: int, console: Console) -> tuple[list[Sample], list[Failure]]:
    steps = len(plan.peers) * len(plan.workloads)
    columns = (
        TextColumn("{task.description:48}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with (
        tempfile.TemporaryDirectory(prefix="featherlb-bench-") as directory,
        Progress(*columns, console=console, transient=True) as progress,
    ):
        task = progress.add_task("build the lab", total=steps)
        current = 0

        def show(number: int, peer: Peer, step: str) -> None:
            nonlocal current
            if number != current:
                current = number
                progress.reset(task, start=False)
                progress.start_task(task)
            progress.update(task, description=f"round {number}: {peer.name} {step}")
            if step != "start":
                progress.advance(task)

        with site(backends, Path(directory)) as ready:
            result = run(ready, plan, show)
    return result.samples, result.failures


def _write(
    directory: Path,
    plan: Plan,
    facts: dict[str, Any],
    outcome: tuple[list[Sample], list[Failure]],
    console: Console,
) -> None:
    samples, failures = outcome
    titles = {peer.name: peer.title for peer in plan.peers}
    directory.mkdir(parents=True, exist_ok=True)
    document = {
        "facts": facts,
        "peers": titles,
        "seconds": plan.seconds,
        "samples": [asdict(sample) for sample in samples],
        "failures": [asdict(failure) for failure in failures],
    }
    (directory / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    notes = [f"{f.peer}, {f.workload or 'start'}, round {f.round}: {f.reason}" for f in failures]
    (directory / "results.md").write_text(report.full(samples, titles, facts, notes))
    try:
        from scripts.bench import plot
    except ImportError:
        console.print("no plot: matplotlib is not installed (pip install '.[bench]')")
    else:
        plot.draw(directory / "results.png", samples, titles, report.origin(samples, facts))
    click.echo(report.headline(samples, titles, facts))
    for note in notes:
        click.echo(f"not measured: {note}")
    click.echo(f"results are in {directory}")
    if not samples:
        raise click.ClickException("nothing could be measured")


if __name__ == "__main__":
    main(prog_name="python -m scripts.bench")
