"""`featherlb monitor`: events as they happen."""

import click

from featherlb.api.client import Client
from featherlb.cli.asking import ask, instance_option, output_option
from featherlb.model.errors import HostError


@click.command()
@instance_option
@output_option
def monitor(instance: int | None, output: str) -> None:
    """Print events until interrupted: reloads, changes, dead workers, backends that go down.

    `-o json` prints one JSON object per line.
    """

    async def follow(client: Client) -> None:
        async for event in client.events():
            if output == "json":
                click.echo(event.model_dump_json())
                continue
            if event.missed:
                click.echo(f"({event.missed} events lost: the reader is too slow)", err=True)
            click.echo(f"{event.time} {event.message}")

    ask(instance, follow)
    raise HostError("featherlb has stopped")
