"""`featherlb down`: cleans up after instances that died."""

import click

from featherlb import host
from featherlb.cli.help import examples
from featherlb.system.journal import Journal


@click.command(epilog=examples("featherlb down"))
def down() -> None:
    """Clean up after a dead instance; running instances stay.

    This ends the connections that the kernel still forwards for it (offload datapath) and deletes
    the flows saved for the next start.
    """
    removed = [*host.remove_stale(), *host.remove_saved_flows(), *Journal().sweep()]
    for line in removed:
        click.echo(f"removed {line}")
    if not removed:
        click.echo("nothing to clean up")
