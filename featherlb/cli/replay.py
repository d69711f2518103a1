"""`featherlb replay CAPTURE`: what a configuration makes of a capture, without a kernel."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from featherlb.cli.asking import new_table, output_option, print_table
from featherlb.cli.help import examples
from featherlb.config.file import load
from featherlb.config.resolve import names
from featherlb.control.prepare import load_code
from featherlb.control.resolver import look_up
from featherlb.insight.replay import Difference, Replay, Watch, compare
from featherlb.insight.replay import replay as run
from featherlb.system import plugins
from featherlb.system.pcap import Captured, Writer, read

SHOWN = 10
"""Drops, and flows that differ, which are listed; -o json has all."""


@click.command(
    epilog=examples(
        "featherlb replay incident.pcap --config lb.yaml",
        "featherlb replay incident.pcap --config lb.yaml --against new.yaml",
    )
)
@click.argument("capture", type=click.Path(path_type=Path))
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="The configuration to replay it with.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Another configuration: show what it would do differently. Exits with 1 if anything.",
)
@click.option(
    "-w",
    "--write",
    "written",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the packets as they would leave, each with a comment (pcapng).",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=(1 << 128) - 1),
    metavar="N",
    default=1,
    show_default=True,
    help="Of everything random.",
)
@output_option
@click.pass_context
def replay(
    context: click.Context,
    capture: Path,
    config_path: Path,
    against: Path | None,
    written: Path | None,
    seed: int,
    output: str,
) -> None:
    """Replay a CAPTURE (pcap or pcapng) through the packet path, with the capture's clock.

    Shows which flows it opens, to which backends, and what becomes of each packet. Replays the
    clients' side: packets to VIPs, and those from VIPs, as answers of the backend that is chosen.
    Needs neither root nor the network, and the same seed gives the same result. All backends count
    as healthy.
    """
    plugins.load_entry_points()
    packets = list(read(capture))
    if written is None:
        first = _replay(packets, config_path, seed)
    else:
        with closing(Writer(written)) as writer:
            first = _replay(packets, config_path, seed, writer)
    second = None if against is None else _replay(packets, against, seed)
    difference = None if second is None else compare(first, second)
    if output == "json":
        click.echo(json.dumps(_as_json(first, difference), indent=2))
    else:
        _show(capture, first)
        if difference is not None and against is not None:
            _show_difference(against, first, difference)
    if difference:
        context.exit(1)


def _replay(
    packets: Sequence[Captured], path: Path, seed: int, writer: Writer | None = None
) -> Replay:
    config = load(path)
    load_code(config, {})
    addresses = look_up(names(config))

    def write(packet: Captured, result: bytes, comment: str) -> None:
        if writer is not None:
            writer.write(Captured(packet.time, result, packet.length), comment)

    watch: Watch = write
    return run(packets, config, seed, lambda name: addresses.get(name, ()), watch)


def _as_json(found: Replay, difference: Difference | None) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "packets": found.packets,
        "ignored": found.ignored,
        "seconds": found.seconds,
        "outcomes": found.counts(),
        "flows": found.flows(),
        "answers": found.answers,
        "openings": [_fields(one) for one in found.openings],
        "drops": [_fields(one) for one in found.drops],
    }
    if difference is not None:
        answer["difference"] = {
            "flows": [_fields(one) for one in difference.flows],
            "packets": [
                {"before": before, "after": after, "packets": count}
                for (before, after), count in difference.packets.items()
            ],
        }
    return answer


def _fields(one: Any) -> dict[str, object]:
    return {name: getattr(one, name) for name in one.__slots__}


def _show(capture: Path, found: Replay) -> None:
    click.echo(
        f"{capture}: {found.packets:,} packets in {found.seconds:.3f} s; {found.ignored:,} others,"
        " which are not from clients or to them"
    )
    for name, address in found.stand_ins.items():
        click.echo(f"  {name} has no address here: {address} stands for it")
    for service, counts in found.flows().items():
        click.echo(f"{service}: {sum(counts.values()):,} flows")
        table = new_table("  backend", ">flows")
        for backend, count in counts.items():
            table.add_row(f"  {backend}", f"{count:,}")
        print_table(table)
    click.echo("packets")
    for label, count in found.counts().items():
        click.echo(f"  {count:>9,}  {label}")
    if found.answers:
        click.echo(f"  {found.answers:>9,}  answers of featherlb itself")
    if found.drops:
        click.echo("dropped")
    for drop in found.drops[:SHOWN]:
        ends = f"{drop.source} -> {drop.destination}"
        click.echo(f"  {drop.time:>10.3f} s  packet {drop.number + 1}, {ends}: {drop.reason}")
    _tell_more(len(found.drops))


def _show_difference(against: Path, found: Replay, difference: Difference) -> None:
    if not difference:
        click.echo(f"{against}: no difference")
        return
    click.echo(f"{against}: {len(difference.flows):,} of {len(found.openings):,} flows differ")
    for one in difference.flows[:SHOWN]:
        click.echo(
            f"  {one.time:>10.3f} s  {one.client} -> {one.vip}: {one.after or 'none'} instead of"
            f" {one.before or 'none'}"
        )
    _tell_more(len(difference.flows))
    for (before, after), count in difference.packets.items():
        click.echo(f"  {count:,} packets: {after} instead of {before}")


def _tell_more(count: int) -> None:
    if count > SHOWN:
        click.echo(f"  and {count - SHOWN:,} more; -o json has all")
