"""`featherlb demo`, as a user runs it."""

import re
import signal
import subprocess
import sys

import pytest

from featherlb.lab.namespaces import labs
from tests.netns.command import PROGRAM
from tests.netns.traffic import wait_for


def start(seconds: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [PROGRAM, "demo", "--seconds", str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def labs_of(process: "subprocess.Popen[str]") -> list[str]:
    return [name for name in labs() if name.startswith(f"{process.pid}x")]


def test_the_demo_balances_by_weight_without_errors() -> None:
    with start(seconds=2) as demo:
        output, errors = demo.communicate(timeout=120)
    assert (demo.returncode, errors) == (0, "")
    rows = re.findall(r"(backend\d)\D+[\d.]+:8080\D+(\d)\D+([\d,]+)\D+([\d,]+)", output)
    flows = {name: int(count.replace(",", "")) for name, _, count, _ in rows}
    assert flows.keys() == {"backend1", "backend2", "backend3"}
    # Weights 1, 1 and 2, in whole rounds; the last round may be under way.
    assert abs(flows["backend1"] - flows["backend2"]) <= 8
    assert abs(flows["backend3"] - 2 * flows["backend1"]) <= 16
    assert "no errors" in output
    assert labs_of(demo) == []


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_the_demo_leaves_nothing(end: signal.Signals) -> None:
    with start(seconds=60) as demo:
        wait_for(lambda: bool(labs_of(demo)), "the demo's lab")
        demo.send_signal(end)
        output, errors = demo.communicate(timeout=60)
    assert "Traceback" not in output + errors
    assert labs_of(demo) == []


def test_without_root_the_demo_says_so() -> None:
    # Another user may not be able to read this checkout, so everything is imported before.
    become_nobody = (
        "import os, featherlb.cli, featherlb.cli.demo\nos.setuid(65534)\nfeatherlb.cli.main()"
    )
    command = [sys.executable, "-c", become_nobody, "demo"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "sudo featherlb demo" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
