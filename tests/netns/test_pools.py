"""Pools under load: who gets connections when backends fail, come back, fill up."""

import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from tests.netns.command import Featherlb, api, change, reload, run
from tests.netns.conftest import ONE_DRIVER, SERVED, WATCHED_OR_ASKED, Up, all_pairs
from tests.netns.load import Load
from tests.netns.test_health import logged, quiet, reachable, refused
from tests.netns.test_operate_pools import operate
from tests.netns.traffic import Session, ask, ask_over, reset, wait_for

pytestmark = SERVED

ONE, TWO, THREE = "10.0.1.2:8080", "10.0.1.3:8080", "10.0.1.4:8080"
REFUSE = ["INPUT", "-p", "tcp", "--dport", "8080", "--syn", "-j", "REJECT"]
REFUSE += ["--reject-with", "tcp-reset"]
IGNORE = ["INPUT", "-p", "tcp", "--dport", "8080", "--syn", "-j", "DROP"]


@pytest.fixture
def balancing(lab: Lab, featherlb: Up, tmp_path: Path) -> Callable[..., Any]:
    """Runs one service with these options and backends."""

    @contextmanager
    def balance(options: str, *backends: str, more: str = "") -> Iterator[Featherlb]:
        path = tmp_path / "lb.yaml"
        pool = ", ".join(backends)
        path.write_text(
            f"services:\n- {{name: web, vip: '{VIP}:80', {options}, backends: [{pool}]}}\n{more}"
        )
        with featherlb(lab, "--config", str(path)) as running:
            yield running

    return balance


def backends(lab: Lab) -> dict[str, dict[str, Any]]:
    (service,) = api(lab.balancer, "services")["services"]
    return {one["address"]: one for one in service["backends"]}


def answering(lab: Lab, count: int = 6) -> Counter[str]:
    return Counter(ask(lab.client).backend for _ in range(count))


@contextmanager
def firewall(lab: Lab, number: int, rule: list[str]) -> Iterator[None]:
    """New connections to a backend's server hit this rule; established ones continue."""
    lab.backends[number].run(["iptables", "-A", *rule])
    try:
        yield
    finally:
        lab.backends[number].run(["iptables", "-D", *rule])


@WATCHED_OR_ASKED
@pytest.mark.parametrize("rule", [REFUSE, IGNORE], ids=["refuses", "ignores"])
def test_a_backend_that_fails_clients_is_ejected_and_tried_again(
    lab: Lab, balancing: Callable[..., Any], rule: list[str]
) -> None:
    """Without any health check."""
    passive = "passive_health: {failures: 3, ejection: 1s}"
    with balancing(passive, ONE, TWO, THREE) as running, Load(lab, kept=2, short=6) as load:
        wait_for(lambda: load.latest["connections"] > 50, "connections")
        with firewall(lab, 0, rule):
            wait_for(lambda: f"{ONE} is ejected for 1 s: " in running.log, "the ejection")
            wait_for(lambda: f"{ONE} is ejected for 2 s: " in running.log, "a longer one")
            wait_for(lambda: f"{ONE}: ejected: " in shown(lab), "what people see")
        wait_for(lambda: backends(lab)[ONE]["state"] == "up", "its return")
        wait_for(lambda: answering(lab).keys() == {"backend1", "backend2", "backend3"}, "all")
        wait_for(partial(quiet, load), "an end of the errors")
        load.stop()


def shown(lab: Lab) -> str:
    return run(lab.balancer, "backends").stdout


