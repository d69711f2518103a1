"""The flight recorder of a running instance: asked, and saved when there is reason to."""

import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from tests.netns.command import api, run, worker_pids
from tests.netns.conftest import ONE_DRIVER, SERVED, Up
from tests.netns.traffic import ask, wait_for

pytestmark = [ONE_DRIVER, SERVED]

CONFIG = f"""
recorder: {{size: 1000, dump_when: "packet_reasons(reason='no-backend') > 0"}}
services:
- {{vip: '{VIP}:80', backends: ['10.0.1.2:8080']}}
- {{vip: '{VIP}:81'}}
"""


def recorded(lab: Lab, *arguments: str) -> list[dict[str, Any]]:
    """What `featherlb recorder` shows."""
    shown = run(lab.balancer, "recorder", "--limit", "1000", "-o", "json", *arguments)
    assert shown.returncode == 0, shown.stderr
    return [json.loads(line) for line in shown.stdout.splitlines()]


def test_decisions_survive_a_crash_and_are_saved_with_reason(
    lab: Lab, featherlb: Up, tmp_path: Path
) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(CONFIG)
    with featherlb(lab, "--config", str(path)) as running:

        def saved(count: int) -> bool:
            return len(api(lab.balancer, "recorder")["saved"]) == count

        ask(lab.client)
        (pid,) = worker_pids(lab.balancer)
        os.kill(pid, signal.SIGSEGV)
        wait_for(lambda: saved(1), "the dead worker's recording is saved")
        wait_for(lambda: worker_pids(lab.balancer) != [pid], "a successor is at work")
        (file,) = api(lab.balancer, "recorder")["saved"]
        assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
        of_flow = {"client": lab.client.address, "backend": "10.0.1.2:8080"}
        kinds = {
            name: [one["kind"] for one in found]
            for name, found in (
                ("file", recorded(lab, file)),
                ("flow", recorded(lab, file, "--client", of_flow["client"])),
                ("live", recorded(lab)),
                ("backend", recorded(lab, "--backend", of_flow["backend"])),
            )
        }
        assert kinds["file"][:3] == ["started", "joined", "opened"]
        assert kinds["flow"][:3] == ["opened", "changed", "changed"]
        # The successor has gone on.
        assert kinds["live"].count("started") == 2
        assert "started" not in kinds["backend"]
        assert "10.0.1.2:8080 of " in run(lab.balancer, "recorder", file).stdout

        os.kill(running.pid, signal.SIGUSR1)
        wait_for(lambda: saved(2), "it is saved on SIGUSR1")
        refused = lab.client.run(["curl", "-s", f"http://{VIP}:81/"], check=False)
        assert refused.returncode
        wait_for(lambda: saved(3), "it is saved when the condition is true")
        last = api(lab.balancer, "recorder")["saved"][-1]
        assert "no-backend" in {one["detail"] for one in recorded(lab, last)}
        asked = run(lab.balancer, "recorder", "--save").stdout.strip()
        assert asked == api(lab.balancer, "recorder")["saved"][-1]
        for file in api(lab.balancer, "recorder")["saved"]:
            Path(file).unlink()
