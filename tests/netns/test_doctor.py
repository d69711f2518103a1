"""`featherlb doctor` on hosts with one fault each: the printed command fixes it."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from tests.netns.command import PROGRAM, api, run, worker_pids
from tests.netns.conftest import ONE_DRIVER, Up
from tests.netns.traffic import ask, wait_for

pytestmark = [
    ONE_DRIVER,
    pytest.mark.usefixtures("driver"),
    pytest.mark.no_packets("what the doctor finds, whatever the form"),
]

BACKENDS = ("10.0.1.2:8080", "10.0.1.3:8080")


@pytest.fixture
def lab() -> Iterator[Lab]:
    """With HTTP servers on port 8080 of two backends."""
    with Lab(backends=2) as lab, ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(HttpServer(node))
        yield lab


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "lb.yaml"
    write(path)
    return path


def write(path: Path, nat: str = "dnat") -> None:
    path.write_text(
        f"services:\n- name: web\n  vip: {VIP}:80\n  nat: {nat}\n  backends: {list(BACKENDS)}\n"
    )


Finding = dict[str, Any]


def examine(lab: Lab, *arguments: str) -> list[Finding]:
    """What the doctor finds but for notes and for the packet path, which depends on the build."""
    done = run(lab.balancer, "doctor", "-o", "json", *arguments)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    found = [one for one in report["findings"] if one["severity"] != "note"]
    assert done.returncode == any(one["severity"] == "error" for one in found)
    return [one for one in found if one["check"] != "packet-path"]


def fix(lab: Lab, finding: Finding) -> None:
    """Run the command where it says; only an interface's name is for the reader to fill in."""
    command = finding["command"].replace("INTERFACE", "eth0")
    assert command, finding
    if command.startswith("featherlb "):
        command = PROGRAM + command.removeprefix("featherlb")
    place(lab, finding["place"]).run(["sh", "-c", command])


def place(lab: Lab, name: str) -> Node:
    """A host of the lab by one of its addresses or MAC addresses."""
    if not name:
        return lab.balancer
    for node in lab.nodes:
        if name in node.run(["ip", "address"]).stdout:
            return node
    raise AssertionError(f"no host {name}")


def test_a_healthy_host(lab: Lab, file: Path, featherlb: Up) -> None:
    assert examine(lab) == []
    assert examine(lab, "--config", str(file)) == []
    with featherlb(lab, "--config", str(file)):
        for arguments in ([], ["--config", str(file)], ["--client", lab.client.address]):
            assert examine(lab, *arguments) == []
        shown = run(lab.balancer, "doctor")
        assert "VIPs were tested from this host" in shown.stdout
        assert " checks: 0 errors" in shown.stdout
        assert ask(lab.client).backend in ("backend1", "backend2")


def switch_forwarding_off(lab: Lab) -> None:
    lab.balancer.sysctl("net.ipv4.ip_forward", 0)


def remove_a_rule(lab: Lab) -> None:
    lab.balancer.run(["iptables", "-t", "raw", "-D", "PREROUTING", "-j", "FEATHERLB-RAW-0"])


def remove_the_vip(lab: Lab) -> None:
    lab.balancer.run(f"ip address del {VIP}/32 dev front".split())


def drop_forwarded_packets(lab: Lab) -> None:
    lab.balancer.run(["iptables", "-I", "FORWARD", "-j", "DROP"])


def drop_them_in_nftables(lab: Lab) -> None:
    chain = "{ type filter hook forward priority 0; policy drop; ct state established accept; }"
    lab.balancer.run(["nft", "-f", "-"], input=f"table inet wall {{\n chain ahead {chain}\n}}\n")


def reject_them_in_a_further_chain(lab: Lab) -> None:
    lab.balancer.run(
        ["nft", "-f", "-"],
        input="table ip wall {\n chain last { reject; }\n chain ahead {"
        " type filter hook forward priority 5; ct state invalid drop; jump last; }\n}\n",
    )


def drop_them_in_the_legacy_flavour(lab: Lab) -> None:
    lab.balancer.run(["iptables-legacy", "-P", "FORWARD", "DROP"])


