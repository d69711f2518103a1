"""What a container has that another host hasn't: kernel settings that can only be read, and a
configuration named by the environment."""

from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from tests.netns.command import PROGRAM, Featherlb
from tests.netns.conftest import ONE_DRIVER
from tests.netns.traffic import ask

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
