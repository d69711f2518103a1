"""`featherlb down`: cleans up after instances that died."""

import click

from featherlb import host


@click.command()
def down() -> None:
    """Clean up after a dead instance; running instances stay.

    This ends the connections that the kernel still forwards for it (offload datapath) and deletes
    the flows saved for the next start.
    """
    for line in [*host.remove_stale(), *host.remove_saved_flows()]:
        click.echo(f"removed {line}")
