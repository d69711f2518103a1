"""`featherlb check FILE`: validates a configuration and shows how featherlb reads it."""

from collections.abc import Iterator
from pathlib import Path

import click

from featherlb import config as configuration
from featherlb.config.file import load
from featherlb.control.prepare import load_schedulers
from featherlb.model import Role
from featherlb.model.errors import ConfigError
from featherlb.system import plugins


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.pass_context
def check(context: click.Context, file: Path) -> None:
    """Validate a configuration FILE and show how featherlb reads it.

    Resolves no names, so the result doesn't depend on the network.
    """
    try:
        plugins.load_entry_points()
        config = load(file)
        load_schedulers(config, {})
    except ConfigError as error:
        click.echo(error, err=True)
        context.exit(error.exit_code)
    for fault in configuration.advise(config):
        click.echo(f"{fault.origin}: warning: {fault.text}", err=True)
    for service in config.services:
        click.echo(f"service {service.name}")
        for label, value in _described(service):
            click.echo(f"  {label:<10} {value}")
    click.echo(f"{file}: ok")


def _described(service: configuration.ServiceConfig) -> Iterator[tuple[str, str]]:
    for vip in service.vips:
        yield "vip", f"{vip}/{service.protocol}"
    yield "scheduler", service.scheduler
    yield "nat", str(service.nat)
    for source in service.source_addresses:
        yield "source", str(source.address)
    width = max((len(str(backend)) for backend in service.backends), default=0)
    for backend in service.backends:
        more = "" if backend.role is Role.PRIMARY else f", {backend.role}"
        if backend.max_connections is not None:
            more += f", at most {backend.max_connections} connections"
        yield "backend", f"{backend!s:<{width}}  weight {backend.weight}{more}"
    if not service.backends:
        yield "backend", "none: connections are refused"
