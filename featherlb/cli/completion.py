"""What the shell's completion offers beyond commands, options and files: schedulers, flow states,
and what a running instance knows.

Without an instance, or without the right to ask it, nothing is offered.
"""

import os
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, ClassVar

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.core.pools.schedulers import names
from featherlb.model.errors import FeatherlbError
from featherlb.system import plugins
from featherlb.system.journal import Journal

TIMEOUT = 2.0
"""Seconds to wait for the instance: a person waits for the shell."""


_SOURCE = r"""
%(complete_func)s() {
    local IFS=$'\n' kind value
    while IFS=, read -r kind value; do
        case $kind in
            file) compopt -o default ;;
            dir) compopt -o dirnames ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORDBREAKS="$COMP_WORDBREAKS" \
        %(complete_var)s=bash_complete "$1" 2> /dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


def schedulers(ctx: click.Context) -> Iterable[str]:
    with suppress(FeatherlbError):
        plugins.load_entry_points()
    return names()


def states(ctx: click.Context) -> Iterable[str]:
    return schema.FLOW_STATES


def instances(ctx: click.Context) -> Iterable[str]:
    return [str(record.instance) for record in Journal().records() if record.alive]


def services(ctx: click.Context) -> Iterable[str]:
    return [service.name for service in _services(ctx)]


def backends(ctx: click.Context) -> Iterable[str]:
    """As the configuration names them, of the service on the command line or of all."""
    chosen = ctx.params.get("service")
    return dict.fromkeys(
        backend.backend
        for service in _services(ctx)
        if chosen is None or chosen == service.name or chosen in service.vips
        for backend in service.backends
        if backend.state != "leaving"
    )


def addresses(ctx: click.Context) -> Iterable[str]:
    """Those of backends, with their ports: flows know no names."""
    chosen = ctx.params.get("service")
    return dict.fromkeys(
        backend.address
        for service in _services(ctx)
        if chosen is None or chosen == service.name or chosen in service.vips
        for backend in service.backends
    )


def changes(ctx: click.Context) -> Iterable[str]:
    """The numbers of the changes in force."""
    with suppress(FeatherlbError):
        client = connect(ctx.params.get("instance"), TIMEOUT)
        return [str(one.number) for one in client.get("/v1/changes", schema.Changes).changes]
    return []


def faults(ctx: click.Context) -> Iterable[str]:
    """The numbers of the injected faults."""
    with suppress(FeatherlbError):
        client = connect(ctx.params.get("instance"), TIMEOUT)
        return [str(one.number) for one in client.get("/v1/faults", schema.InjectedFaults).faults]
    return []


def _services(ctx: click.Context) -> list[schema.Service]:
    with suppress(FeatherlbError):
        client = connect(ctx.params.get("instance"), TIMEOUT)
        return client.get("/v1/services", schema.Services).services
    return []


class Bash(BashComplete):
    """Completion in bash, which takes an address with a port for several words.

    Bash splits the line at the characters of COMP_WORDBREAKS, `:` among them, and replaces only
    the last of the words. So the line is split here as the shell will split it, and what stands
    in front of the last colon is left out of what is offered.
    """

    source_template: ClassVar[str] = _SOURCE

    def get_completion_args(self) -> tuple[list[str], str]:
        line = os.environ["COMP_LINE"]
        words = _split(line)
        self._incomplete = "" if not words or line[-1:].isspace() else words.pop()
        return words[1:], self._incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        value = item.value
        if ":" in os.environ["COMP_WORDBREAKS"]:
            typed = re.sub("^--[^=]*=", "", self._incomplete)
            value = value.removeprefix(re.sub("[^:]*$", "", typed))
        return f"{item.type},{value}"


def _split(line: str) -> list[str]:
    """The words of a command line, whose last quote may be open."""
    for end in ("", "'", '"'):
        with suppress(ValueError):
            return shlex.split(line + end)
    return line.split()


add_completion_class(Bash)