@ONE_DRIVER
def test_checks_bring_an_ejected_backend_back(
    lab: Lab, balancing: Callable[..., Any], tmp_path: Path
) -> None:
    """The check says for itself when the backend is well."""
    flag = tmp_path / "sick"
    command = f'[/bin/sh, -c, "[ $FEATHERLB_ADDRESS != 10.0.1.2 ] || [ ! -e {flag} ]"]'
    options = (
        f"health: {{type: script, command: {command}, interval: 200ms, fall: 100}},"
        " passive_health: {failures: 3, ejection: 1ms}"
    )
    with balancing(options, ONE, TWO) as running, Load(lab, kept=0, short=4) as load:
        wait_for(lambda: load.latest["connections"] > 50, "connections")
        flag.touch()
        with firewall(lab, 0, REFUSE):
            wait_for(
                lambda: f"{ONE} is ejected until its health checks" in running.log, "the ejection"
            )
            wait_for(lambda: reachable(lab), "the others alone")
        assert answering(lab) == {"backend2": 6}
        assert logged(running, f"{ONE} is up", 0)
        flag.unlink()
        wait_for(lambda: logged(running, f"{ONE} is up"), "its return")
        wait_for(lambda: answering(lab, 4).keys() == {"backend1", "backend2"}, "both")
        load.stop()


@WATCHED_OR_ASKED
def test_no_more_than_the_allowed_share_is_ejected(lab: Lab, balancing: Callable[..., Any]) -> None:
    passive = "passive_health: {failures: 3, ejection: 1m, max_ejected: 34}"
    with (
        balancing(passive, ONE, TWO, THREE) as running,
        firewall(lab, 0, REFUSE),
        firewall(lab, 1, REFUSE),
        Load(lab, kept=0, short=4) as load,
    ):
        wait_for(lambda: " is ejected for 60 s" in running.log, "the ejection")
        counted = backends(lab)
        refused = {name: one["refused"] for name, one in counted.items()}
        (kept,) = [name for name in (ONE, TWO) if counted[name]["state"] == "up"]
        wait_for(lambda: backends(lab)[kept]["refused"] > refused[kept] + 50, "refusals")
        assert running.log.count("is ejected") == 1
        load.stop()


@all_pairs(("netlink", "raw", "offload"), nat=("dnat", "full"))
def test_a_client_that_starts_over_from_its_port_leaves_a_backend_that_is_down_or_gone(
    lab: Lab, balancing: Callable[..., Any], nat: str
) -> None:
    """Its flows are kept, and the balancer has not heard the end of its connections. A backend that
    is well knows by itself that its connection is over."""
    health = "health: {type: tcp, interval: 200ms, timeout: 500ms}"
    ports = (40001, 40002, 40003)
    with balancing(f"nat: {nat}, {health}", ONE, TWO, THREE) as running:
        connections = [connect_from(lab, port) for port in ports]
        served = {ask_over(one).backend: port for one, port in zip(connections, ports, strict=True)}
        silence = ["OUTPUT", "-p", "tcp", "--sport", "40001:40003", "-j", "DROP"]
        lab.client.run(["iptables", "-A", *silence])
        for one in connections:
            reset(one)
        lab.client.run(["iptables", "-D", *silence])
        with firewall(lab, 0, ["INPUT", "-p", "tcp", "--dport", "8080", "-j", "DROP"]):
            wait_for(lambda: f"{ONE} is down: " in running.log, "its fall")
            wait_for(lambda: backends(lab)[ONE]["state"] == "down", "its state")
            change(lab.balancer, "remove", "web", TWO)
            assert sorted(served) == ["backend1", "backend2", "backend3"]
            for port in served.values():
                with connect_from(lab, port) as again:
                    assert ask_over(again).backend == "backend3"


def connect_from(lab: Lab, port: int) -> socket.socket:
    """A connection of the client's to the VIP from this port."""
    return lab.client.call(socket.create_connection, (VIP, 80), 30, ("", port))


