"""`featherlb flows`: shows or ends tracked connections."""

import json
import sys
from collections.abc import Iterator

import click

from featherlb.api import schema
from featherlb.api.client import Client, connect
from featherlb.cli.asking import (
    DURATION,
    filter_options,
    instance_option,
    new_table,
    output_option,
    print_json,
    print_table,
    short_number,
    short_time,
)
from featherlb.cli.help import WholeNumber, completion, examples
from featherlb.model.errors import ConfigError


@click.command(
    epilog=examples(
        "featherlb flows --service web --state established --older 1h",
        "featherlb flows --client 10.0.0.0/24 --kill",
    )
)
@filter_options
@click.option(
    "--state",
    metavar="STATE",
    shell_complete=completion("states"),
    help=f"Only this state: {', '.join(schema.FLOW_STATES)}.",
)
@click.option("--older", type=DURATION, metavar="TIME", help="Only flows at least this old.")
@click.option("--kill", is_flag=True, help="End the flows; both ends of a connection get a RST.")
@click.option("--all", "everything", is_flag=True, help="With --kill: end all flows.")
@click.option(
    "--clients", is_flag=True, help="The clients with the most flows, and those refused most often."
)
@click.option(
    "--limit",
    type=WholeNumber(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="Maximum number shown; -o json prints all.",
)
@instance_option
@output_option
def flows(
    service: str | None,
    client: str | None,
    backend: str | None,
    state: str | None,
    older: float | None,
    kill: bool,
    everything: bool,
    clients: bool,
    limit: int,
    instance: int | None,
    output: str,
) -> None:
    """Show tracked connections or their --clients, or end them with --kill."""
    query: dict[str, object] = {
        "service": service,
        "client": client,
        "backend": backend,
        "state": state,
        "older": older,
    }
    if kill:
        if not everything and all(value is None for value in query.values()):
            raise ConfigError(["select flows with a filter such as --client, or add --all"])
        whole = query | ({"all": "true"} if everything else {})
        ended = connect(instance).delete("/v1/flows", schema.Ended, whole)
        if output == "json":
            click.echo(json.dumps({"count": ended.count}))
        else:
            click.echo(f"ended: {ended.count}")
        return
    if clients:
        if everything or any(value is not None for value in query.values()):
            raise click.UsageError("--clients takes no filter")
        _show_clients(connect(instance).get("/v1/clients", schema.Clients), output)
        return
    if everything:
        raise click.UsageError("--all requires --kill")
    if output == "json":
        _write_all(connect(instance), query)
        return
    found = _first(connect(instance), query, limit)
    table = new_table("client", "vip", "backend", "state", ">age", ">idle", ">in", ">out")
    for flow in found[:limit]:
        table.add_row(
            flow.client,
            flow.vip,
            flow.backend,
            flow.state,
            short_time(flow.age),
            short_time(flow.idle),
            short_number(flow.bytes_forward),
            short_number(flow.bytes_reply),
        )
    print_table(table)
    if len(found) > limit:
        click.echo(f"only the first {limit}; use --limit for more, -o json for all", err=True)


def _show_clients(answer: schema.Clients, output: str) -> None:
    if output == "json":
        print_json(answer)
        return
    table = new_table("client", ">flows", ">half-open", ">share")
    for one in answer.clients:
        share = f"{100 * one.flows / answer.sampled:.0f} %"
        table.add_row(one.client, f"{one.flows:,}", f"{one.half_open:,}", share)
    print_table(table)
    if answer.refused:
        click.echo()
        table = new_table("refused of late", "service", ">packets")
        for refused in answer.refused:
            table.add_row(refused.client, refused.service, f"{refused.packets:,}")
        print_table(table)


def _pages(client: Client, query: dict[str, object]) -> Iterator[list[schema.Flow]]:
    cursor: str | None = "0:1"
    while cursor is not None:
        page = client.get("/v1/flows", schema.Flows, query | {"cursor": cursor})
        cursor = page.next
        yield page.flows


def _first(client: Client, query: dict[str, object], limit: int) -> list[schema.Flow]:
    found: list[schema.Flow] = []
    for page in _pages(client, query):
        found += page
        if len(found) > limit:
            break
    return found


def _write_all(client: Client, query: dict[str, object]) -> None:
    """One JSON object per line, page by page: there may be a million."""
    for page in _pages(client, query):
        sys.stdout.writelines(flow.model_dump_json() + "\n" for flow in page)
