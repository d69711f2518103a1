"""`featherlb status`: is it running, and how is it."""

import click

from featherlb.api import schema
from featherlb.cli.asking import (
    ask,
    instance_option,
    new_table,
    output_option,
    print_json,
    print_table,
    short_time,
)


@click.command()
@instance_option
@output_option
def status(instance: int | None, output: str) -> None:
    """Show how the running instance is."""
    answer = ask(instance, lambda client: client.get("/v1/status", schema.Status))
    if output == "json":
        print_json(answer)
        return
    table = new_table("", "")
    table.show_header = False
    rows = {
        "instance": f"{answer.instance}, pid {answer.pid}, version {answer.version}",
        "running for": short_time(answer.uptime),
        "services": f"{answer.services} with {answer.backends} backends",
        "datapaths": ", ".join(f"{count} {name}" for name, count in answer.datapaths.items()),
        "flows": f"{answer.flows:,} of {answer.capacity:,}",
        "run-time changes": str(answer.changes),
        "reloads": f"{answer.reloads} done, {answer.reloads_refused} refused",
    }
    if answer.last_reload:
        rows["last reload"] = f"{answer.last_reload} {answer.reload_error or 'done'}"
    for worker in answer.workers:
        rows[f"worker {worker.number}"] = (
            f"pid {worker.pid}, {worker.flows:,} flows, {worker.received:,} packets,"
            f" {worker.waiting} waiting"
        )
    if answer.worker_restarts:
        rows["worker restarts"] = str(answer.worker_restarts)
    for label, value in rows.items():
        table.add_row(label, value)
    print_table(table)
