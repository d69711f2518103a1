"""Shared by the commands that talk to a running instance: options, the request, the output."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.cli.help import WholeNumber, Word, completion, examples

_Answer = TypeVar("_Answer", bound=schema.Answer)
_Command = TypeVar("_Command", bound=Callable[..., Any])

NARROW = 80
"""Columns of a table if the output is not a terminal."""


class DurationType(click.ParamType[float]):
    """Seconds, from `30`, `30s`, `10m`, `1h`."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return schema.duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = DurationType()


class PercentType(click.ParamType[float]):
    """Per cent, from `10%` or `10`."""

    name = "percent"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return schema.percent(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


PERCENT = PercentType()


def instance_option(command: _Command) -> _Command:
    return click.option(
        "--instance",
        type=WholeNumber(0, 65535),
        metavar="N",
        shell_complete=completion("instances"),
        help="Queue number of the instance, if several run.",
    )(command)


def filter_options(command: _Command) -> _Command:
    """Options `service`, `client` and `backend`: of which flows."""
    options = (
        click.option(
            "--service",
            metavar="NAME",
            shell_complete=completion("services"),
            help="Only this service, by its name or one of its VIPs.",
        ),
        click.option(
            "--client",
            metavar="NETWORK",
            help="Only clients in this network, or this address.",
        ),
        click.option(
            "--backend",
            metavar="IP[:PORT]",
            shell_complete=completion("addresses"),
            help="Only this backend.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def duration_option(**attributes: Any) -> Callable[[_Command], _Command]:
    """Option `duration`: for how long something holds."""
    return click.option("--for", "duration", type=DURATION, metavar="TIME", **attributes)


def change_command(
    group: click.Group,
    *parameters: Callable[[Any], Any],
    example: str,
    ending: str = "Revert automatically after TIME, such as 10m.",
) -> Callable[[Callable[..., None]], click.Command]:
    """Decorator: a command of the group that changes what is served, for good or for some time. It
    has these parameters before the common ones; `ending` is the help of --for."""
    every = (
        *parameters,
        duration_option(help=ending),
        instance_option,
        output_option,
    )

    def make(function: Callable[..., None]) -> click.Command:
        for parameter in reversed(every):
            function = parameter(function)
        name = function.__name__.replace("_", "-")
        lines = examples(f"featherlb {group.name} {example}")
        return group.command(name, epilog=lines)(function)

    return make


def output_option(command: _Command) -> _Command:
    return click.option(
        "-o",
        "--output",
        type=Word(["table", "json"]),
        default="table",
        show_default=True,
        help="Human-readable table, or JSON.",
    )(command)


def shows(
    path: str, model: type[_Answer], *lines: str
) -> Callable[[Callable[[_Answer], None]], click.Command]:
    """Decorator: a command that requests `path`. The function shows the answer as a table; `lines`
    are examples."""

    def make(show: Callable[[_Answer], None]) -> click.Command:
        @click.command(name=show.__name__, help=show.__doc__, epilog=examples(*lines))
        @instance_option
        @output_option
        def command(instance: int | None, output: str) -> None:
            answer = connect(instance).get(path, model)
            if output == "json":
                print_json(answer)
            else:
                show(answer)

        return command

    return make


def print_json(answer: schema.Answer) -> None:
    click.echo(json.dumps(answer.model_dump(mode="json", by_alias=True), indent=2))


def print_answer(answer: schema.Answer, output: str, line: str) -> None:
    """An answer as JSON, or what it says in one line."""
    if output == "json":
        print_json(answer)
    else:
        click.echo(line)


def new_console(width: int | None = None) -> Console:
    """A console that prints data as it is: `[fd00::1]` is no markup, and `:a:` no emoji."""
    return Console(width=width, markup=False, emoji=False)


def print_table(table: Table) -> None:
    console = new_console()
    if console.is_terminal:
        console.print(table)
        return
    console = new_console(NARROW)
    with console.capture() as written:
        console.print(table)
    for line in written.get().splitlines():
        click.echo(line.rstrip())  # rich fills each line up with spaces


def new_table(*columns: str) -> Table:
    """A plain table; a column whose name starts with `>` is right-aligned."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        name = column.removeprefix(">")
        table.add_column(name, justify="right" if name != column else "left", overflow="fold")
    return table


def short_number(value: float) -> str:
    """At most five characters: 999, 1.2k, 35M."""
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            digits = 1 if unit and value < 9.95 else 0
            return f"{value:.{digits}f}{unit}"
        value /= 1000
    raise AssertionError


def short_time(seconds: float) -> str:
    """At most six characters: 4.2s, 3m20s, 5h12m, 3d4h."""
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"