@WATCHED_OR_ASKED
def test_a_backend_that_comes_back_takes_its_share_slowly(
    lab: Lab, balancing: Callable[..., Any], tmp_path: Path
) -> None:
    flag = tmp_path / "sick"
    command = f'[/bin/sh, -c, "[ $FEATHERLB_ADDRESS != 10.0.1.2 ] || [ ! -e {flag} ]"]'
    options = (
        f"scheduler: lc, slow_start: 1h, health: {{type: script, command: {command},"
        " interval: 100ms, rise: 1, fall: 1}"
    )
    with balancing(options, f"{{address: '{ONE}', weight: 10}}", TWO) as running:
        assert answering(lab) == {"backend1": 3, "backend2": 3}
        flag.touch()
        wait_for(lambda: logged(running, f"{ONE} is down"), "its fall")
        flag.unlink()
        wait_for(lambda: logged(running, f"{ONE} is up"), "its return")
        wait_for(lambda: 0 < backends(lab)[ONE]["effective_weight"] < 1, "the beginning")
        assert answering(lab, 20) == {"backend2": 20}
        assert " of 10" in shown(lab)
        # Somebody who joins starts slowly as well.
        change(lab.balancer, "add", "web", THREE)
        assert answering(lab, 10) == {"backend2": 10}
        # Those that are left start at once.
        change(lab.balancer, "drain", "web", TWO)
        assert answering(lab, 8).keys() == {"backend1", "backend3"}
        # Nothing is lost while it grows.
        with Load(lab, kept=4, short=4) as load:
            path = tmp_path / "lb.yaml"
            path.write_text(path.read_text().replace("1h", "2s"))
            reload(lab.balancer, discard=True)
            wait_for(lambda: backends(lab)[ONE]["effective_weight"] == 10, "all of it")
            result = load.stop()
        assert result["errors"] == 0, result
        # featherlb learns a moment later that offloaded connections have closed.
        wait_for(lambda: not any(one["active"] for one in backends(lab).values()), "no connection")
        assert answering(lab) == {"backend1": 3, "backend2": 3}


@ONE_DRIVER
def test_backups_serve_when_nobody_else_can_and_then_the_sorry_server(
    lab: Lab, balancing: Callable[..., Any]
) -> None:
    pool = (ONE, f"{{address: '{TWO}', role: backup}}", f"{{address: '{THREE}', role: sorry}}")
    with balancing("scheduler: rr", *pool), Load(lab, kept=4, short=4) as load:
        assert answering(lab) == {"backend1": 6}
        change(lab.balancer, "drain", "web", ONE)
        assert answering(lab) == {"backend2": 6}
        change(lab.balancer, "drain", "web", TWO)
        assert answering(lab) == {"backend3": 6}
        table = shown(lab)
        assert [f" {word} " in table for word in ("drained", "sorry", "backup")] == [1, 1, 0]
        change(lab.balancer, "enable", "web", ONE)
        assert answering(lab) == {"backend1": 6}
        result = load.stop()
    assert result["errors"] == 0, result


@ONE_DRIVER
def test_in_panic_all_backends_are_used(lab: Lab, balancing: Callable[..., Any]) -> None:
    """The check is wrong for two of three backends, which are well."""
    command = '[/bin/sh, -c, "[ $FEATHERLB_ADDRESS = 10.0.1.2 ]"]'
    health = f"health: {{type: script, command: {command}, interval: 200ms}}, panic_threshold: 50"
    with balancing(health, ONE, TWO, THREE) as running:
        wait_for(
            lambda: logged(running, "web: too few backends are healthy, all are used"), "panic"
        )
        wait_for(lambda: len(answering(lab)) == 3, "all of them")
        assert api(lab.balancer, "status")["panic"] == ["web"]
        assert "panic" in run(lab.balancer, "status").stdout
        assert backends(lab)[TWO]["state"] == "down"
        # One more that is well ends it; here, two less that are not.
        change(lab.balancer, "weight", "web", THREE, weight=0)
        wait_for(lambda: logged(running, "enough backends are healthy"), "its end")
        assert answering(lab) == {"backend1": 6}


