"""Health checks: new connections avoid backends that are down, and find those that are back."""

import json
import os
import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from select import select
from typing import Any

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP, VIP6
from featherlb.lab.servers import HttpServer
from tests.netns.command import Featherlb, api, flows, reload, run
from tests.netns.conftest import ONE_DRIVER, Up
from tests.netns.datagrams import Receivers, open_socket
from tests.netns.load import Load
from tests.netns.traffic import Session, ask, wait_for

pytestmark = ONE_DRIVER

ONE, TWO = BACKENDS = ("10.0.1.2:8080", "10.0.1.3:8080")
FAST = "interval: 200ms, timeout: 1s"


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backends=2) as lab:
        yield lab


@pytest.fixture
def servers(lab: Lab) -> Iterator[list[ExitStack]]:
    """An HTTP server on port 8080 of each backend: closing the stack ends it."""
    stacks = [ExitStack() for _ in lab.backends]
    for number in range(len(stacks)):
        serve(lab, stacks, number)
    yield stacks
    for stack in stacks:
        stack.close()


def serve(lab: Lab, servers: list[ExitStack], number: int) -> None:
    servers[number].enter_context(HttpServer(lab.backends[number]))


@contextmanager
def balancing(
    lab: Lab, featherlb: Up, path: Path, health: str, extra: str = "", api: str = ""
) -> Iterator[Featherlb]:
    path.write_text(
        f"{api}services:\n  - name: web\n    vip: {VIP}:80\n    health: {{{health}}}\n{extra}"
        f"    backends: [{', '.join(f'{{address: {one}, weight: 3}}' for one in BACKENDS)}]\n"
    )
    with featherlb(lab, "--config", str(path)) as running:
        yield running


def backends(lab: Lab) -> dict[str, dict[str, Any]]:
    (service,) = api(lab.balancer, "services")["services"]
    return {one["address"]: one for one in service["backends"]}


def logged(running: Featherlb, text: str, times: int = 1) -> bool:
    return running.log.count(text) == times


def answering(lab: Lab, count: int = 6) -> set[str]:
    """The backends that answer; empty if a connection is refused, as may be when a state is in the
    log already and in force a moment later."""
    try:
        return {ask(lab.client).backend for _ in range(count)}
    except ConnectionRefusedError:
        return set()


def reachable(lab: Lab) -> bool:
    """Whether each of a few connections in a row is made at once."""
    try:
        for _ in range(4):
            lab.client.connect(VIP, 80, timeout=0.5).close()
    except OSError:
        return False
    return True


def test_a_backend_killed_under_load_is_avoided_and_comes_back(
    lab: Lab, servers: list[ExitStack], featherlb: Up, tmp_path: Path
) -> None:
    with balancing(lab, featherlb, tmp_path / "lb.yaml", f"type: tcp, {FAST}") as running:
        with Load(lab, kept=2, short=4) as load:
            servers[0].close()
            wait_for(lambda: logged(running, f"{ONE} is down: connection refused"), "its fall")
            wait_for(lambda: reachable(lab), "the others alone")
            down = backends(lab)[ONE]
            # The load's own connections that met the dead backend have all been refused by now.
            wait_for(partial(quiet, load), "an end of the errors")
            errors = load.latest["errors"]
            connections = load.latest["connections"]
            wait_for(lambda: load.latest["connections"] > connections + 100, "connections")
            assert load.latest["errors"] == errors
            assert answering(lab) == {"backend2"}
            serve(lab, servers, 0)
            wait_for(lambda: logged(running, f"{ONE} is up"), "its return")
            wait_for(lambda: answering(lab, 4) == {"backend1", "backend2"}, "both again")
            result = load.stop()
        assert result["errors"] == errors, result
        assert (down["state"], down["weight"]) == ("down", 3)
        assert down["failure"] == "connection refused"
        assert logged(running, f"{ONE} is down")
        up = backends(lab)[ONE]
        assert (up["state"], up["weight"], up["failure"]) == ("up", 3, "")


