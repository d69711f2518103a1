"""`featherlb monitor`: events as they happen."""

import click

from featherlb.api.client import connect
from featherlb.cli.asking import instance_option, output_option
from featherlb.cli.help import examples
from featherlb.model.counted import counted
from featherlb.model.errors import HostError


@click.command(epilog=examples("featherlb monitor", "featherlb monitor -o json"))
@instance_option
@output_option
def monitor(instance: int | None, output: str) -> None:
    """Print events until interrupted: reloads, changes, dead workers, backends that go down.

    `-o json` prints one JSON object per line.
    """
    for event in connect(instance).events():
        if output == "json":
            click.echo(event.model_dump_json())
            continue
        if event.missed:
            click.echo(f"({counted(event.missed, 'event')} lost: the reader is too slow)", err=True)
        for line in event.message.splitlines():
            click.echo(f"{event.time} {line}")
    raise HostError("featherlb has stopped")
