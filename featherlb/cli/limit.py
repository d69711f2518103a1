"""`featherlb limit`: changes who may open how many connections of a running instance."""

from collections.abc import Callable
from typing import Any

import click

from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.cli.asking import (
    change_command,
    new_table,
    print_table,
    shows,
)
from featherlb.cli.backend import tell_of_change
from featherlb.cli.help import Commands, WholeNumber, Word, completion, examples
from featherlb.control.overrides import Action
from featherlb.model import Refusal

OFF = "off"


@click.group(cls=Commands, epilog=examples("featherlb limit deny web 203.0.113.0/24 --for 1h"))
def limit() -> None:
    """Change who may open how many connections.

    SERVICE is a name or a VIP. Changes decide about new connections; open ones stay. They survive a
    worker restart and a reload and end with the instance; to keep them, write the output of
    `featherlb save` to the configuration file. `featherlb backend changes` shows them, `backend
    revert` reverts one.
    """


def _verb(
    *more: Callable[[Any], Any], example: str
) -> Callable[[Callable[..., None]], click.Command]:
    """Decorator: a command that changes the conditions of a service."""
    service = click.argument("service", shell_complete=completion("services"))
    return change_command(limit, service, *more, example=example)


_networks = click.argument("networks", nargs=-1, required=True, metavar="NETWORK...")
_prefix = click.option(
    "--prefix",
    type=WholeNumber(0, 128),
    metavar="N",
    help="Clients with the same first N bits share the limit; 0: all. Default: 32, with IPv6 64.",
)
_refusal = click.option(
    "--action", "refusal", type=Word(Refusal), help="What clients get beyond it. Default: drop."
)


@_verb(_networks, example="deny web 203.0.113.0/24 --for 1h")
def deny(**options: Any) -> None:
    """Refuse new connections of the clients in a NETWORK."""
    _change(Action.DENY, **options)


@_verb(_networks, example="allow web 10.9.0.0/16")
def allow(**options: Any) -> None:
    """Add a NETWORK to the clients that a service allows.

    For a service with `allow`. What is denied stays denied.
    """
    _change(Action.ALLOW, **options)


@_verb(
    click.argument("limit", metavar="FLOWS|off"),
    _prefix,
    _refusal,
    example="max-flows web 100 --for 1h",
)
def max_flows(limit: str, **options: Any) -> None:
    """Limit how many flows a client may have open, or no longer (off)."""
    number = {"limit": int(limit)} if limit.isdecimal() else {"limit": limit}
    _change(Action.MAX_FLOWS, **({"off": True} if limit == OFF else number), **options)


@_verb(
    click.argument("rate", metavar="RATE|off"),
    click.option(
        "--burst", type=WholeNumber(1), metavar="N", help="At once; default: the rate's number."
    ),
    _prefix,
    _refusal,
    example="max-new web 50/s --burst 200 --for 1h",
)
def max_new(rate: str, **options: Any) -> None:
    """Limit how fast a client may open flows, such as 50/s or 600/m, or no longer (off)."""
    _change(Action.MAX_NEW, **({"off": True} if rate == OFF else {"rate": rate}), **options)


@shows("/v1/services", schema.Services, "featherlb limit show")
def show(answer: schema.Services) -> None:
    """Show the conditions in force, and how many packets they have refused."""
    table = new_table("service", "condition", "refused")
    for service in answer.services:
        refused = ", ".join(f"{n:,} {reason}" for reason, n in service.refused.items() if n)
        for number, condition in enumerate(service.conditions):
            name, count = ("", "") if number else (service.name, refused)
            table.add_row(name, condition, count)
    print_table(table)


limit.add_command(show)


def _change(action: Action, *, instance: int | None, output: str, **options: Any) -> None:
    wanted = {key: value for key, value in options.items() if value is not None}
    request = schema.read(schema.LimitRequest, {"action": action, **wanted})
    tell_of_change(connect(instance).post("/v1/limits", request, schema.Made), output)
