"""`featherlb backend`: changes the pools of a running instance."""

from collections.abc import Callable
from typing import Any

import click

from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.cli.asking import (
    DURATION,
    instance_option,
    new_table,
    output_option,
    print_json,
    print_table,
    short_time,
    shows,
)
from featherlb.control.overrides import Action
from featherlb.model import Role

_weight = click.IntRange(0, 65535)


@click.group()
def backend() -> None:
    """Change the backends of a running instance.

    SERVICE is a name or a VIP. Changes survive a worker restart and a reload and end with the
    instance; to keep them, write the output of `featherlb save` to the configuration file.
    """


def _verb(*more: Callable[[Any], Any]) -> Callable[[Callable[..., None]], click.Command]:
    """Decorator: a command that changes a backend, with the common parameters and `more`."""
    parameters = (
        click.argument("service"),
        click.argument("backend"),
        *more,
        click.option(
            "--for",
            "duration",
            type=DURATION,
            metavar="TIME",
            help="Revert automatically after TIME, such as 10m.",
        ),
        instance_option,
        output_option,
    )

    def make(function: Callable[..., None]) -> click.Command:
        for parameter in reversed(parameters):
            function = parameter(function)
        return backend.command()(function)

    return make


@_verb(
    click.option("--weight", type=_weight, help="Default: 1."),
    click.option("--role", type=click.Choice(list(map(str, Role))), help="Default: primary."),
    click.option(
        "--max-connections", type=click.IntRange(1), metavar="N", help="Limit of open flows."
    ),
)
def add(**options: Any) -> None:
    """Add a BACKEND (HOST:PORT) to the pool of a SERVICE."""
    _change(Action.ADD, **options)


@_verb()
def remove(**options: Any) -> None:
    """Remove a BACKEND from the pool of a SERVICE.

    Its flows continue until they end, unless the service has another `on_backend_down`.
    """
    _change(Action.REMOVE, **options)


@_verb(
    click.option(
        "--deadline", type=DURATION, metavar="TIME", help="Reset remaining flows after TIME."
    )
)
def drain(**options: Any) -> None:
    """Stop sending new flows to a BACKEND; existing flows continue."""
    _change(Action.DRAIN, **options)


@_verb()
def enable(**options: Any) -> None:
    """End the drain of a BACKEND."""
    _change(Action.ENABLE, **options)


@_verb(click.argument("weight", type=_weight))
def weight(**options: Any) -> None:
    """Set the WEIGHT of a BACKEND; 0 stops new flows."""
    _change(Action.WEIGHT, **options)


@shows("/v1/changes", schema.Changes)
def changes(answer: schema.Changes) -> None:
    """Show the run-time changes in force."""
    table = new_table(">number", "change", "service", "backend", ">weight", ">reverts in")
    for one in answer.changes:
        table.add_row(
            str(one.number),
            str(one.action),
            one.service,
            one.backend,
            "" if one.weight is None else str(one.weight),
            "" if one.remaining is None else short_time(max(0, one.remaining)),
        )
    print_table(table)


backend.add_command(changes)


@backend.command()
@click.argument("number", type=click.IntRange(min=1))
@instance_option
@output_option
def revert(number: int, instance: int | None, output: str) -> None:
    """Revert the change with this NUMBER (see `changes`) now."""
    answer = connect(instance).delete(f"/v1/changes/{number}", schema.Change)
    _print(answer, output, "reverted")


def _change(action: Action, *, instance: int | None, output: str, **options: Any) -> None:
    wanted = {key: value for key, value in options.items() if value is not None}
    request = schema.ChangeRequest(action=action, **wanted)
    answer = connect(instance).post("/v1/changes", request, schema.Change)
    _print(answer, output, "done")


def _print(answer: schema.Change, output: str, word: str) -> None:
    if output == "json":
        print_json(answer)
        return
    text = f"{word}: {answer.action} {answer.service} {answer.backend}"
    if answer.weight is not None:
        text += f", weight {answer.weight}"
    if answer.remaining is not None and word == "done":
        text += f", reverts in {short_time(answer.remaining)}"
    click.echo(f"{text} (change {answer.number})")
