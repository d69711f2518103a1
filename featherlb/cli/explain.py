"""`featherlb explain CLIENT[:PORT] VIP`: where a client's packets go, and why."""

import click

from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.cli.asking import (
    instance_option,
    new_table,
    output_option,
    print_json,
    print_table,
    short_number,
    short_time,
)
from featherlb.cli.help import completion, examples


@click.command(
    epilog=examples(
        "featherlb explain 192.0.2.7:40000 10.0.0.10:80", "featherlb explain 192.0.2.7 web"
    )
)
@click.argument("client", metavar="CLIENT[:PORT]")
@click.argument("vip", shell_complete=completion("services"))
@instance_option
@output_option
def explain(client: str, vip: str, instance: int | None, output: str) -> None:
    """Explain where the packets of a CLIENT to a VIP go, and why.

    VIP is a service's name, an address, ADDRESS:PORT or ADDRESS:PORT/udp. Shows the open flow, the
    decision about a new one with its reasons, the backends as the scheduler sees them, and the
    hooks and rules that the packets meet. Changes nothing: the next flow goes where it would have
    gone anyway.
    """
    query = {"client": client, "vip": vip}
    answer = connect(instance).get("/v1/explain", schema.Explanation, query)
    if output == "json":
        print_json(answer)
    else:
        _show(answer)


def _show(answer: schema.Explanation) -> None:
    worker = f", worker {answer.worker} of {answer.workers}" if answer.workers > 1 else ""
    click.echo(
        f"{answer.client} -> {answer.vip}/{answer.protocol}: service {answer.service},"
        f" {answer.scheduler}, {answer.nat}, {answer.datapath}{worker}"
    )
    if answer.port_assumed:
        click.echo("  the port is assumed: name it as CLIENT:PORT")
    if answer.panic:
        click.echo("  panic: too few backends are healthy, all are used")
    if answer.flow is not None:
        closing = "; a new connection is scheduled anew" if answer.reopens else ""
        click.echo(f"flow: {_flow(answer.flow)}{closing}")
    for flow in answer.flows:
        click.echo(f"flow from {flow.client}: {_flow(flow)}")
    click.echo(_decision(answer))
    for number, reason in enumerate(answer.reasons, 1):
        click.echo(f"  {number}. {reason}")
    click.echo("backends, as the scheduler sees them")
    table = new_table("  backend", "role", "state", ">weight", ">open", ">slow start", "")
    for one in answer.candidates:
        name = one.backend if one.backend == one.address else f"{one.backend} ({one.address})"
        limit = "" if one.max_connections is None else f"/{short_number(one.max_connections)}"
        table.add_row(
            f"  {name}",
            one.role,
            one.state,
            _weight(one),
            f"{short_number(one.active)}{limit}",
            "" if one.progress >= 1 else f"{100 * one.progress:.0f} %",
            "<- new flow" if one.address == answer.backend else one.failure,
        )
    print_table(table)
    click.echo("hooks")
    for hook in answer.hooks:
        click.echo(f"  {hook.direction:<8} {hook.hook:<12} {hook.action}")
    if answer.rules:
        click.echo("rules that the opening packet meets")
    for rule in answer.rules:
        click.echo(f"  {rule.table} {rule.hook}, {rule.chain}: {rule.rule}")


def _decision(answer: schema.Explanation) -> str:
    if answer.backend is None or answer.outcome != "forward":
        return f"a new flow is dropped: {answer.outcome}"
    if answer.flow is not None and not answer.reopens:
        return f"another flow would go to {answer.target}"
    return f"a new flow goes to {answer.target}"


def _flow(flow: schema.Flow) -> str:
    source = "" if flow.source == flow.client else f" from {flow.source}"
    tried = "".join(f", after {one.backend} ({one.reason})" for one in flow.tried)
    return (
        f"{flow.state}, to {flow.backend}{source}{tried}, {short_time(flow.age)} old, idle for"
        f" {short_time(flow.idle)}, {short_number(flow.bytes_forward)} bytes in,"
        f" {short_number(flow.bytes_reply)} out"
    )


def _weight(one: schema.Candidate) -> str:
    """The weight; if the scheduler sees another one, that first."""
    if one.effective_weight == one.weight:
        return str(one.weight)
    return f"{one.effective_weight} of {one.weight}"
