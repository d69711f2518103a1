"""`featherlb down`: remove what instances have left that ended without cleaning up."""

import click

from featherlb import host


@click.command()
def down() -> None:
    """Remove what a killed instance left on this host; running instances stay.

    Connections that the kernel still carries for it (datapath offload) end, and those that the next
    start would have taken over are forgotten.
    """
    for line in [*host.remove_stale(), *host.remove_saved_flows()]:
        click.echo(f"removed {line}")
