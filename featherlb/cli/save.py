"""`featherlb save`: the running configuration."""

import click

from featherlb.api.client import connect
from featherlb.cli.asking import instance_option


@click.command()
@instance_option
def save(instance: int | None) -> None:
    """Print the running configuration as YAML, including permanent run-time changes.

    To keep it: `featherlb save > new.yaml`, `featherlb check new.yaml`, then move it into place.
    """
    click.echo(connect(instance).ask("GET", "/v1/config"), nl=False)
