"""The microbenchmark, run for a moment with few flows."""

import re
import subprocess
import sys
from pathlib import Path

from featherlb.core.pools.schedulers import names

ROOT = Path(__file__).parents[3]


def test_every_scheduler_and_both_directions_are_measured_in_the_form_that_is_named() -> None:
    # It counts by itself that each packet was translated, and fails otherwise.
    command = ["-m", "scripts.bench.core", "--form", "interpreted", "--flows", "1000"]
    ended = subprocess.run(
        [sys.executable, *command, "--seconds", "0.001"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "interpreted, 1,024 flows" in ended.stdout
    rows = dict(re.findall(r"^\| ([^|]+?) +\| ([\d,]+)", ended.stdout, re.MULTILINE))
    resident, memory = (
        int(rows.pop(name)) for name in ("memory of the process, MB", "of it by the flows, MB")
    )
    assert resident > memory >= 0
    assert rows.keys() == {
        "the call alone",
        "established, forward",
        "established, reply",
        *(f"new flow, {name}" for name in names()),
        "expiry of a flow",
    }
    assert all(int(one.replace(",", "")) > 0 for one in rows.values())
