"""Backends by name: answers that move, that don't come, and that can't be used; and what waits for
none of them."""

import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from tests.netns.command import Featherlb, api, change, reload, run
from tests.netns.conftest import DRIVERS, ONE_DRIVER, Up
from tests.netns.test_operate_pools import ONE, TWO, answering, configuration, operate, states
from tests.netns.traffic import Session, ask, wait_for

pytestmark = ONE_DRIVER

THREE = "10.0.1.4:8080"
NEW_ADDRESSES = "backend names resolve to new addresses"
HEALTH = "    health: {type: tcp, interval: 200ms, timeout: 1s}\n"


@contextmanager
def hosts(lab: Lab, dns: str = "127.0.0.1") -> Iterator[Path]:
    """The balancer's own /etc/hosts, in front of a DNS server (ip-netns(8) mounts both files). The
    resolver waits for the server for longer than any test."""
    directory = Path("/etc/netns", lab.balancer.namespace)
    directory.mkdir(parents=True)
    path = directory / "hosts"
    path.write_text("")
    patience = "timeout:30 attempts:5" if dns != "127.0.0.1" else "attempts:1"
    (directory / "resolv.conf").write_text(f"nameserver {dns}\noptions {patience}\n")
    try:
        yield path
    finally:
        shutil.rmtree(directory)


@contextmanager
def silent_dns(node: Node) -> Iterator[socket.socket]:
    """A DNS server that answers nobody; its socket has the questions."""
    with node.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((node.address, 53))
        server.settimeout(60)
        yield server


