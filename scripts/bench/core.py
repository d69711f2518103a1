"""`python -m scripts.bench.core`: how fast the packet processor is alone, without a kernel.

Measures it compiled and interpreted, with few and many flows, each in a process of its own (see
`feed`), and prints a Markdown table.
"""

import json
import os
import subprocess
import sys
from typing import Any

import click

import featherlb
from scripts.bench.report import table

FORMS = {"compiled": "0", "interpreted": "1"}
"""The value of FEATHERLB_PURE for each."""


@click.command()
@click.option(
    "--flows", default="1000,100000,1000000", show_default=True, help="Sizes of the flow table."
)
@click.option(
    "--form",
    type=click.Choice(list(FORMS)),
    help="Form of the packet path (default: all that are built).",
)
@click.option("--seconds", default=0.5, show_default=True, help="Duration of each operation.")
def main(flows: str, form: str | None, seconds: float) -> None:
    """Measure the packet processor alone, in packets per second."""
    if form:
        forms = [form]
    else:
        forms = list(FORMS) if featherlb.COMPILED else ["interpreted"]
        if not featherlb.COMPILED:
            click.echo("The compiled form is not built here: measuring the interpreted one.\n")
    runs = []
    for name in forms:
        for size in flows.split(","):
            click.echo(f"measuring {name}, {int(size):,} flows", err=True)
            runs.append(measure(name, int(size), seconds))
    click.echo(describe(runs))


def measure(form: str, flows: int, seconds: float) -> dict[str, Any]:
    """Run `feed` in a process of its own; returns its output. ClickException if it runs in the
    wrong form."""
    ended = subprocess.run(
        [sys.executable, "-m", "scripts.bench.feed", str(flows), str(seconds)],
        env=os.environ | {"FEATHERLB_PURE": FORMS[form]},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    run: dict[str, Any] = json.loads(ended.stdout)
    if run["compiled"] != (form == "compiled"):
        raise click.ClickException(
            f"the {form} form does not run here; build it with: pip install --editable ."
        )
    return run


def describe(runs: list[dict[str, Any]]) -> str:
    """Operations down, runs across; packets/s and nanoseconds a packet."""
    forms = ["compiled" if run["compiled"] else "interpreted" for run in runs]
    header = [f"{form}, {run['flows']:,} flows" for form, run in zip(forms, runs, strict=True)]
    rows = [
        [name, *(f"{1e9 / run['nanoseconds'][name]:,.0f} ({run['nanoseconds'][name]:,.0f} ns)"
                 for run in runs)]
        for name in runs[0]["nanoseconds"]
    ]  # fmt: skip
    rows.append(["memory of the process, MB", *(f"{run['resident'] / 1e6:,.0f}" for run in runs)])
    rows.append(["of it by the flows, MB", *(f"{run['memory'] / 1e6:,.0f}" for run in runs)])
    return table(["per second", *header], rows)


if __name__ == "__main__":
    main(prog_name="python -m scripts.bench.core")