def lead_answers_elsewhere(lab: Lab) -> None:
    lab.backends[1].run(["ip", "route", "replace", "default", "via", "10.0.1.2"])


def claim_the_vip(lab: Lab) -> None:
    lab.client.run(f"ip address add {VIP}/32 dev eth0".split())


HARMS: list[tuple[Callable[[Lab], None], str, bool]] = [
    (switch_forwarding_off, "host", True),
    (remove_a_rule, "host", True),
    (remove_the_vip, "host", False),
    (drop_forwarded_packets, "firewall", True),
    (drop_them_in_nftables, "firewall", True),
    (reject_them_in_a_further_chain, "firewall", True),
    (drop_them_in_the_legacy_flavour, "firewall", True),
    (lead_answers_elsewhere, "return-path", True),
    (claim_the_vip, "vips", False),
]
"""What is done to a host, which check finds it, and whether it stops connections."""


def test_what_harms_a_running_instance(lab: Lab, featherlb: Up, file: Path) -> None:
    """One after the other: each is gone once it is fixed."""

    def stopped() -> bool:
        """Whether one of as many connections as there are backends fails."""
        try:
            for _ in BACKENDS:
                lab.client.connect(VIP, 80, timeout=0.5).close()
        except OSError:
            return True
        return False

    with featherlb(lab, "--config", str(file), "--no-restore"):
        for harm, check, stops in HARMS:
            assert not stopped()
            harm(lab)
            if stops:
                assert stopped(), harm
            findings = [one for one in examine(lab) if one["check"] == check]
            assert findings, harm
            for finding in findings:
                fix(lab, finding)
            assert examine(lab) == [], harm
        assert not stopped()


def test_the_way_back_is_certain_where_the_client_is_named(
    lab: Lab, featherlb: Up, file: Path
) -> None:
    """A backend may have a route of its own to some clients."""
    with featherlb(lab, "--config", str(file)):
        lead_answers_elsewhere(lab)
        lab.backends[1].run(["ip", "route", "add", "10.0.0.101", "via", "10.0.1.1"])
        (doubt,) = (one for one in examine(lab) if one["check"] == "return-path")
        assert doubt["severity"] == "warning"
        named = examine(lab, "--client", "10.0.0.101")
        assert [one for one in named if one["check"] == "return-path"] == []
        (finding,) = (
            one for one in examine(lab, "--client", "10.0.0.102") if one["check"] == "return-path"
        )
        assert (finding["severity"], finding["place"]) == ("error", "10.0.1.3")


def test_a_dead_backend(lab: Lab, featherlb: Up) -> None:
    options = ["--vip", f"{VIP}:80", "--backend", BACKENDS[0], "--backend", "10.0.1.3:81"]
    with featherlb(lab, *options):
        found = {one["check"]: one for one in examine(lab)}
        finding = found["backends"]
        assert "10.0.1.3:81" in finding["message"]
        assert "connection refused" in finding["message"]
        fix(lab, finding)
        assert examine(lab) == []
        assert {ask(lab.client).backend for _ in range(4)} == {"backend1"}


def test_no_backend_at_all(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, "--vip", f"{VIP}:80"):
        (finding,) = (one for one in examine(lab) if one["check"] == "traffic")
        finding["command"] = finding["command"].replace("IP:PORT", BACKENDS[0])
        fix(lab, finding)
        # What it refused before is no news.
        assert examine(lab) == []


@pytest.mark.parametrize("running", [False, True])
def test_full_nat_and_a_strict_host(lab: Lab, featherlb: Up, file: Path, running: bool) -> None:
    write(file, "full")
    with ExitStack() as stack:
        if running:
            stack.enter_context(featherlb(lab, "--config", str(file)))
        for name in ("all", "front", "back"):
            lab.balancer.sysctl(f"net.ipv4.conf.{name}.rp_filter", 1)
        lab.balancer.sysctl("net.ipv4.ip_local_port_range", "1024 60999")
        found = {one["check"]: one for one in examine(lab, "--config", str(file))}
        for check in ("preflight", "source-ports"):
            fix(lab, found[check])
        assert examine(lab, "--config", str(file)) == []


