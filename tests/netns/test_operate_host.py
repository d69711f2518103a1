"""An instance and its surroundings: names that move, rules that somebody removes, systemd."""

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.system.journal import Journal
from tests.netns.command import PROGRAM, Featherlb, api, reload
from tests.netns.conftest import ONE_DRIVER, SERVED, Up
from tests.netns.test_operate_pools import ONE, operate
from tests.netns.traffic import ask, wait_for

pytestmark = [ONE_DRIVER, SERVED, pytest.mark.no_packets("the supervisor and its host")]


def test_the_api_comes_back_when_its_socket_was_removed(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, "--vip", f"{VIP}:80", "--backend", ONE) as running:
        pid = api(lab.balancer, "status")["pid"]
        (path,) = lab.balancer.call(lambda: list(Journal().directory.glob("*.sock")))
        path.unlink()
        wait_for(lambda: "the API listens on it again" in running.log, "another socket")
        assert path.stat().st_mode & 0o777 == 0o600
        assert operate(lab, "status")["pid"] == pid


def test_a_reload_puts_back_what_somebody_removed(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, "--vip", f"{VIP}:80", "--backend", ONE, "--no-restore"):

        def rules() -> list[str]:
            saved = lab.balancer.run(["iptables-save"]).stdout.splitlines()
            return sorted(line for line in saved if line.startswith("-"))

        before = rules()
        for table in ("raw", "mangle", "filter"):
            lab.balancer.run(["iptables", "-t", table, "-F"])
        lab.balancer.run(["ip", "address", "del", f"{VIP}/32", "dev", "eth0"], check=False)
        lab.balancer.run(["ip", "address", "del", f"{VIP}/32", "dev", "front"], check=False)
        lab.balancer.sysctl("net.ipv4.ip_forward", 0)
        assert rules() != before
        restored = [re.sub(r" \d+ rules ", " N rules ", line) for line in reload(lab.balancer)]
        assert sorted(restored) == [
            "restored N rules of table filter",
            "restored N rules of table mangle",
            "restored N rules of table raw",
            f"restored VIP {VIP} on front",
            "restored net.ipv4.ip_forward=1",
        ]
        assert rules() == before
        assert reload(lab.balancer) == []
        assert ask(lab.client).backend == "backend1"


def test_a_reload_gets_in_front_again(lab: Lab, featherlb: Up) -> None:
    """Of rules that somebody has put before featherlb's, as a restart of Docker does."""
    with featherlb(lab, "--vip", f"{VIP}:80", "--backend", ONE):
        before = lab.balancer.run(["iptables", "-S", "FORWARD"]).stdout.splitlines()
        lab.balancer.run(["iptables", "-I", "FORWARD", "-j", "DROP"])
        with pytest.raises(OSError, match="timed out"):
            lab.client.connect(VIP, 80, timeout=0.3)
        reload(lab.balancer)
        after = lab.balancer.run(["iptables", "-S", "FORWARD"]).stdout.splitlines()
        assert after == [*before, "-A FORWARD -j DROP"]
        assert ask(lab.client).backend == "backend1"


def test_under_systemd_with_two_capabilities(lab: Lab, driver: str, tmp_path: Path) -> None:
    """As the unit runs it: it notifies readiness, and has no other privileges of root."""
    address = tmp_path / "notify"
    capabilities = "-all,+net_admin,+net_raw"
    heard: list[bytes] = []

    def listen() -> None:
        """All the time, as systemd does."""
        while b"STOPPING=1" not in heard:
            heard.append(manager.recv(100))

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(address))
        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        command = ["setpriv", "--bounding-set", capabilities, "--inh-caps", capabilities, "env"]
        command += [f"NOTIFY_SOCKET={address}", "WATCHDOG_USEC=200000", PROGRAM]
        arguments = ["up", "--driver", driver, "--vip", f"{VIP}:80", "--backend", ONE]
        with Featherlb(lab.balancer, arguments, tmp_path, command) as running:
            wait_for(lambda: heard.count(b"WATCHDOG=1") >= 3, "signs of life")
            capable = Path(f"/proc/{running.pid}/status").read_text()
            assert "CapEff:\t0000000000003000\n" in capable
            assert ask(lab.client).backend == "backend1"
            assert api(lab.balancer, "status")["pid"] == running.pid
        listener.join(10)
    assert (heard[0], heard[-1]) == (b"READY=1", b"STOPPING=1")
    assert set(heard[1:-1]) == {b"WATCHDOG=1"}


def interpreter_for_everybody() -> str:
    """A Python of this version that an ordinary user may run, with the same modules."""
    ordinary = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    # setpriv itself still has the powers to find any program; env has none.
    ordinary += ["--bounding-set=-all", "--inh-caps=-all", "env"]
    version = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    for python in (sys.executable, "/usr/bin/python3"):
        found = subprocess.run([*ordinary, python, "-c", version], capture_output=True, cwd="/")
        if found.returncode == 0:
            return python
    pytest.skip("the virtual environment is out of reach for ordinary users")


def test_an_ordinary_user_with_two_capabilities(lab: Lab, driver: str, tmp_path: Path) -> None:
    """No other power of root's is needed, and none can be gained (no_new_privs)."""
    capabilities = "-all,+net_admin,+net_raw"
    # A directory for the journal is what systemd's RuntimeDirectory= provides. It is mounted for
    # this process alone.
    prepare = (
        "mkdir -p /run/featherlb && mount -t tmpfs -o uid=65534,mode=755 tmpfs /run/featherlb"
        ' && exec "$@"'
    )
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", prepare, "sh"]
    command += ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
    command += ["--bounding-set", capabilities, "--inh-caps", capabilities]
    command += ["--ambient-caps", capabilities]
    command += ["env", f"PYTHONPATH={os.pathsep.join(filter(None, sys.path))}"]
    command += [interpreter_for_everybody(), "-m", "featherlb"]
    arguments = ["up", "--driver", driver, "--vip", f"{VIP}:80", "--backend", ONE]
    # Started where it may not even look for a configuration.
    tmp_path.chmod(0o700)
    with Featherlb(lab.balancer, arguments, tmp_path, command) as running:
        status = Path(f"/proc/{running.pid}/status").read_text()
        for line in ("Uid:\t65534\t65534", "CapEff:\t0000000000003000\n", "NoNewPrivs:\t1\n"):
            assert line in status
        page = lab.client.run(["curl", "--fail", "--silent", f"http://{VIP}/"]).stdout
        assert "backend1" in page
        assert "FEATHERLB-RAW-0" in lab.balancer.run(["iptables-save"]).stdout
    # It could also undo all that.
    assert "FEATHERLB" not in lab.balancer.run(["iptables-save"]).stdout
    assert lab.balancer.sysctl("net.ipv4.ip_forward") == "0"