@WATCHED_OR_ASKED
@pytest.mark.parametrize("scheduler", ["rr", "lc", "maglev"])
def test_full_backends_pass_connections_on(
    lab: Lab, balancing: Callable[..., Any], scheduler: str
) -> None:
    limited = [f"{{address: '{one}', max_connections: 3}}" for one in (ONE, TWO)]
    backup = f"{{address: '{THREE}', role: backup, max_connections: 2}}"
    with balancing(f"scheduler: {scheduler}", *limited, backup), ExitStack() as stack:
        sessions = [stack.enter_context(Session(lab.client)) for _ in range(8)]
        held = Counter(session.ask().backend for session in sessions)
        assert held == {"backend1": 3, "backend2": 3, "backend3": 2}
        assert refused(lab)
        assert api(lab.balancer, "stats")["reasons"]["pool-full"] == 1
        assert backends(lab)[ONE]["active"] == backends(lab)[ONE]["max_connections"] == 3
        leaver = next(one for one in sessions if one.ask().backend == "backend2")
        leaver.close()
        assert answering(lab, 3) == {"backend2": 3}
        # Those that are open are not disturbed.
        assert Counter(one.ask().backend for one in sessions if one is not leaver)["backend1"] == 3


@WATCHED_OR_ASKED
def test_a_limit_holds_under_load_and_with_two_workers(
    lab: Lab, balancing: Callable[..., Any]
) -> None:
    limited = f"{{address: '{ONE}', max_connections: 4}}"
    with balancing("scheduler: lc", limited, TWO, more="workers: 2\n"):
        with Load(lab, kept=12, short=8) as load:
            seen = set()

            def busy() -> bool:
                seen.add(backends(lab)[ONE]["active"])
                return bool(load.latest["connections"] > 500)

            wait_for(busy, "connections")
            result = load.stop()
        assert result["errors"] == 0, result
        assert max(seen) <= 4
        assert max(seen) > 0


@ONE_DRIVER
def test_roles_limits_and_labels_are_shown_and_saved(
    lab: Lab, balancing: Callable[..., Any]
) -> None:
    with balancing("slow_start: 1s, panic_threshold: 20, passive_health: {}", ONE):
        labels = ("--label", "zone=a", "--label", "rack=r7")
        operate(
            lab, "backend", "add", "web", TWO, "--role", "sorry", "--max-connections", "7", *labels
        )
        added = backends(lab)[TWO]
        assert (added["role"], added["max_connections"], added["state"]) == ("sorry", 7, "up")
        assert added["labels"] == {"zone": "a", "rack": "r7"}
        assert f"  rack=r7: {TWO}\n" in run(lab.balancer, "backends").stdout
        assert "1 with zone=a" in run(lab.balancer, "status").stdout
        text = run(lab.balancer, "save").stdout
        for line in (
            "role: sorry",
            "max_connections: 7",
            "zone: a",
            "slow_start: 1.0",
            "panic_threshold: 20",
        ):
            assert line in text
        for option in (("--max-connections", "0"), ("--label", "zone"), ("--label", "zone=a b")):
            wrong = run(lab.balancer, "backend", "add", "web", THREE, *option)
            assert wrong.returncode == 2


@ONE_DRIVER
def test_health_is_put_in_force_without_descriptors(
    lab: Lab, balancing: Callable[..., Any]
) -> None:
    """Weights need nothing of the host."""
    passive = "passive_health: {failures: 3, ejection: 1m}"
    with balancing(passive, ONE, TWO) as running, Load(lab, kept=0, short=4) as load:
        soft, hard = resource.prlimit(running.pid, resource.RLIMIT_NOFILE)
        # What is open stays open.
        resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (3, hard))
        with firewall(lab, 0, REFUSE):
            wait_for(lambda: f"{ONE} is ejected" in running.log, "its ejection")
            wait_for(partial(quiet, load), "an end of the errors")
            assert answering(lab, 4) == {"backend2": 4}
            resource.prlimit(running.pid, resource.RLIMIT_NOFILE, (soft, hard))
        load.stop()
        assert api(lab.balancer, "status")["watchdog_fed"]