@pytest.mark.parametrize("datapath", ["nfqueue", "raw"])
def test_what_a_killed_instance_left(lab: Lab, featherlb: Up, file: Path, datapath: str) -> None:
    with featherlb(lab, "--config", str(file), "--datapath", datapath) as running:
        running.kill()
    # Its rules stop what would check the backends, which are well.
    (finding,) = examine(lab, "--config", str(file))
    assert finding["check"] == "stale-state"
    assert f"instance 0 (pid {running.pid}) is dead" in finding["message"]
    assert "run `featherlb up` or `featherlb down`" in finding["message"]
    fix(lab, finding)
    assert examine(lab, "--config", str(file)) == []


def test_an_instance_that_hangs(lab: Lab, featherlb: Up, file: Path) -> None:
    with featherlb(lab, "--config", str(file)) as running:
        os.kill(running.pid, signal.SIGSTOP)
        try:
            (finding,) = (one for one in examine(lab) if one["check"] == "configuration")
        finally:
            os.kill(running.pid, signal.SIGCONT)
        assert f"(pid {running.pid}) doesn't answer" in finding["message"]
        (pid,) = worker_pids(lab.balancer)
        os.kill(pid, signal.SIGSTOP)
        try:
            (worker,) = api(lab.balancer, "status")["workers"]
        finally:
            os.kill(pid, signal.SIGCONT)
        assert worker == {"number": 0, "pid": pid, "state": "silent"} | dict.fromkeys(
            ("flows", "received", "waiting")
        )
        wait_for(lambda: api(lab.balancer, "status")["workers"][0]["flows"] == 0, "it answers")


def test_a_reload_that_was_refused(lab: Lab, featherlb: Up, file: Path) -> None:
    with featherlb(lab, "--config", str(file)):
        right = file.read_text()
        file.write_text("services: wrong\n")
        assert run(lab.balancer, "reload").returncode == 2
        (finding,) = examine(lab)
        assert finding["check"] == "state"
        file.write_text(right)
        fix(lab, finding)
        assert examine(lab) == []


def test_a_configuration_with_faults(lab: Lab, file: Path) -> None:
    file.write_text("services:\n- vip: 10.0.0.10:80\n  sheduler: rr\n")
    (finding,) = examine(lab, "--config", str(file))
    assert "lb.yaml:3:" in finding["message"]


def test_a_vip_that_somebody_else_has(lab: Lab, file: Path) -> None:
    claim_the_vip(lab)
    (finding,) = examine(lab, "--config", str(file))
    assert f"VIP {VIP} already belongs to the host with the MAC address" in finding["message"]


ECHO = """
import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("10.0.1.2", 5353))
print(flush=True)
while True:
    data, sender = server.recvfrom(100)
    server.sendto(data, sender)
"""


def test_udp(lab: Lab, featherlb: Up, file: Path) -> None:
    file.write_text(
        f"services:\n- name: echo\n  vip: {VIP}:53\n  protocol: udp\n  backends: [10.0.1.2:5353]\n"
        "  health: {type: udp, send: ping, expect: ping, initial: down, interval: 100ms}\n"
    )
    with featherlb(lab, "--config", str(file)):
        assert {"backends", "traffic"} <= {one["check"] for one in examine(lab)}
        server = lab.backends[0].popen(["python3", "-c", ECHO], stdout=subprocess.PIPE)
        assert server.stdout is not None
        server.stdout.readline()
        while (
            json.loads(run(lab.balancer, "backends", "-o", "json").stdout)["services"][0][
                "backends"
            ][0]["state"]
            != "up"
        ):
            pass
        assert examine(lab) == []
        server.kill()
        server.wait()
        server.stdout.close()


def test_without_privileges(lab: Lab) -> None:
    done = lab.balancer.run(
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", PROGRAM, "doctor", "-o", "json"],
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads(done.stdout)
    assert {"firewall", "queue-driver", "stale-state"} <= report["skipped"].keys()
    errors = [one["check"] for one in report["findings"] if one["severity"] == "error"]
    assert errors == ["privileges"]
