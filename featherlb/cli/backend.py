"""`featherlb backend`: changes the pools of a running instance."""

from collections.abc import Callable
from typing import Any

import click

from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.cli.asking import (
    DURATION,
    PERCENT,
    change_command,
    instance_option,
    new_table,
    output_option,
    print_answer,
    print_table,
    short_time,
    shows,
)
from featherlb.cli.backends import shown_labels
from featherlb.cli.help import Commands, WholeNumber, Word, completion, examples
from featherlb.config import values
from featherlb.config.canary import DEFAULT_CONDITION
from featherlb.control.overrides import Action
from featherlb.model import Role
from featherlb.model.counted import counted

_weight = WholeNumber(0, 65535)


def _read_labels(
    ctx: click.Context, param: click.Parameter, words: tuple[str, ...]
) -> dict[str, str] | None:
    labels: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise click.BadParameter(f"'{word}' is no label (expected KEY=VALUE, such as zone=a)")
        if key in labels:
            raise click.BadParameter(f"the label '{key}' is given twice")
        labels[key] = value
    try:
        return values.labels(labels) or None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.group(cls=Commands, epilog=examples("featherlb backend drain web 10.0.1.2:8080 --for 10m"))
def backend() -> None:
    """Change the backends of a running instance.

    SERVICE is a name or a VIP. Changes survive a worker restart and a reload and end with the
    instance; to keep them, write the output of `featherlb save` to the configuration file.
    """


def _verb(
    *more: Callable[[Any], Any], example: str, **help_texts: str
) -> Callable[[Callable[..., None]], click.Command]:
    """Decorator: a command that changes a backend."""
    # A backend that is to be added is unknown.
    known = None if example.startswith("add") else completion("backends")
    return change_command(
        backend,
        click.argument("service", shell_complete=completion("services")),
        click.argument("backend", shell_complete=known),
        *more,
        example=example,
        **help_texts,
    )


@_verb(
    click.option("--weight", type=_weight, metavar="N", help="Default: 1."),
    click.option("--role", type=Word(Role), help="Default: primary."),
    click.option(
        "--max-connections", type=WholeNumber(1), metavar="N", help="Limit of open flows."
    ),
    click.option(
        "--label",
        "labels",
        multiple=True,
        callback=_read_labels,
        metavar="KEY=VALUE",
        help="Label, such as zone=a; may be repeated.",
    ),
    click.option(
        "--canary",
        type=PERCENT,
        metavar="PERCENT",
        help="Try it with this share of the new flows for the time --for.",
    ),
    click.option(
        "--abort-if",
        metavar="CONDITION",
        help=f"End the trial of a canary early, and drain it. Default: '{DEFAULT_CONDITION}'.",
    ),
    example="add web 10.0.1.4:8080 --weight 2 --label zone=a",
    ending="Revert automatically after TIME, such as 10m; with --canary: length of the trial.",
)
def add(**options: Any) -> None:
    """Add a BACKEND to the pool of a SERVICE.

    BACKEND is HOST:PORT; behind a range of ports it may also be HOST or HOST:LOW-HIGH.

    A canary gets a small share of the new flows at first, and is compared with the other backends:
    by failures, refused, timeouts, retransmissions, resets (each per new flow) and latency. It is
    drained once the condition is true, and gets the part of its weight after the time.
    """
    _change(Action.ADD, **options)


@_verb(example="remove web 10.0.1.2:8080")
def remove(**options: Any) -> None:
    """Remove a BACKEND from the pool of a SERVICE.

    Its flows continue until they end, unless the service has another `on_backend_down`.
    """
    _change(Action.REMOVE, **options)


@_verb(
    click.option(
        "--deadline", type=DURATION, metavar="TIME", help="Reset remaining flows after TIME."
    ),
    example="drain web 10.0.1.2:8080 --deadline 5m --for 1h",
)
def drain(**options: Any) -> None:
    """Stop sending new flows to a BACKEND; existing flows continue.

    Draining a drained backend again changes --for or --deadline; what isn't set stays as it was.
    """
    _change(Action.DRAIN, **options)


