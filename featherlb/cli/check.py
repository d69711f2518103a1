"""`featherlb check [FILE]`: validates a configuration and shows how featherlb would run it."""

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import click

from featherlb.cli.help import examples
from featherlb.config import SEARCH_PATH, ServiceConfig, advise, find_config
from featherlb.config.file import load
from featherlb.config.schema import CHECK_KEYS
from featherlb.control.diff import plain
from featherlb.control.prepare import distrust, load_code
from featherlb.model import HealthCheck, Role
from featherlb.model.errors import ConfigError
from featherlb.system import plugins

_SHOWN = (
    "name",
    "vips",
    "protocol",
    "scheduler",
    "nat",
    "source_addresses",
    "datapath",
    "health",
    "backends",
)
"""What of a service has a line of its own anyway."""
_COMMON_KEYS = {"interval", "timeout", "rise", "fall", "initial", "address", "port"}
_SECRETS = ("token", "hash_key")


@click.command(epilog=examples("featherlb check", "featherlb check new.yaml"))
@click.argument(
    "file",
    type=click.Path(path_type=Path),
    envvar="FEATHERLB_CONFIG",
    required=False,
    metavar="[FILE]",
)
@click.pass_context
def check(context: click.Context, file: Path | None) -> None:
    """Validate a configuration FILE and show how featherlb would run it, defaults included.

    FILE defaults to the one that `up` would read: $FEATHERLB_CONFIG, ./featherlb.yaml, then
    /etc/featherlb/featherlb.yaml. Resolves no names, so the result doesn't depend on the network.
    """
    file = file or find_config()
    if file is None:
        places = " or ".join(map(str, SEARCH_PATH))
        raise ConfigError([f"no configuration: name a FILE, or create {places}"])
    try:
        plugins.load_entry_points()
        config = load(file)
        load_code(config, {})
    except ConfigError as error:
        click.echo(error, err=True)
        context.exit(error.exit_code)
    for fault in advise(config):
        click.echo(f"{fault.origin}: warning: {fault.text}", err=True)
    for line in distrust(config) if os.geteuid() == 0 else ():
        click.echo(f"warning: {line}", err=True)
    lines = []
    for service in config.services:
        lines.append(f"service {service.name}")
        lines += [f"  {label:<15} {value}" for label, value in _service(service)]
    lines += [f"{label:<17} {value}" for label, value in _others(config, without=("services",))]
    click.echo("\n".join((*lines, f"{file}: ok")))


def _service(service: ServiceConfig) -> Iterator[tuple[str, str]]:
    for vip in service.vips:
        yield "vip", f"{vip}/{service.protocol}"
    yield "scheduler", service.scheduler
    yield "nat", str(service.nat)
    for source in service.source_addresses:
        yield "source", str(source.address)
    yield "datapath", str(service.datapath)
    yield "health", "not checked" if service.health is None else _check(service.health)
    yield from _others(service, without=_SHOWN)
    width = max((len(str(backend)) for backend in service.backends), default=0)
    for backend in service.backends:
        more = "" if backend.role is Role.PRIMARY else f", {backend.role}"
        if backend.max_connections is not None:
            more += f", at most {backend.max_connections} connections"
        more += "".join(f", {label}" for label in backend.labels)
        yield "backend", f"{backend!s:<{width}}  weight {backend.weight}{more}"
    if not service.backends:
        yield "backend", "none: connections are refused"


def _check(check: HealthCheck) -> str:
    """A health check with what its type uses."""
    keys = _COMMON_KEYS | CHECK_KEYS[check.type]
    return f"{check.type}, {_listed((key, getattr(check, key)) for key in _fields(check, keys))}"


def _others(value: object, without: Collection[str]) -> Iterator[tuple[str, str]]:
    """The fields of a configuration that are set to something else than their default."""
    for one in fields(value):  # type: ignore[arg-type]
        found = getattr(value, one.name)
        factory = one.default_factory
        default = one.default if factory is MISSING else factory()
        if not one.compare or one.name in without or found == default:
            continue
        if one.name in _SECRETS:
            text = "set"
        elif is_dataclass(found):
            text = _listed((name, getattr(found, name)) for name in _fields(found))
        else:
            text = plain(found)
        yield one.name, text


def _fields(value: Any, wanted: Collection[str] = ()) -> list[str]:
    names = [one.name for one in fields(value) if one.compare and one.name not in _SECRETS]
    return [name for name in names if not wanted or name in wanted]


def _listed(values: Iterable[tuple[str, object]]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {plain(value)}"
        for name, value in values
        if value not in (None, "")
    )
