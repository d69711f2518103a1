"""`featherlb capture`: packets of both sides, each with what became of it."""

import signal
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click

from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.cli.asking import DURATION, filter_options, instance_option
from featherlb.cli.help import WholeNumber, Word, examples
from featherlb.model.errors import HostError
from featherlb.system.pcap import Captured, Direction, Writer

SIDES = ("clients", "backends")
"""Names of the interfaces in the file."""
LATE = 0.5
"""Seconds after the end in which packets still come that were captured before."""
MEBIBYTE = 1 << 20


@click.command(
    epilog=examples(
        "featherlb capture -w web.pcapng --service web --client 10.0.0.0/24",
        "featherlb capture -w b2.pcapng --backend 10.0.1.3:8080 --for 10s --length 128",
    )
)
@click.option(
    "-w",
    "--write",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    required=True,
    help="The file to write (pcapng); only its owner may read it.",
)
@filter_options
@click.option("--protocol", type=Word(["tcp", "udp"]), help="Only this protocol.")
@click.option(
    "--for",
    "duration",
    type=DURATION,
    metavar="TIME",
    default="1m",
    show_default=True,
    help="End after this time.",
)
@click.option("--packets", type=WholeNumber(min=1), metavar="N", help="End after so many packets.")
@click.option(
    "--max-size",
    type=WholeNumber(min=1),
    metavar="MIB",
    default=100,
    show_default=True,
    help="End when the file has so many MiB.",
)
@click.option(
    "--length",
    type=WholeNumber(min=64, max=65535),
    metavar="BYTES",
    default=65535,
    show_default=True,
    help="Bytes of each packet, at most.",
)
@instance_option
def capture(
    path: Path,
    service: str | None,
    client: str | None,
    backend: str | None,
    protocol: str | None,
    duration: float,
    packets: int | None,
    max_size: int,
    length: int,
    instance: int | None,
) -> None:
    """Capture packets on both sides of the balancer, each with a comment: what became of it.

    A translated packet is in the file twice, on the interface `clients` and on `backends`. Ends
    with Ctrl-C, or at one of its limits. Open the file with Wireshark, or with
    `tshark -r FILE -T fields -e frame.interface_name -e frame.comment`.
    """
    query = {
        "service": service,
        "client": client,
        "backend": backend,
        "protocol": protocol,
        "length": length,
    }
    source = connect(instance).capture(query)
    with closing(source):
        # The instance may refuse it: that must not cost an older file.
        first = next(source, None)
        with closing(Writer(path, SIDES)) as writer:
            found = _Capture(writer, packets, max_size * MEBIBYTE, duration)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, found.stop)
            click.echo(f"capturing for {duration:g} s to {path}; Ctrl-C ends it", err=True)
            stopped = first is None or found.run(first, source)
    click.echo(found.summary(path) if first is not None else f"{path}: no packets")
    if stopped:
        raise HostError("featherlb has stopped, and so has the capture")


class _Capture:
    """Writes packets, within limits."""

    def __init__(self, writer: Writer, packets: int | None, size: int, duration: float) -> None:
        self._writer = writer
        self._left = packets
        self._size = size
        self._counts: Counter[str] = Counter()
        self._missed = 0
        self._full = False
        self._end = time.monotonic() + duration

    def run(self, first: schema.CapturedPacket, more: Iterator[schema.CapturedPacket]) -> bool:
        """Write packets until a limit or a signal; whether it was the instance that ended."""
        self._take(first)
        for packet in more:
            self._take(packet)
            # The instance sends something all the time.
            if self._full or time.monotonic() >= self._end + LATE:
                return False
        return True

    def stop(self, *_: object) -> None:
        """End it; the handler of a signal."""
        self._end = min(self._end, time.monotonic())

    def summary(self, path: Path) -> str:
        counts = ", ".join(f"{self._counts[side]:,} on the side of {side}" for side in SIDES)
        text = f"{path}: {self._counts.total():,} packets ({counts})"
        if self._missed:
            text += f"; {self._missed:,} more were too many to be captured: narrow the filter"
        if self._full:
            text += "; it ended at its limit"
        return text

    def _take(self, packet: schema.CapturedPacket) -> None:
        self._missed += packet.missed
        if not packet.data:
            self._writer.flush()
            return
        self._writer.write(
            Captured(packet.time, b64decode(packet.data), packet.length),
            packet.comment,
            SIDES.index(packet.side),
            Direction.OUTBOUND if packet.leaving else Direction.INBOUND,
        )
        self._counts[packet.side] += 1
        self._full = self._writer.size >= self._size or self._counts.total() == self._left
