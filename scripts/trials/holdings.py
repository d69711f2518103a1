"""What an instance holds: processes, descriptors, memory, flows, rules, addresses."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featherlb.api import schema
from featherlb.lab import Node
from featherlb.system.journal import Journal
from scripts.bench.cost import lasting
from scripts.trials.stage import Stage

MEBIBYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Usage:
    """At one moment. Memory is in bytes: resident and not shared with files; `supervisor` and the
    sum of the workers'."""

    supervisor: int
    workers: int
    flows: int
    descriptors: int
    """Of all processes."""
    processes: int


def usage(stage: Stage) -> Usage:
    """HostError if the instance doesn't answer."""
    status = stage.instance.get("/v1/status", schema.Status)
    workers = [worker.pid for worker in status.workers]
    pids = [status.pid, *workers]
    return Usage(
        supervisor=_resident(status.pid),
        workers=sum(map(_resident, workers)),
        flows=status.flows,
        descriptors=sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
        processes=len(lasting(stage.lab.balancer.pids())),
    )


def _resident(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return sum(int(size) << 10 for size in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+)", text))


def on_host(node: Node) -> Mapping[str, list[str]]:
    """What an instance puts on its host, line by line."""
    found: dict[str, list[str]] = {}
    for program in ("iptables-save", "ip6tables-save"):
        text = re.sub(r"\[\d+:\d+\]", "", node.run([program]).stdout)
        # A table that was never used doesn't show; one whose chains are empty again does.
        idle = re.compile(r"#.*|\*.*|COMMIT|:[A-Z]+ ACCEPT .*")
        found[program] = [line for line in text.splitlines() if not idle.fullmatch(line)]
    shown = node.run(["ip", "-o", "address"]).stdout.splitlines()
    found["addresses"] = [re.sub(r" +valid_lft.*", "", line) for line in shown]
    directory = node.call(Journal).directory
    # What a worker had decided before it was killed is kept for whoever asks why.
    found["state files"] = sorted(
        path.name for path in directory.glob("*") if path.suffix != ".recording"
    )
    return found


def differences(before: Mapping[str, list[str]], after: Mapping[str, list[str]]) -> list[str]:
    """What has come (+) and gone (-)."""
    return [
        f"{what}: {sign} {line}"
        for what in before
        for sign, one, other in (("+", after, before), ("-", before, after))
        for line in one[what]
        if line not in other[what]
    ]