def test_a_preferred_zone_spills_what_it_can_not_take_and_all_when_it_is_gone(
    lab: Lab, servers: list[ExitStack], featherlb: Up, tmp_path: Path
) -> None:
    """Zone a has two servers on backend1, zone b has backend2."""
    second = ExitStack()
    servers.append(second)
    second.enter_context(HttpServer(lab.backends[0], port=8081))
    pool = "".join(
        f"      - {{address: '{address}', labels: {{zone: {zone}}}}}\n"
        for address, zone in ((ONE, "a"), ("10.0.1.2:8081", "a"), (TWO, "b"))
    )
    path = tmp_path / "lb.yaml"
    path.write_text(
        f"services:\n  - name: web\n    vip: {VIP}:80\n    health: {{type: tcp, {FAST}}}\n"
        f"    prefer: {{labels: {{zone: a}}}}\n    backends:\n{pool}"
    )
    with featherlb(lab, "--config", str(path)) as running:
        assert answering(lab, 12) == {"backend1"}
        second.close()
        wait_for(lambda: logged(running, "10.0.1.2:8081 is down"), "its fall")
        # 71 % stay: by chance alone, 60 connections would all do so once in 10^9 runs.
        wait_for(lambda: answering(lab, 60) == {"backend1", "backend2"}, "both zones")
        servers[0].close()
        wait_for(lambda: logged(running, f"{ONE} is down"), "the fall of the zone")
        wait_for(lambda: answering(lab) == {"backend2"}, "the other zone alone")
        serve(lab, servers, 0)
        second.enter_context(HttpServer(lab.backends[0], port=8081))
        wait_for(lambda: logged(running, "10.0.1.2:8081 is up"), "its return")
        wait_for(lambda: answering(lab, 12) == {"backend1"}, "the preferred zone alone")


def test_backends_keep_their_states_while_no_check_can_be_made(
    lab: Lab, servers: list[ExitStack], featherlb: Up, tmp_path: Path
) -> None:
    """The supervisor has no descriptors left for a while, which says nothing of the backends."""
    with balancing(lab, featherlb, tmp_path / "lb.yaml", f"type: tcp, fall: 1, {FAST}") as running:
        soft, hard = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)
        # What is open stays open.
        resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (3, hard))
        wait_for(lambda: "could not run" in running.log, "checks without a verdict")
        assert answering(lab) == {"backend1", "backend2"}
        assert "is down" not in running.log
        resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (soft, hard))
        servers[0].close()
        wait_for(lambda: logged(running, f"{ONE} is down: connection refused"), "its fall")
        status = api(lab.balancer, "status")
        assert status["watchdog_fed"]
        assert {task["name"]: task["restarts"] for task in status["tasks"]}["health-checks"] == 0


def quiet(load: Load) -> bool:
    """Whether no error comes while 100 connections are made."""
    errors, connections = load.latest["errors"], load.latest["connections"]
    wait_for(lambda: load.latest["connections"] > connections + 100, "connections")
    return bool(load.latest["errors"] == errors)


def test_connections_are_refused_when_all_are_down(
    lab: Lab, servers: list[ExitStack], featherlb: Up, tmp_path: Path
) -> None:
    health = f"type: http, {FAST}, status: 404"
    with balancing(lab, featherlb, tmp_path / "lb.yaml", health) as running:
        for one in BACKENDS:
            wait_for(partial(logged, running, f"{one} is down: status 200"), "its fall")
        wait_for(lambda: refused(lab), "a refusal")
        shown = run(lab.balancer, "backends").stdout
        assert f"{ONE}: last check failed: status 200" in shown


def refused(lab: Lab) -> bool:
    try:
        ask(lab.client)
    except ConnectionRefusedError:
        return True
    return False


def test_a_reload_changes_and_ends_checks(
    lab: Lab, servers: list[ExitStack], featherlb: Up, tmp_path: Path
) -> None:
    path = tmp_path / "lb.yaml"
    with balancing(lab, featherlb, path, f"type: tcp, {FAST}, port: 9, rise: 1") as running:
        for one in BACKENDS:
            wait_for(partial(logged, running, f"{one} is down: connection refused"), "its fall")
        path.write_text(path.read_text().replace("port: 9", "port: 8080"))
        done = run(lab.balancer, "reload", "-o", "json")
        assert json.loads(done.stdout)["differences"] == ["web: health check changed"]
        for one in BACKENDS:
            wait_for(partial(logged, running, f"{one} is up"), "its return")
        wait_for(lambda: answering(lab) == {"backend1", "backend2"}, "both")
        path.write_text(path.read_text().replace("port: 8080", "port: 9"))
        reload(lab.balancer)
        wait_for(partial(logged, running, f"{ONE} is down", 2), "another fall")
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if "health" not in line))
        reload(lab.balancer)
        assert {one["state"] for one in backends(lab).values()} == {"up"}
        assert answering(lab) == {"backend1", "backend2"}


