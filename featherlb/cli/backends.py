"""`featherlb backends`: services and their backends."""

from collections.abc import Mapping

import click

from featherlb.api import schema
from featherlb.cli.asking import new_table, print_table, short_number, shows
from featherlb.model import Health, Role

SCARCE = 0.8
"""Share of a backend's source ports in use from which on it is shown."""
_REASONS = {Health.EJECTED: "ejected", "absent": "absent"}


@shows("/v1/services", schema.Services, "featherlb backends", "featherlb backends -o json")
def backends(answer: schema.Services) -> None:
    """Show services and their backends, with state, weight and counters."""
    for service in answer.services:
        click.echo(
            f"{service.name}: {', '.join(service.vips)}/{service.protocol}, {service.scheduler},"
            f" {service.nat}, {service.datapath}"
        )
        if service.opened_by:
            click.echo(f"  flows are opened by the {service.opened_by}")
        for fault in service.faults:
            click.echo(f"  injected fault {fault.number}: {fault.description}")
        if service.panic:
            click.echo("  panic: too few backends are healthy, all are used")
        table = new_table(
            "  backend",
            "state",
            ">weight",
            ">open",
            ">flows",
            ">in",
            ">out",
            ">latency",
            ">resets",
            ">failed",
            ">moved",
        )
        table.collapse_padding = True  # else it would not fit into 80 columns
        for backend in service.backends:
            name = backend.backend
            if backend.address not in ("", name):
                name += f" ({backend.address})"
            table.add_row(
                f"  {name}",
                state(backend),
                weight(backend),
                active(backend),
                short_number(backend.flows),
                short_number(backend.bytes_forward),
                short_number(backend.bytes_reply),
                latency(backend),
                short_number(backend.resets),
                short_number(backend.refused + backend.syn_timeouts),
                short_number(backend.moved_refused + backend.moved_silent),
            )
        if service.backends:
            print_table(table)
            for label, named in _by_label(service).items():
                click.echo(f"  {label}: {', '.join(named)}")
            for backend in service.backends:
                if busy := port_use(backend):
                    click.echo(f"  {backend.address}: {busy}")
                if backend.failure:
                    why = _REASONS.get(backend.state, "last check failed")
                    click.echo(f"  {backend.address or backend.backend}: {why}: {backend.failure}")
        else:
            click.echo("  no backend: connections are refused")


def _by_label(service: schema.Service) -> dict[str, list[str]]:
    """The addresses of the backends with each label."""
    found: dict[str, list[str]] = {}
    for backend in service.backends:
        for key, value in backend.labels.items():
            found.setdefault(f"{key}={value}", []).append(backend.address or backend.backend)
    return found


def state(backend: schema.Backend) -> str:
    """The state, or the role of a backend that is up and not primary."""
    spare = backend.state == "up" and backend.role is not Role.PRIMARY
    return backend.role if spare else backend.state


def weight(backend: schema.Backend) -> str:
    """The weight; during slow start, with the effective weight; a canary's share on trial."""
    if backend.canary and backend.effective_weight:
        return f"{backend.canary:g} %"
    if 0 < backend.effective_weight < backend.weight:
        return f"{backend.effective_weight:.2g} of {backend.weight}"
    return str(backend.weight)


def shown_labels(labels: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in labels.items())


def port_use(backend: schema.Backend) -> str:
    """How many source ports are in use, where few are left."""
    if not backend.ports or backend.ports_in_use <= SCARCE * backend.ports:
        return ""
    return (
        f"{backend.ports_in_use:,} of {backend.ports:,} source ports in use"
        f" ({backend.ports_reclaimed:,} taken from half-open flows so far)"
    )


def latency(backend: schema.Backend) -> str:
    """The smoothed time to answer, at most seven characters up to a minute; empty if it isn't
    measured."""
    if backend.latency is None:
        return ""
    milliseconds = 1000 * backend.latency
    return f"{milliseconds:.0f}ms" if milliseconds >= 9.95 else f"{milliseconds:.2g}ms"


def active(backend: schema.Backend) -> str:
    """Open flows, with their limit."""
    limit = backend.max_connections
    return short_number(backend.active) + ("" if limit is None else f"/{short_number(limit)}")
