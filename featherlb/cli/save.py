"""`featherlb save`: the running configuration."""

import click

from featherlb.api.client import connect
from featherlb.cli.asking import instance_option
from featherlb.cli.help import examples


@click.command(epilog=examples("featherlb save > new.yaml"))
@instance_option
def save(instance: int | None) -> None:
    """Print the running configuration as YAML, including permanent run-time changes.

    To keep it: check the file (`featherlb check new.yaml`), and move it into place.
    """
    click.echo(connect(instance).ask("GET", "/v1/config"), nl=False)
