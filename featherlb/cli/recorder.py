"""`featherlb recorder`: the last decisions, of a running instance or from a file."""

import json
from collections.abc import Iterable
from datetime import datetime
from ipaddress import ip_address, ip_network
from pathlib import Path

import click

from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.api.show import show_record
from featherlb.cli.asking import instance_option, output_option
from featherlb.cli.help import WholeNumber, examples
from featherlb.control.flight import records_of
from featherlb.model import Endpoint, Network
from featherlb.model.errors import ConfigError
from featherlb.system import recording_file


@click.command(
    epilog=examples(
        "featherlb recorder --client 10.0.0.7",
        "featherlb recorder incident.recording -o json",
    )
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option("--save", is_flag=True, help="Save what is recorded to a file, and print its name.")
@click.option("--client", metavar="NETWORK", help="Only clients in this network, or this address.")
@click.option("--backend", metavar="IP[:PORT]", help="Only this backend.")
@click.option(
    "--limit",
    type=WholeNumber(1, 1_000_000),
    default=100,
    show_default=True,
    metavar="N",
    help="The last N only.",
)
@instance_option
@output_option
def recorder(
    file: Path | None,
    save: bool,
    client: str | None,
    backend: str | None,
    limit: int,
    instance: int | None,
    output: str,
) -> None:
    """Show the last decisions of a running instance, or of FILE.

    The flight recorder has new flows, their changes of state and their ends, packets that opened
    none, and changes of backends. It is saved to a file when a worker dies, on SIGUSR1, with
    --save, and when the configuration's condition on metrics becomes true.
    """
    if save:
        if file is not None or client or backend:
            raise click.UsageError("--save saves everything, of a running instance")
        saved = connect(instance).post(
            "/v1/recorder", schema.SaveRecording(), schema.SavedRecording
        )
        click.echo(json.dumps(saved.model_dump()) if output == "json" else saved.path)
        return
    network, place = _network(client), _endpoint(backend)
    if file is not None:
        found = [show_record(*one) for one in records_of(recording_file.load(file))]
        found = [one for one in found if matches(one, network, place)][-limit:]
    else:
        query = {"client": client, "backend": backend, "limit": limit}
        found = connect(instance).get("/v1/recorder", schema.Recording, query).records
    if output == "json":
        for one in found:
            click.echo(one.model_dump_json())
    else:
        _show(found)


def matches(record: schema.Record, network: Network | None, place: Endpoint | None) -> bool:
    """Whether it is about a client in this network, and about this backend."""
    if network is not None and (
        record.client is None or Endpoint.parse(record.client).address not in network
    ):
        return False
    return place is None or (
        record.backend is not None and place.covers(Endpoint.parse(record.backend))
    )


def _network(text: str | None) -> Network | None:
    try:
        return None if text is None else ip_network(text, strict=False)
    except ValueError:
        raise ConfigError([f"--client: '{text}' is not a network such as 10.0.0.0/8"]) from None


def _endpoint(text: str | None) -> Endpoint | None:
    try:
        if text is None:
            return None
        try:
            return Endpoint(ip_address(text.strip("[]")), 1, 65535)
        except ValueError:
            return Endpoint.parse(text)
    except ValueError:
        raise ConfigError([f"--backend: '{text}' is not a backend such as 10.0.1.2:80"]) from None


def _show(records: Iterable[schema.Record]) -> None:
    for one in records:
        time = datetime.fromtimestamp(one.time).isoformat(sep=" ", timespec="microseconds")
        parts = [time, f"worker {one.worker}", f"{one.kind:8}"]
        if one.client is not None:
            parts.append(f"{one.client} -> {one.vip}/{one.protocol}")
            if one.backend is not None:
                parts.append(f"to {one.backend}")
            parts.append(f"({one.detail})")
        elif one.backend is not None:
            parts.append(f"{one.backend} of {one.vip}/{one.protocol}")
            parts.append(f"(weight {one.weight})")
        click.echo(" ".join(parts).rstrip())