def test_what_was_never_seen_well_waits_where_it_should(
    lab: Lab, servers: list[ExitStack], featherlb: Up, tmp_path: Path
) -> None:
    servers[0].close()
    health = f"type: tcp, {FAST}, initial: down"
    with balancing(lab, featherlb, tmp_path / "lb.yaml", health) as running:
        wait_for(lambda: logged(running, f"{TWO} is up"), "the first result")
        wait_for(lambda: reachable(lab), "the backend's turn")
        assert answering(lab) == {"backend2"}
        assert backends(lab)[ONE]["state"] == "down"


@pytest.mark.parametrize("policy", ["keep", "drop", "reset"])
def test_open_flows_of_a_fallen_backend(
    lab: Lab, servers: list[ExitStack], featherlb: Up, tmp_path: Path, policy: str
) -> None:
    """The script fails for the first backend while a file is there; its server lives on."""
    flag = tmp_path / "sick"
    command = f'[/bin/sh, -c, "[ $FEATHERLB_ADDRESS != 10.0.1.2 ] || [ ! -e {flag} ]"]'
    health = f"type: script, command: {command}, {FAST}"
    extra = f"    on_backend_down: {policy}\n"
    with (
        balancing(lab, featherlb, tmp_path / "lb.yaml", health, extra) as running,
        Session(lab.client) as first,
        Session(lab.client) as second,
    ):
        by_backend = {session.ask().backend: session for session in (first, second)}
        flag.touch()
        wait_for(lambda: logged(running, f"{ONE} is down: exit code 1"), "its fall")
        if policy == "reset":
            with pytest.raises(ConnectionResetError):
                by_backend["backend1"].socket.recv(1)
        elif policy == "drop":
            wait_for(lambda: flows(lab.balancer, backend=ONE) == [], "the end of its flows")
            # No client was notified; one is when it sends.
            assert not select([by_backend["backend1"].socket], [], [], 0)[0]
            with pytest.raises(ConnectionResetError):
                by_backend["backend1"].ask()
        else:
            wait_for(lambda: backends(lab)[ONE]["state"] == "down", "its state")
            assert by_backend["backend1"].ask().backend == "backend1"
        assert by_backend["backend2"].ask().backend == "backend2"
        flag.unlink()
        wait_for(lambda: logged(running, f"{ONE} is up"), "its return")


