"""`python -m scripts.e2e.day`: a day in the life, under load; tests/e2e/runs/<time>-day.*.

`make e2e-day` installs what it needs first. Exits with 1 if a scene fails.
"""

import shutil
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from scripts.e2e import engine, record
from scripts.e2e.engine import EngineError, Project
from scripts.e2e.scenes import Day, Scene
from scripts.e2e.settings import DAY_CONFIG, DAY_FILE, TOP, Settings


@click.command()
@click.option("--no-build", is_flag=True, help="Use the existing images.")
def main(no_build: bool) -> None:
    """Restart, add, kill and reload under load, and count what the clients lose."""
    if obstacle := engine.obstacle():
        raise click.ClickException(obstacle)
    console = Console(width=None if sys.stdout.isatty() else 160)
    settings = Settings()
    try:
        if not no_build:
            engine.build(TOP)
        scenes = _run(settings, console)
    except EngineError as error:
        raise click.ClickException(str(error)) from None
    facts = record.facts("scripts.e2e.day", settings)
    text = "".join(f"=== {scene.name}\n{scene.output}\n" for scene in scenes)
    document = [{k: v for k, v in asdict(scene).items() if k != "output"} for scene in scenes]
    path = record.write("-day", facts, text, table(scenes), {"scenes": document})
    console.print(table(scenes))
    console.print(f"results are in {path}{{.log, .json}}")
    if any(scene.faults for scene in scenes):
        raise SystemExit(1)


def _run(settings: Settings, console: Console) -> list[Scene]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="featherlb-e2e-")))
        # Root in the container can't read other users' files.
        directory.chmod(0o755)
        shutil.copy(DAY_CONFIG, directory)
        project = Project(DAY_FILE, {"FEATHERLB_CONFIG_DIR": str(directory)})
        services = ("featherlb", "client", "backend1", "backend2", "backend3")
        stack.enter_context(project.up(f"--scale=client={settings.clients}", *services))
        day = Day(project, directory, settings)
        day.balancer.wait_until_ready()
        scenes = []
        for scene in day.scenes():
            scenes.append(scene)
            console.print(f"{scene.name}: {sum(scene.errors.values())} requests failed")
            for fault in scene.faults:
                console.print(f"[red]{fault}")
        return scenes


def table(scenes: list[Scene]) -> Table:
    """A row for each scene."""
    drawn = Table(box=None, header_style="bold")
    drawn.add_column("scene", no_wrap=True)
    for title in ("answered", "requests/s", "failed", "may fail", "longest gap, ms"):
        drawn.add_column(title, justify="right", no_wrap=True)
    drawn.add_column("answered by backend")
    drawn.add_column("")
    for scene in scenes:
        drawn.add_row(
            scene.name,
            f"{scene.answered:,}",
            f"{scene.rate:,.0f}",
            str(sum(scene.errors.values())),
            "measured" if scene.allowed is None else str(scene.allowed),
            f"{scene.gap:,}",
            " ".join(f"{count:,}" for count in scene.requests.values()),
            "[red]failed" if scene.faults else "[green]passed",
        )
    return drawn


if __name__ == "__main__":
    main(prog_name="python -m scripts.e2e.day")
