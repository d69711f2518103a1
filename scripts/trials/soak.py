"""`python -m scripts.trials.soak`: everything at once, for long.

Clients of all kinds are served on every datapath while backends fail, the configuration changes,
processes die, rules vanish and SYNs flood in. In the first part all of that happens; in the second
no process is replaced, so that what grows can be seen to grow. A fault is an error of a client that
nothing explains, memory that grows, and whatever is left behind. Writes a table and a chart; the
exit code is 1 if there was a fault.
"""

import os
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import le
from pathlib import Path
from statistics import median

import click

from featherlb.api import schema
from featherlb.model.errors import HostError
from scripts.bench.facts import gather
from scripts.bench.report import table
from scripts.trials import disturbances
from scripts.trials.disturbances import Disturbance
from scripts.trials.holdings import MEBIBYTE, Usage, differences, on_host, usage
from scripts.trials.stage import Clients, Event, Seen, Stage, stage, wait_for

REPLACING = 0.4
"""The share of the time in which processes are replaced."""
AFTERWARDS = 62.0
"""Seconds within which clients notice what a disturbance did: their patience, and a little."""
INTERVAL = 1.0
"""Seconds between samples."""
PAUSE = 2.0
"""Seconds between disturbances."""
GROWTH = 0.03
"""Share of its memory by which a process may grow: Python's own comes and goes in such steps."""
LEAST_GROWTH = 2 * MEBIBYTE
KILLED = re.compile(r"worker \d (?:ended with status -9: starting its successor|died$)")
"""What the log says of a worker that was killed, also to who asked it for something just then."""
LONG, EVERY, LIFETIME = 4, 0.25, 30.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured at `time`. `usage` is None if the instance did not answer."""

    time: float
    seen: Seen
    usage: Usage | None


@dataclass
class Incident:
    """A disturbance that took place."""

    kind: Disturbance
    begin: float
    end: float = float("inf")
    events: list[Event] = field(default_factory=list)
    lost: int = 0
    gap: float = 0.0


@dataclass
class Record:
    """The course of a soak. Times are those of CLOCK_MONOTONIC."""

    begin: float
    calm: float = float("inf")
    """From here on no process is replaced."""
    samples: list[Sample] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class Watch:
    """Samples what clients see and what the instance holds."""

    def __init__(self, ready: Stage, clients: Clients, record: Record) -> None:
        self._ready = ready
        self._clients = clients
        self._record = record

    def sample(self) -> None:
        found = None
        with suppress(HostError, OSError, ValueError):
            found = usage(self._ready)
        seen = self._clients.take()
        self._record.samples.append(Sample(time.monotonic(), seen, found))
        for event in seen.events:
            self._attribute(event)
        for gap in seen.gap.values():
            # Whatever began when the gap did: it may last into the next one.
            if begun := self._begun(time.monotonic() - gap + INTERVAL):
                begun.gap = max(begun.gap, gap)
        if latest := self._begun(time.monotonic()):
            latest.lost += seen.lost.total()

    def _begun(self, moment: float) -> Incident | None:
        """The last one that had begun by then."""
        incidents = reversed(self._record.incidents)
        return next((one for one in incidents if one.begin <= moment), None)

    def _attribute(self, event: Event) -> None:
        """Find the disturbance that explains an event; a fault if there is none."""
        recent = [
            incident
            for incident in reversed(self._record.incidents)
            if incident.begin <= event.time <= incident.end + AFTERWARDS
        ]
        for incident in recent:
            if incident.kind.excuse(self._ready, event):
                incident.events.append(event)
                return
        after = f"after '{recent[0].kind.name}'" if recent else "without a disturbance"
        moment = event.time - self._record.begin
        self._record.faults.append(
            f"{moment:.1f} s, {after}: {event.service}: {event.kind}: {event.why}"
        )

    def pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(INTERVAL, left))
            self.sample()


def run(
    ready: Stage,
    seconds: float,
    kinds: Sequence[Disturbance],
    seed: int,
    afterwards: float = AFTERWARDS,
) -> Record:
    """A soak from start to stop of an instance; clients stay so many seconds `afterwards`."""
    bare = on_host(ready.lab.balancer)
    ready.instance.start()
    served = on_host(ready.lab.balancer)
    record = Record(time.monotonic())
    try:
        with ready.clients(LONG, EVERY, LIFETIME) as clients:
            watch = Watch(ready, clients, record)
            watch.pause(PAUSE)
            disturb(watch, ready, record, seconds, kinds, random.Random(seed))
            watch.pause(afterwards)
        watch.sample()
        idle(ready, record)
        now = on_host(ready.lab.balancer)
        record.faults += [f"on the host: {one}" for one in differences(served, now)]
        grown(record)
    finally:
        ready.instance.stop()
    left = on_host(ready.lab.balancer)
    record.faults += [f"left on the host: {one}" for one in differences(bare, left)]
    wait_for(lambda: not ready.lab.balancer.pids(), "no process is left")
    said = re.findall(r"(?m)^.* (?:ERROR|CRITICAL) .*|^Traceback.*", ready.instance.log)
    record.faults += [line for line in said if not KILLED.search(line)]
    return record


def disturb(
    watch: Watch,
    ready: Stage,
    record: Record,
    seconds: float,
    kinds: Sequence[Disturbance],
    chance: random.Random,
) -> None:
    """One disturbance after the other, in another order each time, until the time is over."""
    rough_end = record.begin + seconds * REPLACING
    end = record.begin + seconds
    turn: list[Disturbance] = []
    while (now := time.monotonic()) < end:
        calm = now >= rough_end
        if calm and record.calm > now:
            record.calm, turn = now, []
        if not turn:
            turn = [one for one in kinds if not (calm and one.replaces)]
            if not turn:
                return watch.pause(end - now)
            chance.shuffle(turn)
        kind = turn.pop()
        incident = Incident(kind, time.monotonic())
        record.incidents.append(incident)
        try:
            kind.run(ready)
        except (RuntimeError, HostError) as error:
            record.faults.append(f"{kind.name}: {error}")
            if not ready.instance.running:
                raise
        incident.end = time.monotonic()
        watch.pause(PAUSE)


def idle(ready: Stage, record: Record) -> None:
    """Once clients have gone, flows end, and descriptors and processes are what they were."""
    try:
        wait_for(lambda: usage(ready).flows == 0, "no flow is left", 60)
    except RuntimeError:
        left = ready.instance.get("/v1/flows", schema.Flows).flows
        kinds = Counter(f"{flow.service} {flow.state}" for flow in left)
        record.faults.append(f"flows that are left without clients: {dict(kinds)}")
    first = next(
        (one.usage for one in record.samples if one.usage and one.time >= record.calm), None
    )
    if first is None:
        return
    # A check or a look at the host has some open for a moment.
    before = first.descriptors, first.processes

    def held() -> tuple[int, int]:
        now = usage(ready)
        return now.descriptors, now.processes

    try:
        wait_for(lambda: all(map(le, held(), before)), "as many descriptors and processes")
    except RuntimeError:
        record.faults.append(f"(descriptors, processes) are {held()}, and were {before}")


def grown(record: Record) -> None:
    """Memory after a third of the calm time, against its end."""
    calm = [one.usage for one in record.samples if one.usage and one.time >= record.calm]
    part = len(calm) // 3
    if not part:
        return
    for what in ("supervisor", "workers"):
        before, after = (
            median(getattr(one, what) for one in some)
            for some in (calm[part : 2 * part], calm[-part:])
        )
        if after - before > max(LEAST_GROWTH, GROWTH * before):
            record.faults.append(
                f"memory of {what}: {before / MEBIBYTE:.1f} MiB became {after / MEBIBYTE:.1f} MiB"
            )


def describe(record: Record, command: str) -> str:
    """Tables in Markdown."""
    facts = gather(command.split())
    parts = [
        f"{facts['date']}, {facts['cores']} cores ({facts['processor']}), Linux {facts['kernel']},"
        f" commit {facts['commit']}: `{command}`"
    ]
    rows = []
    for name in dict.fromkeys(one.kind.name for one in record.incidents):
        these = [one for one in record.incidents if one.kind.name == name]
        kinds = Counter(event.kind for one in these for event in one.events)
        gap = max(one.gap for one in these)
        lost = sum(one.lost for one in these)
        numbers = (len(these), kinds["broken"], kinds["failed"], lost)
        rows.append([name, *map(str, numbers), f"{gap:.1f}"])
    header = ["disturbance", "times", "broken", "failed", "datagrams lost", "longest gap, s"]
    parts.append(table(header, rows))
    totals: dict[str, Counter[str]] = {}
    for one in record.samples:
        for what in ("answers", "opened", "lost"):
            for name, count in getattr(one.seen, what).items():
                totals.setdefault(name.split("-")[0], Counter())[what] += count
    rows = [
        [datapath, *(f"{count[what]:,}" for what in ("answers", "opened", "lost"))]
        for datapath, count in totals.items()
    ]
    parts.append(table(["datapath", "answers", "flows opened", "datagrams lost"], rows))
    if record.faults:
        parts.append("\n".join(["Faults:", "", *(f"- {fault}" for fault in record.faults)]))
    else:
        parts.append("No fault.")
    return "\n\n".join(parts) + "\n"


@click.command()
@click.option("--minutes", default=60.0, show_default=True)
@click.option("--seed", type=int, help="Of the order of disturbances (default: another each time).")
@click.option(
    "--output", default="soak", show_default=True, help="Writes OUTPUT.md and OUTPUT.png."
)
def main(minutes: float, seed: int | None, output: str) -> None:
    """Serve clients of all kinds on all datapaths while everything goes wrong. Needs root."""
    if os.geteuid() != 0:
        raise click.ClickException("creating network namespaces requires root")
    seed = random.randrange(1 << 31) if seed is None else seed
    click.echo(f"seed {seed}", err=True)
    with (
        tempfile.TemporaryDirectory(prefix="featherlb-soak-") as directory,
        stage(Path(directory)) as ready,
    ):
        record = run(ready, minutes * 60, disturbances.ALL, seed)
        log = ready.instance.log
    text = describe(record, f'make soak ARGS="--minutes {minutes:g}"')
    Path(f"{output}.md").write_text(text)
    Path(f"{output}.log").write_text(log)
    # The chart needs a library that nothing else here does.
    from scripts.trials.chart import draw

    draw(Path(f"{output}.png"), record)
    click.echo(text)
    raise SystemExit(bool(record.faults))


if __name__ == "__main__":
    main(prog_name="python -m scripts.trials.soak")