def test_datagrams_leave_a_fallen_backend_at_once(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    """Though its flows are kept otherwise: the client's socket stays the same."""
    health = f"type: udp, send: check, {FAST}"
    with (
        Receivers(lab.backends, 8080) as receivers,
        balancing(lab, featherlb, tmp_path / "lb.yaml", health, "    protocol: udp\n") as running,
        open_socket(lab.client, ("0.0.0.0", 0)) as client,
    ):

        def serving() -> str:
            client.sendto(b"question", (VIP, 80))
            while (arrival := receivers.receive()).data != b"question":
                pass
            return arrival.backend

        first = serving()
        assert serving() == first
        place = f"{next(node.address for node in lab.backends if node.name == first)}:8080"
        receivers.sockets.pop(first).close()
        wait_for(lambda: logged(running, f"{place} is down: connection refused"), "its fall")
        wait_for(lambda: flows(lab.balancer, backend=place) == [], "the end of its flows")
        assert serving() != first
        assert logged(running, " is down: ")


def test_a_silent_backend_is_avoided(
    lab: Lab, servers: list[ExitStack], featherlb: Up, tmp_path: Path
) -> None:
    health = "type: tcp, interval: 200ms, timeout: 300ms"
    with balancing(lab, featherlb, tmp_path / "lb.yaml", health) as running:
        drop = ["INPUT", "-p", "tcp", "--dport", "8080", "-j", "DROP"]
        lab.backends[0].run(["iptables", "-A", *drop])
        wait_for(lambda: logged(running, f"{ONE} is down: no answer within 0.3 s"), "its fall")
        wait_for(lambda: reachable(lab), "the others alone")
        assert answering(lab) == {"backend2"}
        lab.backends[0].run(["iptables", "-D", *drop])
        wait_for(lambda: logged(running, f"{ONE} is up"), "its return")
        wait_for(lambda: answering(lab, 4) == {"backend1", "backend2"}, "both again")


def test_a_backend_that_flaps_stays_down_longer(
    lab: Lab, servers: list[ExitStack], featherlb: Up, tmp_path: Path
) -> None:
    """Each check changes its mind: after the first fall, good results never come in a row."""
    flag = tmp_path / "turn"
    toggle = f"if [ -e {flag} ]; then rm {flag}; else touch {flag}; exit 1; fi"
    command = f'[/bin/sh, -c, "[ $FEATHERLB_ADDRESS != 10.0.1.2 ] || {{ {toggle}; }}"]'
    count = tmp_path / "count"
    command = command.replace("if [", f"echo >> {count}; if [")
    with balancing(
        lab, featherlb, tmp_path / "lb.yaml", f"type: script, command: {command}, {FAST}"
    ) as running:
        wait_for(
            lambda: count.exists() and len(count.read_text()) >= 12, "a dozen checks", timeout=20
        )
        assert logged(running, f"{ONE} is down: exit code 1")
        assert logged(running, f"{ONE} is up", 0)
        assert answering(lab) == {"backend2"}


@pytest.mark.parametrize("kind", ["tcp", "http", "udp"])
def test_checks_over_ipv6(lab: Lab, featherlb: Up, tmp_path: Path, kind: str) -> None:
    """Good results first, bad ones when the server is gone, good ones when it is back."""
    node = lab.backends[0]
    place = f"[{node.address6}]:8080"
    protocol = "udp" if kind == "udp" else "tcp"
    path = tmp_path / "lb.yaml"
    path.write_text(
        f"services: [{{name: web, vip: '[{VIP6}]:80', protocol: {protocol}, backends: ['{place}'],"
        f" health: {{type: {kind}, {FAST}, initial: down}}}}]\n"
    )

    def server() -> AbstractContextManager[object]:
        if kind == "udp":
            return open_socket(node, (node.address6, 8080))
        return HttpServer(node, "::")

    with featherlb(lab, "--config", str(path)) as running:
        with server():
            wait_for(lambda: logged(running, f"{place} is up"), "the first good result")
            if kind != "udp":
                wait_for(lambda: asks6(lab), "an answer")
        wait_for(lambda: logged(running, f"{place} is down: connection refused"), "its fall")
        with server():
            wait_for(lambda: logged(running, f"{place} is up", 2), "its return")


def asks6(lab: Lab) -> bool:
    try:
        return ask(lab.client, VIP6).backend == "backend1"
    except ConnectionRefusedError:
        return False


def test_idle_connections_to_the_api_stop_no_check(
    lab: Lab, featherlb: Up, servers: list[ExitStack], tmp_path: Path
) -> None:
    """More of them than the process may have descriptors at first."""
    place = lab.balancer.address, 9180
    listen = f"api: {{listen: '{place[0]}:{place[1]}', token: {'x' * 16}}}\n"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        path = tmp_path / "lb.yaml"
        running = stack.enter_context(
            balancing(lab, featherlb, path, f"type: tcp, {FAST}", api=listen)
        )
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
        for _ in range(1100):
            stack.enter_context(lab.client.connect(*place))
        servers[0].close()
        wait_for(lambda: backends(lab)[ONE]["state"] == "down", "a backend down")
        serve(lab, servers, 0)
        wait_for(lambda: backends(lab)[ONE]["state"] == "up", "the backend up")
        assert len(os.listdir(f"/proc/{running.pid}/fd")) < 300
        assert len(running.log.splitlines()) < 30
        assert "too many connections" in running.log


@pytest.mark.parametrize("user", ["", ", user: nobody"])
def test_scripts_leave_no_processes(
    lab: Lab, featherlb: Up, servers: list[ExitStack], tmp_path: Path, user: str
) -> None:
    """Neither children nor those that leave group and session, also as another user."""
    script = tmp_path / "check.sh"
    script.write_text("setsid sleep 1000 & sleep 1001 & exit 0\n")
    script.chmod(0o757)
    text = f"[/bin/sh, {script}]" if not user else '[/bin/sh, -c, "setsid sleep 1000 & exit 0"]'
    health = f"type: script, command: {text}, initial: down, {FAST}{user}"
    with balancing(lab, featherlb, tmp_path / "lb.yaml", health) as running:
        for one in BACKENDS:
            wait_for(lambda one=one: logged(running, f"{one} is up"), "a good check")  # type: ignore[misc]
        # Checks are made all the while; supervisor and worker stay.
        wait_for(lambda: len(lab.balancer.pids()) == 2, "no process of a check is there")
        warned = f"root runs {script}, and {script} may be written by others (mode 0757)"
        assert (warned in running.log) is (not user)
    assert lab.balancer.pids() == []
