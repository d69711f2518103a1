"""`featherlb top`: a live view, full screen, refreshed once a second."""

import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from featherlb.api import schema
from featherlb.api.client import Client, connect
from featherlb.cli.asking import (
    instance_option,
    new_console,
    new_table,
    short_number,
    short_time,
)
from featherlb.cli.backends import active, latency, state, weight
from featherlb.cli.help import Number, WholeNumber, examples

_COUNTERS = ("flows", "packets_forward", "packets_reply", "bytes_forward", "bytes_reply")


@dataclass(frozen=True)
class Snapshot:
    """Everything on the screen. `moment` is in seconds of the monotonic clock."""

    moment: float
    status: schema.Status
    services: schema.Services
    stats: schema.Stats
    clients: schema.Clients


@click.command(epilog=examples("featherlb top", "featherlb top --count 1 > now.txt"))
@click.option(
    "--interval",
    type=Number(0.2, 60),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Refresh interval.",
)
@click.option(
    "--count", type=WholeNumber(min=1), metavar="N", help="Stop after this many refreshes."
)
@instance_option
def top(interval: float, count: int | None, instance: int | None) -> None:
    """Watch services, backends, rates and the busiest clients live; quit with Ctrl-C.

    If the output is not a terminal, each refresh is printed below the last.
    """
    client = connect(instance)
    console = new_console()
    before: Snapshot | None = None
    shown = 0
    with suppress(KeyboardInterrupt), ExitStack() as stack:
        if console.is_terminal:
            live = Live(console=console, auto_refresh=False, screen=count is None)
            stack.enter_context(live)
        while count is None or shown < count:
            now = take(client)
            picture = draw(now, before or now)
            if console.is_terminal:
                live.update(picture, refresh=True)
            else:
                if shown:
                    console.print()
                console.print(picture)
            before = now
            shown += 1
            if shown != count:
                time.sleep(interval)


def take(client: Client) -> Snapshot:
    """Query the instance for everything."""
    return Snapshot(
        time.monotonic(),
        client.get("/v1/status", schema.Status),
        client.get("/v1/services", schema.Services),
        client.get("/v1/stats", schema.Stats),
        client.get("/v1/clients", schema.Clients),
    )


def draw(now: Snapshot, before: Snapshot) -> RenderableType:
    """The screen; rates are since the snapshot before."""
    rates = _rates(now, before)
    parts: list[RenderableType] = [_head(now, before)]
    for service in now.services.services:
        parts += [Text(), _title(service), _backends(service, rates)]
    parts += [Text(), _clients(now)]
    if now.clients.refused:
        parts += [Text(), _refused(now)]
    return Group(*parts)


def _rates(now: Snapshot, before: Snapshot) -> dict[tuple[str, str], dict[str, float]]:
    """Per second, by service and address."""
    elapsed = now.moment - before.moment
    past = {(s.name, b.address): b for s in before.services.services for b in s.backends}
    found = {}
    for service in now.services.services:
        for backend in service.backends:
            key = (service.name, backend.address)
            old = past.get(key, backend)
            found[key] = {
                # A backend that rejoins starts to count at 0 again.
                name: max(0, getattr(backend, name) - getattr(old, name)) / elapsed
                if elapsed
                else 0
                for name in _COUNTERS
            }
    return found


def _head(now: Snapshot, before: Snapshot) -> RenderableType:
    status, stats = now.status, now.stats
    elapsed = now.moment - before.moment
    received = max(0, stats.received - before.stats.received)
    lost = sum(
        queue.queue_dropped + queue.socket_dropped + queue.verdict_refused + queue.frames.dropped
        for queue in stats.queues
    )
    waiting = sum(queue.waiting for queue in stats.queues)
    first = Text.assemble(
        ("featherlb", "bold"),
        f" instance {status.instance}, up {short_time(status.uptime)}, "
        f"workers {len(status.workers)}, flows {status.flows:,} of {status.capacity:,}",
    )
    second = Text(
        f"packets {short_number(received / elapsed if elapsed else 0)}/s, "
        f"waiting {waiting}, dropped {short_number(stats.dropped)}, lost by the kernel "
    )
    second.append(short_number(lost), "bold red" if lost else "")
    if silent := [str(one.number) for one in status.workers if one.state == "silent"]:
        second.append(f", not answering: worker {', '.join(silent)}", "bold red")
    if status.changes:
        second.append(f", run-time changes {status.changes}", "yellow")
    if status.faults:
        second.append(f", injected faults {len(status.faults)}", "bold red")
    if status.reload_error:
        second.append(", last reload refused", "bold red")
    return Group(first, second)


def _title(service: schema.Service) -> Text:
    return Text.assemble(
        (service.name, "bold"),
        f" {', '.join(service.vips)}/{service.protocol} {service.scheduler} {service.nat}",
        (" panic: all backends are used", "bold red") if service.panic else "",
        *((f"\n  injected fault: {one.description}", "bold red") for one in service.faults),
    )


def _backends(
    service: schema.Service, rates: dict[tuple[str, str], dict[str, float]]
) -> RenderableType:
    if not service.backends:
        return Text("  no backend: connections are refused", "bold red")
    table = new_table(
        "backend",
        "state",
        ">weight",
        ">open",
        ">new/s",
        ">pkt/s",
        ">in/s",
        ">out/s",
        ">latency",
        ">failed",
    )
    for backend in service.backends:
        rate = rates[service.name, backend.address]
        failed = backend.refused + backend.syn_timeouts
        table.add_row(
            backend.address or backend.backend,
            Text(state(backend), "green" if backend.state == "up" else "yellow"),
            weight(backend),
            active(backend),
            short_number(rate["flows"]),
            short_number(rate["packets_forward"] + rate["packets_reply"]),
            short_number(rate["bytes_forward"]),
            short_number(rate["bytes_reply"]),
            latency(backend),
            Text(short_number(failed), "red" if failed else ""),
        )
    return table


def _refused(now: Snapshot) -> Table:
    table = new_table("refused of late", "service", ">packets")
    for client in now.clients.refused:
        table.add_row(client.client, client.service, short_number(client.packets))
    return table


def _clients(now: Snapshot) -> Table:
    table = new_table("busiest clients", ">flows", ">share")
    for client in now.clients.clients:
        share = 100 * client.flows / now.clients.sampled
        table.add_row(client.client, short_number(client.flows), f"{share:.0f} %")
    return table
