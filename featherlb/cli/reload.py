"""`featherlb reload`: reloads the configuration."""

import click

from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.cli.asking import instance_option, output_option, print_json
from featherlb.cli.help import examples


@click.command(epilog=examples("featherlb reload --dry-run", "featherlb reload"))
@click.option("--dry-run", is_flag=True, help="Only print what would change.")
@click.option("--discard", is_flag=True, help="Also drop all run-time changes.")
@instance_option
@output_option
def reload(dry_run: bool, discard: bool, instance: int | None, output: str) -> None:
    """Reload the configuration, entirely or not at all.

    Established flows continue. Run-time changes (`featherlb backend`) stay in force if they still
    apply. Kernel rules that something else has removed are restored.
    """
    request = schema.ReloadRequest(discard=discard, dry_run=dry_run)
    answer = connect(instance).post("/v1/reload", request, schema.Reloaded)
    if output == "json":
        print_json(answer)
        return
    for line in answer.differences or ["no difference"]:
        click.echo(line)
