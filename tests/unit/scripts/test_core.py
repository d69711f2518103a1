"""The microbenchmark, run for a moment with few flows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from featherlb.core.pools.schedulers import names

ROOT = Path(__file__).parents[3]


def test_every_scheduler_and_both_directions_are_measured() -> None:
    # It counts by itself that each packet was translated, and fails otherwise.
    ended = subprocess.run(
        [sys.executable, "-m", "scripts.bench.feed", "1000", "0.001"],
        cwd=ROOT,
        env=os.environ | {"FEATHERLB_PURE": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    run = json.loads(ended.stdout)
    assert run["compiled"] is False
    assert run["flows"] == 1024
    assert run["nanoseconds"].keys() == {
        "the call alone",
        "established, forward",
        "established, reply",
        *(f"new flow, {name}" for name in names()),
        "expiry of a flow",
    }
    assert min(run["nanoseconds"].values()) > 0
    assert run["resident"] > run["memory"] >= 0


def test_it_says_which_form_runs() -> None:
    command = ["-m", "scripts.bench.core", "--form", "interpreted", "--flows", "1000"]
    ended = subprocess.run(
        [sys.executable, *command, "--seconds", "0.001"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert "interpreted, 1,024 flows" in ended.stdout
    assert re.search(r"\| established, forward \| [\d,]+ \([\d,]+ ns\) \|", ended.stdout)
