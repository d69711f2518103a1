"""What a container has that another host hasn't: kernel settings that can only be read, a
configuration named by the environment, and featherlb as its first process."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from tests.netns.command import PROGRAM, Featherlb
from tests.netns.conftest import ONE_DRIVER
from tests.netns.traffic import ask, wait_for

pytestmark = [ONE_DRIVER, pytest.mark.no_packets("settings and configuration")]

READ_ONLY = ("unshare", "--mount", "sh", "-c")
"""Before a script of sh: runs it where mounts are its own."""
SERVICE = ("--vip", f"{VIP}:80", "--backend", "10.0.1.2:8080", "--nat", "full")


def contained(*arguments: str) -> str:
    """A script of sh that runs featherlb with /proc/sys read-only."""
    return f"mount --bind -o ro /proc/sys /proc/sys && exec {PROGRAM} {' '.join(arguments)}"


def test_settings_that_are_right_already_need_no_writing(
    lab: Lab, driver: str, tmp_path: Path
) -> None:
    lab.balancer.sysctl("net.ipv4.ip_forward", 1)
    lab.balancer.sysctl("net.ipv4.conf.all.accept_local", 1)
    script = contained("up", *SERVICE)
    with (
        HttpServer(lab.backends[0]),
        Featherlb(lab.balancer, (script,), tmp_path, program=READ_ONLY),
    ):
        assert ask(lab.client).backend == "backend1"


def test_the_setting_that_is_missing_is_named(lab: Lab, driver: str) -> None:
    lab.balancer.sysctl("net.ipv4.ip_forward", 1)
    lab.balancer.sysctl("net.ipv4.conf.all.accept_local", 0)
    ended = lab.balancer.run([*READ_ONLY, contained("up", *SERVICE)], check=False)
    assert ended.returncode == 1
    assert ended.stderr == (
        "featherlb: cannot set net.ipv4.conf.all.accept_local=1: read-only file system; start the"
        " container with `--sysctl net.ipv4.conf.all.accept_local=1` or, on the host's own network,"
        " set it there with `sysctl -w net.ipv4.conf.all.accept_local=1`\n"
    )


def test_the_environment_names_the_configuration(lab: Lab, driver: str, tmp_path: Path) -> None:
    named = tmp_path / "named.yaml"
    named.write_text("services: [{vip: 10.0.0.10:80, sheduler: rr}]\n")
    run = ["env", f"FEATHERLB_CONFIG={named}", PROGRAM, "up", "--dry-run"]
    ended = lab.balancer.run(run, check=False)
    assert ended.returncode == 2
    assert f"{named}:1: services[0].sheduler" in ended.stderr
    option = tmp_path / "option.yaml"
    option.write_text("services: [{vip: 10.0.0.11:80}]\n")
    ended = lab.balancer.run([*run, "--config", str(option)])
    assert "10.0.0.11" in ended.stdout


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_first_process_leaves_those_of_others_alone(
    lab: Lab, driver: str, tmp_path: Path
) -> None:
    """What `docker exec` leaves in the background is not the rest of a check's script, whose rest
    goes."""
    runs = tmp_path / "runs"
    runs.touch()
    check = tmp_path / "check.sh"
    check.write_text(f"#!/bin/sh\nsleep 601 &\necho run >>{runs}\n")
    check.chmod(0o755)
    config = tmp_path / "featherlb.yaml"
    health = {"type": "script", "command": ["./check.sh"], "interval": "0.2s"}
    service = {"vip": f"{VIP}:80", "backends": ["10.0.1.2:8080"], "health": health}
    config.write_text(json.dumps({"services": [service]}))
    contain = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", PROGRAM)
    with (
        HttpServer(lab.backends[0]),
        lab.balancer.popen(
            [*contain, "up", "--config", str(config)], stdout=subprocess.PIPE
        ) as outside,
    ):
        try:
            assert outside.stdout is not None
            assert outside.stdout.readline() == "ready\n"
            (first,) = children(outside.pid)
            execute = ["nsenter", "--target", str(first), "--pid", "--mount", "sh", "-c"]
            lab.balancer.run([*execute, "sleep 602 >/dev/null 2>&1 &"])
            before = len(runs.read_text().splitlines())
            wait_for(lambda: len(runs.read_text().splitlines()) > before + 3, "more checks")
            supervisor, left = children(first)
            assert Path(f"/proc/{left}/cmdline").read_text() == "sleep\x00602\x00"
            sleeping = [Path(f"/proc/{pid}/cmdline").read_text() for pid in lab.balancer.pids()]
            assert sleeping.count("sleep\x00601\x00") <= 1
            assert ask(lab.client).backend == "backend1"
            os.kill(first, signal.SIGTERM)
            assert outside.wait(30) == 0
            assert not Path(f"/proc/{supervisor}").exists()
        finally:
            outside.kill()
