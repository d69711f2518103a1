"""`featherlb backends`: the services and who serves them."""

import click

from featherlb.api import schema
from featherlb.cli.asking import (
    ask,
    instance_option,
    new_table,
    output_option,
    print_json,
    print_table,
    short_number,
)


@click.command()
@instance_option
@output_option
def backends(instance: int | None, output: str) -> None:
    """Show the services and their backends, with what they have done so far."""
    answer = ask(instance, lambda client: client.get("/v1/services", schema.Services))
    if output == "json":
        print_json(answer)
        return
    for service in answer.services:
        click.echo(
            f"{service.name}: {', '.join(service.vips)}/{service.protocol}, {service.scheduler},"
            f" {service.nat}, {service.datapath}"
        )
        table = new_table(
            "  backend", "state", ">weight", ">open", ">flows", ">in", ">out", ">resets", ">failed"
        )
        for backend in service.backends:
            name = backend.backend
            if backend.address != name:
                name += f" ({backend.address})"
            table.add_row(
                f"  {name}",
                backend.state,
                str(backend.weight),
                str(backend.active),
                short_number(backend.flows),
                short_number(backend.bytes_forward),
                short_number(backend.bytes_reply),
                short_number(backend.resets),
                short_number(backend.refused + backend.syn_timeouts),
            )
        if service.backends:
            print_table(table)
            for backend in service.backends:
                if backend.failure:
                    click.echo(f"  {backend.address}: the last check failed: {backend.failure}")
        else:
            click.echo("  no backend: connections are refused")
