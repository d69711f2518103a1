"""Start, stop, kill -9 and start again: nothing is left on the host."""

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyroute2 import IPSet

from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from featherlb.system.journal import Journal
from tests.netns.command import run
from tests.netns.conftest import ONE_DRIVER, Up
from tests.netns.traffic import Session, ask, wait_for

pytestmark = ONE_DRIVER

OPTIONS = ("--vip", f"{VIP}:80", "--backend", "10.0.1.2:8080")
NAT_MODES = pytest.mark.parametrize("nat", ["dnat", "full"])


@pytest.fixture
def lab() -> Iterator[Lab]:
    """With an HTTP server on port 8080 of the first backend."""
    with Lab(backends=1) as lab, HttpServer(lab.backends[0]):
        yield lab


def snapshot(node: Node) -> dict[str, list[str]]:
    """What `up` may touch on a host: rules, sets, addresses, routes, neighbours, sysctls."""
    commands = {
        "iptables-save": "iptables-save",
        "ip6tables-save": "ip6tables-save",
        "addresses": "ip -details addr",
        "routes": "ip route show table all",
        "IPv6 routes": "ip -6 route show table all",
        "rules": "ip rule",
        "neighbours": "ip neigh show nud permanent",
        "proxies": "ip neigh show proxy",
        "sysctls": "sysctl --all --pattern ^net",
    }
    found = {what: node.run(command.split()).stdout for what, command in commands.items()}
    for what in ("iptables-save", "ip6tables-save"):
        # A table that was never used doesn't show; one whose chains are empty again does.
        idle = r"#.*|\*.*|COMMIT|:[A-Z]+ ACCEPT \[.*\]"
        found[what] = re.sub(r"\[\d+:\d+\]", "", re.sub(rf"(?m)^(?:{idle})\n", "", found[what]))
    found["sets"] = "\n".join(node.call(set_names))
    return {
        what: [line for line in text.splitlines() if not line.startswith(COUNTERS_OF_KERNEL)]
        for what, text in found.items()
    }


def set_names() -> list[str]:
    with IPSet() as ipset:
        return sorted({reply.get_attr("IPSET_ATTR_SETNAME") for reply in ipset.list()})


COUNTERS_OF_KERNEL = ("net.netfilter.nf_conntrack_count",)
"""Sysctls that count and aren't settings."""


@NAT_MODES
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_stopping_restores_the_host(lab: Lab, featherlb: Up, nat: str, end: signal.Signals) -> None:
    # Something of the operator's own, which must stay.
    rule = ["-t", "raw", "-A", "PREROUTING", "-s", "192.0.2.9", "-j", "DROP"]
    lab.balancer.run(["iptables", *rule])
    before = snapshot(lab.balancer)
    with featherlb(lab, *OPTIONS, "--nat", nat) as running:
        assert ask(lab.client).backend == "backend1"
        assert snapshot(lab.balancer) != before
        running.process.send_signal(end)
        assert running.process.wait(10) == 0
        stopping, undone = running.log.splitlines()[-2:]
    assert stopping.endswith(f"INFO stopping: {end.name}")
    assert "INFO undone on this host: " in undone
    assert f"address {VIP} on " in undone
    assert "iptables chains FEATHERLB-*-0" in undone
    assert snapshot(lab.balancer) == before
    assert lab.balancer.pids() == []


SCHEDULER = """
import os, signal, sys, time
from pathlib import Path

worker = "featherlb.worker.loop" in sys.modules
{code}

def first(flow, backends):
    return backends[0]
"""
READING = "os.kill(os.getpid(), signal.SIGTERM); time.sleep(3600)"
STARTING_WORKERS = "if worker: os.kill(os.getppid(), signal.SIGTERM)"


@pytest.mark.parametrize("code", [READING, STARTING_WORKERS], ids=["reading", "starting-workers"])
def test_a_start_that_is_stopped_is_never_ready(
    lab: Lab, driver: str, tmp_path: Path, code: str
) -> None:
    before = snapshot(lab.balancer)
    file = tmp_path / "scheduler.py"
    file.write_text(SCHEDULER.format(code=code))
    options = ("--driver", driver, *OPTIONS, "--scheduler", f"{file}:first")
    ended = run(lab.balancer, "up", *options)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert "stopping: SIGTERM" in ended.stderr
    assert snapshot(lab.balancer) == before
    assert lab.balancer.pids() == []


