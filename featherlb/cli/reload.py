"""`featherlb reload`: go over to the configuration as it is now."""

import click

from featherlb.api import schema
from featherlb.cli.asking import ask, instance_option, output_option, print_json


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.option("--discard", is_flag=True, help="Drop all run-time changes as well.")
@instance_option
@output_option
def reload(dry_run: bool, discard: bool, instance: int | None, output: str) -> None:
    """Read the configuration again and go over to it, whole or not at all.

    Established flows go on. Run-time changes (`featherlb backend`) stay in force where they
    still fit. Kernel rules that somebody has removed are put back.
    """
    request = schema.ReloadRequest(discard=discard, dry_run=dry_run)
    answer = ask(instance, lambda client: client.post("/v1/reload", request, schema.Reloaded))
    if output == "json":
        print_json(answer)
        return
    for line in answer.differences or ["no difference"]:
        click.echo(line)
