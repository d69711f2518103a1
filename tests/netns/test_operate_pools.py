"""What operators do to a running instance, under load: nobody's request fails."""

import json
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from featherlb import COMPILED
from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from tests.netns.command import PROGRAM, Featherlb, api, change, reload, run
from tests.netns.conftest import DRIVERS, ONE_DRIVER, SERVED, Up
from tests.netns.load import Load
from tests.netns.traffic import Session, ask, wait_for

pytestmark = SERVED

ONE, TWO, THREE = BACKENDS = ("10.0.1.2:8080", "10.0.1.3:8080", "10.0.1.4:8080")


def configuration(*backends: str, extra: str = "", scheduler: str = "rr") -> str:
    pool = "".join(f"      - {backend}\n" for backend in backends)
    return (
        "timeouts: {closed: 1s}\n"
        f"services:\n  - name: web\n    vip: {VIP}:80\n    scheduler: {scheduler}\n{extra}"
        f"    backends:\n{pool}"
    )


def operate(lab: Lab, *arguments: str) -> Any:
    """A command's answer as JSON."""
    done = run(lab.balancer, *arguments, "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def states(lab: Lab) -> dict[str, tuple[str, int]]:
    """State and weight of each backend of the pool."""
    (service,) = api(lab.balancer, "services")["services"]
    return {
        one["address"]: (one["state"], one["weight"])
        for one in service["backends"]
        if one["state"] != "leaving"
    }


def leaving(lab: Lab) -> list[str]:
    """The backends that have left and still have flows."""
    (service,) = api(lab.balancer, "services")["services"]
    return [one["address"] for one in service["backends"] if one["state"] == "leaving"]


def reloaded(running: Featherlb, times: int) -> bool:
    return running.log.count(" reloaded: ") == times


def answering(lab: Lab, count: int = 6) -> Counter[str]:
    return Counter(ask(lab.client).backend for _ in range(count))


@pytest.fixture
def path(tmp_path: Path, lab: Lab) -> Path:
    """A configuration; closed connections are soon forgotten, by the kernel as well."""
    lab.balancer.sysctl("net.netfilter.nf_conntrack_tcp_timeout_close", 1)
    path = tmp_path / "lb.yaml"
    path.write_text(configuration(ONE, TWO))
    return path


@pytest.fixture
def running(lab: Lab, featherlb: Up, path: Path) -> Iterator[Featherlb]:
    with featherlb(lab, "--config", str(path)) as running:
        yield running


@ONE_DRIVER
def test_commands_show_what_the_api_answers(lab: Lab, running: Featherlb) -> None:
    def around(verb: str, resource: str) -> tuple[Any, Any, Any]:
        """What the command shows, between two answers of the API."""
        found = api(lab.balancer, resource), operate(lab, verb), api(lab.balancer, resource)
        times = [answer.pop("uptime", 0) for answer in found]
        assert times == sorted(times)
        return found

    def steady(verb: str, resource: str) -> bool:
        """Flows that have closed expire; otherwise nothing changes meanwhile."""
        before, shown, after = around(verb, resource)
        if before != after:
            return False
        assert shown == before
        return True

    assert answering(lab) == {"backend1": 3, "backend2": 3}
    for verb, resource in (("backends", "services"), ("stats", "stats"), ("status", "status")):
        wait_for(partial(steady, verb, resource), "a moment without a change")


@ONE_DRIVER
def test_each_verb_does_what_it_says(lab: Lab, running: Featherlb) -> None:
    operate(lab, "backend", "drain", "web", TWO)
    assert states(lab) == {ONE: ("up", 1), TWO: ("drained", 0)}
    assert answering(lab) == {"backend1": 6}
    assert operate(lab, "backend", "enable", "web", TWO)["number"] is None
    assert operate(lab, "backend", "changes") == {"changes": []}
    assert answering(lab) == {"backend1": 3, "backend2": 3}
    operate(lab, "backend", "add", f"{VIP}:80", THREE, "--weight", "2")
    assert states(lab)[THREE] == ("up", 2)
    assert answering(lab) == {"backend1": 2, "backend2": 2, "backend3": 2}
    operate(lab, "backend", "weight", "web", ONE, "0")
    assert answering(lab) == {"backend2": 3, "backend3": 3}
    operate(lab, "backend", "remove", "web", TWO)
    assert states(lab) == {ONE: ("up", 0), THREE: ("up", 2)}
    assert answering(lab) == {"backend3": 6}
    for one in operate(lab, "backend", "changes")["changes"]:
        operate(lab, "backend", "revert", str(one["number"]))
    assert states(lab) == {ONE: ("up", 1), TWO: ("up", 1)}
    assert answering(lab) == {"backend1": 3, "backend2": 3}


def test_a_backend_with_another_port_joins(lab: Lab, running: Featherlb) -> None:
    """Rules match replies from the ports of the current backends, whatever other filters exist."""
    lab.balancer.run(["iptables", "-P", "FORWARD", "DROP"])
    with HttpServer(lab.backends[2], port=80), HttpServer(lab.backends[2], port=9090):
        change(lab.balancer, "add", "web", "10.0.1.4:80")
        change(lab.balancer, "add", "web", "10.0.1.4:9090")
        assert answering(lab, 8) == {"backend1": 2, "backend2": 2, "backend3": 4}
        change(lab.balancer, "remove", "web", "10.0.1.4:9090")
        assert answering(lab) == {"backend1": 2, "backend2": 2, "backend3": 2}


@ONE_DRIVER
def test_a_change_reverts_by_itself(lab: Lab, running: Featherlb) -> None:
    operate(lab, "backend", "drain", "web", ONE, "--for", "1h")
    again = run(lab.balancer, "backend", "drain", "web", ONE, "--deadline", "50m")
    said = f"done: drain web {ONE}, reverts in 59m.*, remaining flows are reset in .*"
    assert re.fullmatch(said + r"\(change 2 in place of 1\)\n", again.stdout), again
    assert answering(lab, 2) == {"backend2": 2}
    operate(lab, "backend", "drain", "web", ONE, "--for", "1s")
    wait_for(lambda: states(lab)[ONE] == ("up", 1), "the end of the drain")
    assert answering(lab, 4) == {"backend1": 2, "backend2": 2}
    assert f"expired: drain web {ONE}" in running.log


def test_drained_flows_are_reset_at_the_deadline(lab: Lab, running: Featherlb) -> None:
    sessions = [Session(lab.client) for _ in range(4)]
    by_backend = {session: session.ask().backend for session in sessions}
    operate(lab, "backend", "drain", "web", ONE, "--deadline", "500ms")
    for session in sessions:
        if by_backend[session] == "backend1":
            with pytest.raises(ConnectionResetError):
                session.socket.recv(1)
        else:
            assert session.ask().backend == "backend2"
        session.socket.close()
    assert states(lab)[ONE] == ("drained", 0)


def test_flows_continue_after_their_backend_is_removed(lab: Lab, running: Featherlb) -> None:
    with Session(lab.client) as one, Session(lab.client) as two:
        answers = {session: session.ask() for session in (one, two)}
        last = one if answers[one].backend == "backend1" else two
        change(lab.balancer, "remove", "web", ONE)
        assert leaving(lab) == [ONE]
        for session, answer in answers.items():
            assert session.ask() == answer
        # The host lets go of it with its last flow only.
        rules = lab.balancer.run(["ipset", "save"], check=False).stdout
        rules += lab.balancer.run(["iptables-save"]).stdout
        assert "10.0.1.2" in rules
        last.reset()
        wait_for(lambda: "its last flow ended" in running.log, "the end of the last flow")
    rules = lab.balancer.run(["ipset", "save"], check=False).stdout
    assert "10.0.1.2" not in rules + lab.balancer.run(["iptables-save"]).stdout


@ONE_DRIVER
def test_a_canary_that_fails_is_drained_and_one_that_does_well_is_promoted(
    lab: Lab, running: Featherlb
) -> None:
    failing = "10.0.1.4:8081"  # refuses connections
    condition = "failures > 2 * others"
    trial = ["backend", "add", "web", failing, "--canary", "10%", "--for", "1h"]
    made = operate(lab, *trial, "--abort-if", condition)
    assert (made["canary"]["share"], made["remaining"]) == (10, None)
    assert failing not in run(lab.balancer, "save").stdout
    # Time enough for 20 connections on a slow machine, which take 50 requests.
    operate(lab, "backend", "add", "web", THREE, "--canary", "40%", "--for", "8s")

    def over() -> bool:
        answering(lab, 20)  # nobody's request fails
        return states(lab)[failing] == ("drained", 0) and not trials(lab)

    wait_for(over, "the end of both trials")
    assert states(lab)[THREE] == ("up", 1)
    changes = operate(lab, "backend", "changes")["changes"]
    (drain,) = (one for one in changes if one["reason"])
    # A connection may not be refused yet when it is counted.
    reason = re.escape(condition) + r": failures \S+ % \(others 0 %\), \d+ flows"
    assert (drain["action"], drain["backend"]) == ("drain", failing)
    assert re.fullmatch(reason, drain["reason"]), drain
    assert operate(lab, "status")["trials"] == [drain]
    wait_for(lambda: "flight recording saved to" in running.log, "a recording of the failure")
    assert f"the canary {failing} is drained: {drain['reason']}" in running.log
    assert f"the canary {THREE} takes its full part: it has done well with " in running.log
    assert answering(lab) == {"backend1": 2, "backend2": 2, "backend3": 2}


def trials(lab: Lab) -> list[str]:
    """The canaries on trial."""
    changes = operate(lab, "backend", "changes")["changes"]
    return [one["backend"] for one in changes if one["canary"] is not None]


def test_changes_outlive_a_worker_and_a_reload(lab: Lab, running: Featherlb, path: Path) -> None:
    change(lab.balancer, "drain", "web", ONE)
    (worker,) = api(lab.balancer, "status")["workers"]
    lab.balancer.run(["kill", "-9", str(worker["pid"])])
    wait_for(lambda: "balancing again" in running.log, "another worker")
    assert answering(lab, 4) == {"backend2": 4}
    path.write_text(configuration(ONE, THREE))
    assert operate(lab, "reload", "--dry-run")["differences"] == [
        f"web: backend {TWO} removed",
        f"web: backend {THREE} added with weight 1",
    ]
    assert answering(lab, 2) == {"backend2": 2}
    reload(lab.balancer)
    assert answering(lab, 4) == {"backend3": 4}
    reload(lab.balancer, discard=True)
    assert answering(lab, 4) == {"backend1": 2, "backend3": 2}


@ONE_DRIVER
def test_what_is_saved_runs_as_well(lab: Lab, running: Featherlb, path: Path) -> None:
    operate(lab, "backend", "add", "web", THREE, "--weight", "5")
    operate(lab, "backend", "remove", "web", ONE)
    operate(lab, "backend", "weight", "web", TWO, "9", "--for", "1h")
    saved = run(lab.balancer, "save")
    assert saved.returncode == 0
    path.write_text(saved.stdout)
    assert run(lab.balancer, "check", str(path)).returncode == 0
    operate(lab, "reload", "--discard")
    assert states(lab) == {TWO: ("up", 1), THREE: ("up", 5)}


@ONE_DRIVER
def test_the_log_level_changes_while_it_runs(lab: Lab, running: Featherlb) -> None:
    assert answering(lab, 2).total() == 2
    assert " DEBUG " not in running.log
    done = run(lab.balancer, "log-level", "debug", "--for", "1h")
    assert re.fullmatch(r"done: log level debug, reverts in \S+\n", done.stdout), done
    ask(lab.client)
    wait_for(
        lambda: f"DEBUG web: new tcp flow {lab.client.address}" in running.log, "a flow in the log"
    )
    # The successor of a worker logs them too.
    (worker,) = api(lab.balancer, "status")["workers"]
    lab.balancer.run(["kill", "-9", str(worker["pid"])])
    wait_for(lambda: "balancing again" in running.log, "another worker")
    lines = running.log.count(" DEBUG ")
    ask(lab.client)
    wait_for(lambda: running.log.count(" DEBUG ") > lines, "another flow in the log")
    shown = run(lab.balancer, "status").stdout
    assert re.search("^log level +debug, reverts in ", shown, re.MULTILINE), shown
    operate(lab, "log-level", "debug", "--for", "100ms")
    wait_for(lambda: "log level info" in running.log, "the level before")
    lines = running.log.count(" DEBUG ")
    ask(lab.client)
    # Worker and supervisor have answered since, and would have told.
    assert api(lab.balancer, "status")["log_level"] == "info"
    assert running.log.count(" DEBUG ") == lines


COMPLETED = [
    ("featherlb back", ["backends", "backend"]),
    ("featherlb backend drain ", ["web"]),
    ("featherlb backend drain web ", [ONE, TWO]),
    ("featherlb backend drain web 10.0.1.3", [TWO]),
    # Bash has taken the part in front of the colon for a word of its own.
    (f"featherlb backend drain web {ONE[:-2]}", [ONE.partition(":")[2]]),
    ("featherlb flows --state est", ["established"]),
    ("featherlb flows --backend 10.0.1.2", [ONE]),
    ("featherlb flows --backend=10.0.1.2:", [ONE.partition(":")[2]]),
    ("featherlb status --instance ", ["0"]),
    ("featherlb up --scheduler weighted-r", ["weighted-round-robin"]),
    ("featherlb up --nat ", ["dnat", "full"]),
    ("featherlb 'backend' weight \"web\" 10.0.1.3", [TWO]),
]


@ONE_DRIVER
def test_bash_completes_what_the_instance_knows(lab: Lab, running: Featherlb) -> None:
    script = (
        f'PATH={Path(PROGRAM).parent}:$PATH; eval "$(_FEATHERLB_COMPLETE=bash_source featherlb)"\n'
        "for COMP_LINE; do COMP_POINT=${#COMP_LINE}; COMPREPLY=(); _featherlb_completion featherlb;"
        ' IFS=,; echo "${COMPREPLY[*]}"; done'
    )
    lines = [line for line, _ in COMPLETED]
    done = lab.balancer.run(["bash", "--norc", "-c", script, "bash", *lines])
    assert [line.split(",") for line in done.stdout.splitlines()] == [it for _, it in COMPLETED]


REFUSALS = [
    (("backend", "drain", "mail", ONE), 2, "there is no service 'mail' (known: web)"),
    (("backend", "drain", "web", THREE), 2, "'web' has no backend 10.0.1.4:8080"),
    (("backend", "add", "web", ONE), 2, "is already a backend of 'web'"),
    (("backend", "add", "web", f"{VIP}:80"), 2, "is a VIP of service 'web'"),
    (("flows", "--state", "sleeping"), 2, "'sleeping' is unknown"),
    (("flows", "--kill"), 2, "select flows with a filter"),
    (("status", "--instance", "7"), 2, "there is no instance 7 here"),
]


@ONE_DRIVER
def test_refusals_are_one_sentence_and_change_nothing(lab: Lab, running: Featherlb) -> None:
    for arguments, code, said in REFUSALS:
        done = run(lab.balancer, *arguments)
        assert done.returncode == code, arguments
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert states(lab) == {ONE: ("up", 1), TWO: ("up", 1)}, arguments
    assert operate(lab, "backend", "changes") == {"changes": []}


def test_nobody_to_talk_to(lab: Lab) -> None:
    done = run(lab.balancer, "status")
    assert done.returncode == 1
    assert "no featherlb runs in this network namespace" in done.stderr


@ONE_DRIVER
def test_a_dead_instance_is_named_with_the_way_out(lab: Lab, featherlb: Up) -> None:
    with featherlb(lab, "--vip", f"{VIP}:80", "--backend", ONE) as running:
        running.kill()
    done = run(lab.balancer, "status")
    assert done.returncode == 1
    assert done.stderr == (
        f"featherlb: instance 0 (pid {running.pid}) is dead; packets to its VIPs are dropped: run"
        " `featherlb up` or `featherlb down`\n"
    )


@ONE_DRIVER
def test_what_goes_wrong_beside_the_packets_costs_none(
    lab: Lab, driver: str, tmp_path: Path, path: Path
) -> None:
    """A disk without room, a check that hangs, a client of the API that doesn't read."""
    # Settings stand before the disk is full: only the VIP that is added later needs a record.
    slow = (
        f"  - name: slow\n    vip: {VIP}:81\n    health: {{type: script, command: [sleep, '60'],"
        f" timeout: 1s}}\n    backends: ['{THREE}']\n"
    )
    path.write_text(configuration(ONE, TWO) + slow)
    own_run = 'mount -t tmpfs -o size=64k,mode=755 tmpfs /run/featherlb && exec "$@"'
    # Of this test alone: the file system is full for nobody else.
    program = ("unshare", "--mount", "sh", "-c", own_run, "sh", PROGRAM)
    arguments = ["up", *DRIVERS[driver], "--config", str(path)]
    Path("/run/featherlb").mkdir(exist_ok=True)
    with Featherlb(lab.balancer, arguments, tmp_path, program) as running:
        inside = ["nsenter", f"--mount=/proc/{running.process.pid}/ns/mnt", "sh", "-c"]
        deaf = lab.balancer.popen(
            [*inside, f"exec {PROGRAM} monitor"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert deaf.stdout is not None
        with deaf, deaf.stdout, Load(lab, kept=4, short=4) as load:
            deaf.send_signal(signal.SIGSTOP)
            lab.balancer.run([*inside, "cat /dev/zero > /run/featherlb/zeros || true"])
            wait_for(lambda: "is down" in running.log, "the check that hangs")
            another = configuration(ONE, TWO).replace(f"{VIP}:80", f"[{VIP}:80, 10.0.0.11:80]")
            path.write_text(another + slow)
            running.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "reload refused" in running.log, "the refusal")
            assert "No space left on device" in running.log
            before = load.latest["requests"]
            wait_for(lambda: load.latest["requests"] > before, "answers")
            lab.balancer.run([*inside, "rm /run/featherlb/zeros"])
            running.process.send_signal(signal.SIGHUP)
            wait_for(partial(reloaded, running, 1), "the reload")
            result = load.stop()
            deaf.kill()
        assert ask(lab.client, "10.0.0.11").backend
        assert "Traceback" not in running.log
    assert result["errors"] == 0, result


def test_a_hundred_reloads_under_load_lose_nothing(
    lab: Lab, running: Featherlb, path: Path, driver: str
) -> None:
    """A hundred with the default driver, compiled; each change of the pool thrice meets what the
    others, and the other form, do by themselves."""
    count = 100 if driver == "netlink" and COMPILED else 12
    pools = [(ONE, TWO), (ONE, TWO, THREE), (THREE, TWO), (TWO, ONE)]
    with Load(lab, kept=4, short=4) as load:
        for turn in range(count):
            path.write_text(configuration(*pools[turn % len(pools)]))
            running.process.send_signal(signal.SIGHUP)
            wait_for(partial(reloaded, running, turn + 1), "the reload")
        result = load.stop()
    assert api(lab.balancer, "status")["reloads"] == count
    assert result["errors"] == 0, result
    assert result["requests"] > 100
    assert result["connections"] > 100


def test_changes_under_load_lose_nothing(lab: Lab, running: Featherlb) -> None:
    with Load(lab, kept=4, short=4) as load:
        for _ in range(2):
            for action, backend, more in (
                ("add", THREE, {}),
                ("drain", ONE, {}),
                ("weight", TWO, {"weight": 7}),
                ("enable", ONE, {}),
                ("remove", THREE, {}),
            ):
                change(lab.balancer, action, "web", backend, **more)
        result = load.stop()
    assert result["errors"] == 0, result
    assert result["connections"] > 100
