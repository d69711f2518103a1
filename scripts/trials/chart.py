"""The course of a soak as a chart (PNG)."""

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from scripts.trials.holdings import MEBIBYTE
from scripts.trials.soak import Record

COLORS = {"nfqueue": "#1f6f8b", "raw": "#e6b450", "offload": "#7a9e7e", "ebpf": "#6d597a"}
FAULT = "#c0392b"


def draw(path: Path, record: Record) -> None:
    """Answers and errors, the longest gaps, memory and flows, over the minutes; each disturbance is
    a grey stripe."""
    canvas, (rates, gaps, memory, flows) = pyplot.subplots(
        4, 1, figsize=(14, 11), sharex=True, layout="constrained"
    )
    minutes = [(one.time - record.begin) / 60 for one in record.samples]
    datapaths = dict.fromkeys(n.split("-")[0] for one in record.samples for n in one.seen.answers)
    moments = [record.begin, *(one.time for one in record.samples)]
    lengths = [max(after - before, 0.001) for before, after in pairwise(moments)]
    for datapath in datapaths:
        values = [
            sum(n for name, n in one.seen.answers.items() if name.startswith(datapath)) / length
            for one, length in zip(record.samples, lengths, strict=True)
        ]
        rates.plot(minutes, values, label=datapath, color=COLORS.get(datapath), linewidth=0.9)
        longest = [
            max((gap for name, gap in one.seen.gap.items() if name.startswith(datapath)), default=0)
            for one in record.samples
        ]
        gaps.plot(minutes, longest, color=COLORS.get(datapath), linewidth=0.9)
    rates.set_title("answers/s", fontsize=10, loc="left")
    rates.legend(fontsize=8, loc="upper right")
    gaps.set_title("longest time without an answer of a service, s", fontsize=10, loc="left")
    samples = zip(minutes, record.samples, strict=True)
    held = [(minute, one.usage) for minute, one in samples if one.usage]
    times = [minute for minute, _ in held]
    memory.plot(times, [one.supervisor / MEBIBYTE for _, one in held], label="supervisor")
    memory.plot(times, [one.workers / MEBIBYTE for _, one in held], label="workers")
    memory.set_ylim(bottom=0)
    memory.legend(fontsize=8)
    memory.set_title("memory, MiB", fontsize=10, loc="left")
    flows.plot(times, [one.flows for _, one in held], label="flows", color="#99a8b2")
    flows.set_yscale("symlog")
    flows.set_title("flows", fontsize=10, loc="left")
    second = flows.twinx()
    second.plot(times, [one.descriptors for _, one in held], color=FAULT, linewidth=0.8)
    second.set_ylabel("descriptors", fontsize=8, color=FAULT)
    for axis in (rates, gaps, memory, flows):
        axis.margins(x=0)
        axis.grid(axis="y", linewidth=0.3)
        for incident in record.incidents:
            span = [(moment - record.begin) / 60 for moment in (incident.begin, incident.end)]
            axis.axvspan(*span, color="#dddddd", linewidth=0)
    for incident in record.incidents:
        rates.annotate(
            incident.kind.name,
            ((incident.begin - record.begin) / 60, 0),
            rotation=90,
            fontsize=6,
            va="bottom",
        )
        for event in incident.events:
            gaps.axvline((event.time - record.begin) / 60, color=FAULT, linewidth=0.3)
    flows.set_xlabel("minutes", fontsize=9)
    canvas.savefig(path, dpi=100)
    pyplot.close(canvas)