def test_a_reload_that_does_not_end_keeps_no_instance_from_stopping(
    lab: Lab, featherlb: Up, tmp_path: Path
) -> None:
    before = snapshot(lab.balancer)
    file, reached = tmp_path / "scheduler.py", tmp_path / "reached"
    file.write_text(SCHEDULER.format(code=""))
    with featherlb(lab, *OPTIONS, "--scheduler", f"{file}:first") as running:
        file.write_text(SCHEDULER.format(code=f"Path({str(reached)!r}).touch(); time.sleep(3600)"))
        running.process.send_signal(signal.SIGHUP)
        wait_for(reached.exists, "the reload")
    assert snapshot(lab.balancer) == before


@NAT_MODES
def test_the_next_run_repairs_what_a_killed_one_left(lab: Lab, featherlb: Up, nat: str) -> None:
    before = snapshot(lab.balancer)
    options = (*OPTIONS, "--nat", nat)
    with featherlb(lab, *options) as running:
        assert ask(lab.client).backend == "backend1"
        during = snapshot(lab.balancer)
        running.kill()
    with featherlb(lab, *options):
        assert ask(lab.client).backend == "backend1"
        assert snapshot(lab.balancer) == during
    assert snapshot(lab.balancer) == before


@NAT_MODES
def test_down_removes_what_a_killed_run_left(lab: Lab, featherlb: Up, nat: str) -> None:
    before = snapshot(lab.balancer)
    with featherlb(lab, *OPTIONS, "--nat", nat) as running:
        assert ask(lab.client).backend == "backend1"
        running.kill()
        wait_for(lambda: not lab.balancer.pids(), "no process of the killed run is left")
    assert snapshot(lab.balancer) != before
    ended = run(lab.balancer, "down")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert snapshot(lab.balancer) == before
    directory = lab.balancer.call(Journal).directory
    assert not directory.exists()
    again = run(lab.balancer, "down")
    assert (again.returncode, again.stderr) == (0, "")
    # Other tests leave something in the meantime, in namespaces of their own.
    assert again.stdout == "nothing to clean up\n" or directory.name not in again.stdout


def test_down_leaves_a_running_instance_alone(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, *OPTIONS):
        during = snapshot(lab.balancer)
        run(lab.balancer, "down")
        assert snapshot(lab.balancer) == during
        assert ask(lab.client).backend == "backend1"


def test_instances_for_different_vips_do_not_disturb_each_other(lab: Lab, featherlb: Up) -> None:
    other = ("--vip", "10.0.0.11:80", "--backend", "10.0.1.2:8080", "--nat", "full")
    before = snapshot(lab.balancer)
    with featherlb(lab, *OPTIONS):
        alone = snapshot(lab.balancer)
        with Session(lab.client) as session:
            with featherlb(lab, *other):
                assert ask(lab.client, "10.0.0.11").peer == lab.balancer.addresses["back"][0]
                assert ask(lab.client).peer == lab.client.address
                assert session.ask().backend == "backend1"
            assert session.ask().backend == "backend1"
        assert ask(lab.client).peer == lab.client.address
        assert snapshot(lab.balancer) == alone
    assert snapshot(lab.balancer) == before


def test_the_first_of_two_instances_may_end_first(lab: Lab, featherlb: Up) -> None:
    before = snapshot(lab.balancer)
    first = featherlb(lab, *OPTIONS)
    running = first.__enter__()
    with featherlb(lab, "--vip", "10.0.0.11:80", "--backend", "10.0.1.2:8080") as second:
        assert running.stop() == 0
        (undone,) = (line for line in running.log.splitlines() if "undone on this host" in line)
        first.__exit__(None, None, None)
        assert ask(lab.client, "10.0.0.11").backend == "backend1"
        second.stop()
        (rest,) = (line for line in second.log.splitlines() if "undone on this host" in line)
    assert snapshot(lab.balancer) == before
    # What both need goes with the last one.
    assert ("ip_forward" in undone, "ip_forward" in rest) == (False, True)
    assert ("FEATHERLB-*-0" in undone, "FEATHERLB-*-1" in rest) == (True, True)


def test_a_second_instance_for_a_vip_is_refused(lab: Lab, featherlb: Up, driver: str) -> None:
    with featherlb(lab, *OPTIONS) as running:
        during = snapshot(lab.balancer)
        second = run(lab.balancer, "up", "--driver", driver, *OPTIONS)
        assert second.returncode == 1
        assert str(running.pid) in second.stderr
        assert "ready" not in second.stdout
        assert snapshot(lab.balancer) == during
        assert ask(lab.client).backend == "backend1"