@_verb(example="enable web 10.0.1.2:8080")
def enable(**options: Any) -> None:
    """End the drain of a BACKEND, or suspend it with --for."""
    _change(Action.ENABLE, **options)


@_verb(click.argument("weight", type=_weight), example="weight web 10.0.1.2:8080 5 --for 10m")
def weight(**options: Any) -> None:
    """Set the WEIGHT of a BACKEND; 0 stops new flows."""
    _change(Action.WEIGHT, **options)


@shows("/v1/changes", schema.Changes, "featherlb backend changes")
def changes(answer: schema.Changes) -> None:
    """Show the run-time changes in force."""
    table = new_table(
        ">number",
        "change",
        "service",
        "backend or clients",
        ">weight",
        ">reverts in",
        ">resets in",
    )
    for one in answer.changes:
        table.add_row(
            str(one.number),
            str(one.action),
            one.service,
            one.backend or one.clients,
            "" if one.weight is None else str(one.weight),
            "" if one.remaining is None else short_time(max(0, one.remaining)),
            "" if one.deadline is None else short_time(max(0, one.deadline)),
        )
    print_table(table)
    for one in answer.changes:
        if one.canary is not None or one.reason:
            click.echo(f"{one.number}: {shown_trial(one)}")


backend.add_command(changes)


def shown_trial(change: schema.Change) -> str:
    """A canary's trial, or how it has failed."""
    canary = change.canary
    if canary is None:
        return change.reason
    left = short_time(max(0, canary.remaining))
    text = f"canary, {canary.share:g} % of the new flows for another {left}"
    return f"{text}, {counted(canary.flows, 'flow')} so far, aborted if {canary.abort_if}"


@backend.command(epilog=examples("featherlb backend revert 3"))
@click.argument("number", type=WholeNumber(min=1), shell_complete=completion("changes"))
@instance_option
@output_option
def revert(number: int, instance: int | None, output: str) -> None:
    """Revert the change with this NUMBER (see `changes`) now."""
    answer = connect(instance).delete(f"/v1/changes/{number}", schema.Change)
    print_answer(answer, output, f"reverted: {_described(answer)} (change {answer.number})")


def _change(action: Action, *, instance: int | None, output: str, **options: Any) -> None:
    wanted = {key: value for key, value in options.items() if value is not None}
    request = schema.read(schema.ChangeRequest, {"action": action, **wanted})
    tell_of_change(connect(instance).post("/v1/changes", request, schema.Made), output)


def tell_of_change(answer: schema.Made, output: str) -> None:
    """Say what a change did."""
    text = _described(answer)
    if answer.canary is not None:
        text += f", on trial with {answer.canary.share:g} % of the new flows for"
        text += f" {short_time(answer.canary.remaining)}, aborted if {answer.canary.abort_if}"
    if answer.remaining is not None:
        text += f", reverts in {short_time(answer.remaining)}"
    if answer.deadline is not None:
        text += f", remaining flows are reset in {short_time(answer.deadline)}"
    print_answer(answer, output, f"done: {text} ({_effect(answer)})")


def _described(answer: schema.Change) -> str:
    weight = "" if answer.weight is None else f", weight {answer.weight}"
    labels = f", {shown_labels(answer.labels)}" if answer.labels else ""
    what = answer.backend or answer.clients
    return f"{answer.action} {answer.service} {what}{weight}{labels}"


def _effect(answer: schema.Made) -> str:
    """What it is among the changes in force."""
    earlier = ", ".join(map(str, answer.replaces))
    if answer.number is None:
        return f"ends change {earlier}" if earlier else "no difference"
    return f"change {answer.number}{f' in place of {earlier}' if earlier else ''}"
