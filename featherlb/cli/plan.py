"""`featherlb plan FILE`: what a reload to another configuration would do, without doing it."""

from pathlib import Path

import click

from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.cli.asking import instance_option, output_option, print_json
from featherlb.cli.help import examples
from featherlb.config.file import load
from featherlb.control.prepare import load_code
from featherlb.system import plugins


@click.command(epilog=examples("featherlb plan new.yaml"))
@click.argument("file", type=click.Path(path_type=Path))
@instance_option
@output_option
@click.pass_context
def plan(context: click.Context, file: Path, instance: int | None, output: str) -> None:
    """Show what a reload would do if FILE were the instance's configuration. Changes nothing.

    Compares FILE with the running instance, its open flows, its run-time changes and the host:
    shows which flows drain, move or end, how many hash slots and clients change backend, which
    rules, settings and addresses change, and what would be refused. Exits with 1 if the reload
    would be refused.
    """
    # Faults of the file, and of schedulers in it, are the same here as there.
    plugins.load_entry_points()
    load_code(load(file), {})
    request = schema.PlanRequest(config=file.read_text(encoding="utf-8"), path=str(file.absolute()))
    answer = connect(instance).post("/v1/plan", request, schema.Planned)
    if output == "json":
        print_json(answer)
    else:
        _show(answer)
    if answer.refused:
        context.exit(1)


def _show(answer: schema.Planned) -> None:
    for line in answer.differences or ["no difference"]:
        click.echo(line)
    for service in answer.services:
        click.echo(f"{service.name}: {_flows(service, answer)}")
        if service.slots is not None and service.least is not None:
            click.echo(
                f"  hash slots: {_percent(service.slots)} change backend"
                f" (at least {_percent(service.least)})"
            )
        if service.clients and service.moved is not None:
            click.echo(
                f"  clients: {service.moved:,} of {service.clients:,}"
                f" ({_percent(service.moved / service.clients)}) change backend"
            )
    if answer.sampled < answer.flows:
        click.echo(f"these are {answer.sampled:,} of {answer.flows:,} flows")
    if answer.host:
        click.echo("host")
        for line in answer.host:
            click.echo(f"  {line}")
    for line in answer.refused:
        click.echo(f"refused: {line}")


def _flows(service: schema.PlannedService, answer: schema.Planned) -> str:
    """Open flows by their fate, those that stay last."""
    fates = {fate: count for fate, count in service.flows.items() if count}
    stay = fates.pop("stay", 0)
    parts = [f"{count:,} {fate}" for fate, count in fates.items()]
    return f"open flows: {', '.join([*parts, f'{stay:,} stay'])}"


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"