def test_a_port_that_a_local_server_has_is_refused(lab: Lab, driver: str) -> None:
    before = snapshot(lab.balancer)
    options = ("--vip", "10.0.0.1:80", "--backend", "10.0.1.2:8080")
    with lab.balancer.listen("10.0.0.1", 80):
        ended = run(lab.balancer, "up", "--driver", driver, *options)
    assert ended.returncode == 1
    assert "10.0.0.1:80" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert snapshot(lab.balancer) == before


def test_a_dry_run_changes_nothing(lab: Lab, driver: str) -> None:
    before = snapshot(lab.balancer)
    ended = run(lab.balancer, "up", "--driver", driver, *OPTIONS, "--dry-run")
    assert ended.returncode == 0, ended.stderr
    assert "FEATHERLB" in ended.stdout
    assert snapshot(lab.balancer) == before


def test_a_consistent_scheduler_keeps_connections_over_a_restart(lab: Lab, featherlb: Up) -> None:
    options = (*OPTIONS, "--scheduler", "maglev")
    with featherlb(lab, *options):
        session = Session(lab.client)
        session.ask()
    with session, featherlb(lab, *options):
        assert session.ask().backend == "backend1"


def test_other_schedulers_reset_connections_they_do_not_know(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, *OPTIONS, "--scheduler", "rr"):
        session = Session(lab.client)
        session.ask()
    with (
        session,
        featherlb(lab, *OPTIONS, "--scheduler", "rr"),
        pytest.raises(ConnectionResetError),
    ):
        session.ask()


def spoil(path: Path, how: str) -> None:
    content = path.read_text()
    if how == "a link":
        path.rename(path.with_suffix(".target"))
        path.symlink_to(path.with_suffix(".target"))
    elif how == "of another version":
        path.write_text(json.dumps(json.loads(content) | {"changes": [{"kind": "Table"}]}))
    else:
        path.write_text(content[:100])


@pytest.mark.parametrize(
    ("command", "how"), [("up", "cut"), ("up", "a link"), ("down", "of another version")]
)
def test_a_record_that_cannot_be_used_is_set_aside(
    lab: Lab, featherlb: Up, command: str, how: str
) -> None:
    """Of a dead instance, beside one that runs."""
    directory = lab.balancer.call(Journal).directory
    with featherlb(lab, *OPTIONS):
        during = snapshot(lab.balancer)
        with featherlb(lab, "--vip", "10.0.0.11:80", "--backend", "10.0.1.2:8080") as dead:
            dead.kill()
            wait_for(lambda: len(lab.balancer.pids()) == 2, "no process of the killed run is left")
        (path,) = (
            one for one in directory.glob("*.json") if f'"pid": {dead.pid},' in one.read_text()
        )
        spoil(path, how)
        if command == "up":
            with featherlb(lab, "--vip", "10.0.0.12:80", "--backend", "10.0.1.2:8080") as running:
                assert ask(lab.client, "10.0.0.12").backend == "backend1"
                said = running.log
        else:
            ended = run(lab.balancer, "down")
            assert ended.returncode == 0
            said = ended.stderr
        assert f"{path} can't be used: " in said
        assert f"it is {path.name}.bad now, and what it says can't be reverted" in said
        assert ask(lab.client).backend == "backend1"
        rules = snapshot(lab.balancer)["iptables-save"]
        assert rules == during["iptables-save"]
        for one in directory.glob(f"{path.stem}.json.*"):
            one.unlink()
        for one in directory.glob("*.target"):
            one.unlink()


def test_flows_that_cannot_be_used_are_set_aside(lab: Lab, featherlb: Up) -> None:
    directory = lab.balancer.call(Journal).directory
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "0-0.flows").write_bytes(b"{}\n" + bytes(1000))
    with featherlb(lab, *OPTIONS) as running:
        assert ask(lab.client).backend == "backend1"
        said = running.log
    assert "0-0.flows can't be used: it has no flows; it is 0-0.flows.bad now" in said
    assert list(directory.iterdir()) == []


def test_flows_are_kept_where_a_start_fails(lab: Lab, featherlb: Up, driver: str) -> None:
    with featherlb(lab, *OPTIONS) as running:
        session = Session(lab.client)
        session.ask()
        running.forgets = False
    with session:
        with lab.balancer.listen("10.0.0.1", 9180):
            # The API can't listen: by then, the workers have the flows.
            config = "api: {listen: '10.0.0.1:9180', token: aaaaaaaaaaaaaaaa}\nservices: []\n"
            path = running.directory / "api.yaml"
            path.write_text(config)
            ended = run(lab.balancer, "up", "--driver", driver, *OPTIONS, "--config", str(path))
            assert "can't listen" in ended.stderr
        with featherlb(lab, *OPTIONS):
            assert session.ask().backend == "backend1"