@pytest.mark.usefixtures("web_servers")
def test_names_are_followed(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text("resolve_interval: 200ms\n" + configuration("pool.test:8080"))

    def addresses() -> list[str]:
        (service,) = api(lab.balancer, "services")["services"]
        return sorted(one["address"] for one in service["backends"] if one["state"] == "up")

    with hosts(lab) as names:
        names.write_text("10.0.1.2 pool.test\n")
        with featherlb(lab, "--config", str(path)) as running:
            assert addresses() == [ONE]
            with Session(lab.client) as session:
                assert session.ask().backend == "backend1"
                names.write_text("10.0.1.3 pool.test\n10.0.1.4 pool.test\n")
                wait_for(lambda: NEW_ADDRESSES in running.log, "the new addresses")
                assert addresses() == [TWO, THREE]
                assert answering(lab, 4) == {"backend2": 2, "backend3": 2}
                assert session.ask().backend == "backend1"
            # A resolver that fails changes nothing.
            names.write_text("")
            reload(lab.balancer)
            assert answering(lab, 4) == {"backend2": 2, "backend3": 2}
            # A change names the backend as the configuration does.
            refused = run(lab.balancer, "backend", "drain", "web", TWO)
            assert "its backends: pool.test:8080" in refused.stderr
            operate(lab, "backend", "weight", "web", "pool.test:8080", "5")
            assert running.log.count(NEW_ADDRESSES) == 1


def test_nobody_waits_for_a_silent_dns_server(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    pool = configuration("one.test:8080", "two.test:8080", "three.test:8080", extra=HEALTH)
    path.write_text(f"resolve_interval: 100ms\n{pool}")
    known = "10.0.1.2 one.test\n10.0.1.3 two.test\n10.0.1.4 three.test\n"
    with (
        HttpServer(lab.backends[1]),
        HttpServer(lab.backends[2]),
        hosts(lab, lab.backends[2].address) as names,
        silent_dns(lab.backends[2]) as dns,
    ):
        names.write_text(known)
        with featherlb(lab, "--config", str(path)) as running:
            with HttpServer(lab.backends[0]):
                wait_for(lambda: len(answering(lab)) == 3, "all three")
                names.write_text("")
                dns.recv(512)
            # Each of the following would wait for minutes.
            wait_for(lambda: f"{ONE} is down" in running.log, "its fall")
            wait_for(lambda: states(lab)[ONE][0] == "down", "its state")
            assert set(answering(lab)) == {"backend2", "backend3"}
            change(lab.balancer, "drain", "web", "two.test:8080")
            assert set(answering(lab)) == {"backend3"}
            assert reload(lab.balancer) == []
            assert set(answering(lab)) == {"backend3"}
            change(lab.balancer, "add", "web", "10.0.1.2:8081")
            assert "10.0.1.2:8081" in states(lab)


def test_weights_do_not_wait_for_the_host(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    """iptables waits for another program for as long as a file is there: neither the health of
    backends nor operators wait with it, and the reload takes over what they have changed."""
    path = tmp_path / "lb.yaml"
    path.write_text(configuration(ONE, TWO, extra=HEALTH))
    held, waits = tmp_path / "held", tmp_path / "waits"
    program = shutil.which("iptables-restore", path="/usr/sbin:/sbin")
    wrapper = tmp_path / "bin" / "iptables-restore"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\nwhile [ -e {held} ]; do : > {waits}; sleep 0.1; done\nexec {program} "$@"\n'
    )
    wrapper.chmod(0o755)
    search = ("env", f"PATH={wrapper.parent}:/usr/local/bin:/usr/bin:/bin")
    with ThreadPoolExecutor() as threads, HttpServer(lab.backends[1]), HttpServer(lab.backends[2]):
        running = Featherlb(
            lab.balancer,
            ("up", *DRIVERS["netlink"], "--config", str(path)),
            tmp_path,
            (*search, *Featherlb(lab.balancer, (), tmp_path).program),
        )
        with running:
            with HttpServer(lab.backends[0]), HttpServer(lab.backends[0], port=8081):
                wait_for(lambda: set(answering(lab)) == {"backend1", "backend2"}, "both")
                change(lab.balancer, "add", "web", "10.0.1.2:8081", **{"for": 3600})
                held.touch()
                path.write_text(configuration(ONE, TWO, THREE, extra=HEALTH))
                reloading = threads.submit(reload, lab.balancer)
                try:
                    wait_for(waits.exists, "iptables")
                    change(lab.balancer, "drain", "web", TWO)
                    assert states(lab)[TWO] == ("drained", 0)
                    change(lab.balancer, "weight", "web", ONE, weight=7)
                    wait_for(lambda: set(answering(lab)) == {"backend1"}, "the drained one's end")
                except BaseException:
                    held.unlink()
                    raise
            wait_for(lambda: f"{ONE} is down" in running.log, "its fall")
            wait_for(lambda: states(lab)[ONE] == ("down", 7), "its state")
            wait_for(lambda: states(lab)["10.0.1.2:8081"][0] == "down", "the added one's state")
            assert not reloading.done()
            held.unlink()
            differences = reloading.result(60)
            assert f"web: backend {THREE} added with weight 1" in differences
            assert {place: state for place, (state, _) in states(lab).items()} == {
                ONE: "down",
                TWO: "drained",
                THREE: "up",
                "10.0.1.2:8081": "down",
            }
            assert states(lab)[ONE] == ("down", 7)
            assert set(answering(lab)) == {"backend3"}


@pytest.mark.usefixtures("web_servers")
def test_a_name_without_an_address_is_a_backend_that_is_not_there_yet(
    lab: Lab, featherlb: Up, tmp_path: Path
) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(
        "resolve_interval: 200ms\nservices:\n"
        f"  - {{name: web, vip: '{VIP}:80', backends: ['{ONE}', 'late.test:8080']}}\n"
        f"  - {{name: none, vip: '{VIP}:81', backends: ['never.test:8080']}}\n"
    )

    def shown() -> dict[str, tuple[str, str]]:
        return {
            one["backend"]: (one["address"], one["state"])
            for service in api(lab.balancer, "services")["services"]
            for one in service["backends"]
        }

    with hosts(lab) as names, featherlb(lab, "--config", str(path)) as running:
        absent = {"late.test:8080": ("", "absent"), "never.test:8080": ("", "absent")}
        assert shown() == {ONE: (ONE, "up"), **absent}
        assert answering(lab, 2) == {"backend1": 2}
        with pytest.raises(ConnectionRefusedError):
            lab.client.connect(VIP, 81)
        text = "the name 'late.test' has no IPv4 address"
        assert f"late.test:8080: absent: {text}" in run(lab.balancer, "backends").stdout
        assert "2 with 1 backend, 2 absent" in run(lab.balancer, "status").stdout
        assert f"web: backend late.test:8080 is absent: {text}" in "".join(reload(lab.balancer))
        change(lab.balancer, "drain", "web", "late.test:8080")
        names.write_text("10.0.1.3 late.test\n")
        wait_for(lambda: shown()["late.test:8080"] == (TWO, "drained"), "its address")
        assert answering(lab, 2) == {"backend1": 2}
        change(lab.balancer, "enable", "web", "late.test:8080")
        assert answering(lab, 2) == {"backend1": 1, "backend2": 1}
        assert running.log.count(f"backend late.test:8080 is absent: {text}") == 2
        assert "web: backend late.test:8080 is absent no longer" in running.log
        # An operator's mistake is not for later.
        refused = run(lab.balancer, "backend", "add", "web", "wrong.test:8080")
        assert refused.returncode == 2
        assert "wrong.test:8080 can't be a backend: the name 'wrong.test' has no" in refused.stderr


@pytest.mark.usefixtures("web_servers")
def test_an_answer_that_cannot_be_used_is_nobody_elses_fault(
    lab: Lab, featherlb: Up, tmp_path: Path
) -> None:
    """Two names of one service come to mean one address, another name means a VIP, another one the
    address of this host's own server: the other service's names move all the same."""
    path = tmp_path / "lb.yaml"
    path.write_text(
        "resolve_interval: 200ms\nservices:\n"
        f"  - {{name: a, vip: '{VIP}:80', backends: ['one.test:8080', 'two.test:8080']}}\n"
        f"  - {{name: b, vip: '{VIP}:81', backends: ['b.test:8080']}}\n"
        f"  - {{name: c, vip: '{VIP}:82', backends: ['c.test:80', '{ONE}']}}\n"
        "  - {name: d, vip: '0.0.0.0:8083', backends: ['d.test:8083']}\n"
    )

    def moved() -> bool:
        return ask(lab.client, port=81).backend == "backend3"

    with hosts(lab) as names:
        names.write_text(
            "10.0.1.2 one.test\n10.0.1.3 two.test\n10.0.1.2 b.test\n10.0.1.4 c.test\n"
            "10.0.1.4 d.test\n"
        )
        with featherlb(lab, "--config", str(path)) as running:
            assert answering(lab, 4) == {"backend1": 2, "backend2": 2}
            own = "10.0.1.1"
            names.write_text(
                f"10.0.1.3 one.test\n10.0.1.3 two.test\n10.0.1.4 b.test\n{VIP} c.test\n"
                f"{own} d.test\n"
            )
            wait_for(moved, "the other service's address")
            assert answering(lab, 4) == {"backend2": 4}
            services = {one["name"]: one for one in api(lab.balancer, "services")["services"]}
            assert [(one["backend"], one["state"]) for one in services["a"]["backends"][:2]] == [
                ("one.test:8080", "up"),
                ("two.test:8080", "absent"),
            ]
            assert f"{TWO} is the backend one.test:8080 already" in running.log
            text = f"{VIP}:80 is a VIP of service 'a'"
            assert f"c: backend c.test:80 is absent: {text}" in running.log
            # What the host refuses leaves the last address in use.
            assert [one["address"] for one in services["d"]["backends"]] == ["10.0.1.4:8083"]
            assert "10.0.1.1:8083 of service 'd' is the VIP 0.0.0.0:8083 itself" in running.log
            names.write_text(names.read_text().replace("10.0.1.3 one", "10.0.1.2 one"))
            wait_for(lambda: len(answering(lab, 4)) == 2, "both addresses again")
