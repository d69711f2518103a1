"""IPv6: what the other files test with IPv4, where the kernel behaves differently."""

import hashlib
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP6
from featherlb.lab.servers import HttpServer, Nginx
from tests.netns.command import run
from tests.netns.conftest import ONE_DRIVER, QUEUEING, Up
from tests.netns.datagrams import Receivers, open_socket
from tests.netns.test_lifecycle import snapshot
from tests.netns.traffic import ask, wait_for

BACKENDS = tuple(f"2001:db8:1::{host}" for host in (2, 3, 4))
MEGABYTES = 20


@contextmanager
def served_lab() -> Iterator[Lab]:
    """With an HTTP server on port 8080 of each backend."""
    with Lab(backends=3) as lab, ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(HttpServer(node, "::"))
        yield lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with served_lab() as lab:
        yield lab


def options(nat: str = "dnat", count: int = 3) -> list[str]:
    chosen = [f"--backend=[{address}]:8080" for address in BACKENDS[:count]]
    return [f"--vip=[{VIP6}]:80", f"--nat={nat}", *chosen]


# Ports of the VIP, by what is behind them.
WEB, FILES, DATAGRAMS, MIXED = range(80, 84)


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    """For one test alone, with an HTTP server on port 8080 of each backend."""
    with served_lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def balanced(
    lab: Lab, featherlb: Up, driver: str, nat: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """One instance for all tests that leave it as it is."""

    def service(port: int, protocol: str, *backends: str) -> str:
        quoted = ", ".join(f"'{backend}'" for backend in backends)
        return (
            f"  - {{name: s{port}, vip: '[{VIP6}]:{port}', protocol: {protocol}, nat: {nat},"
            f" backends: [{quoted}]}}\n"
        )

    text = "services:\n" + service(WEB, "tcp", *(f"[{one}]:8080" for one in BACKENDS))
    text += service(FILES, "tcp", f"[{BACKENDS[0]}]:8081")
    text += service(DATAGRAMS, "udp", *(f"[{one}]:9000" for one in BACKENDS))
    if driver in QUEUEING:
        own = lab.balancer.addresses["front"][1]
        text += service(MIXED, "tcp", f"[{BACKENDS[0]}]:8080", f"[{own}]:9000")
    path = tmp_path_factory.mktemp("ipv6") / "lb.yaml"
    path.write_text(text)
    with featherlb(lab, "--config", str(path)):
        yield


@ONE_DRIVER
@pytest.mark.usefixtures("balanced")
def test_connections_take_turns(lab: Lab, nat: str) -> None:
    answers = [ask(lab.client, VIP6, WEB) for _ in range(6)]
    assert Counter(answer.backend for answer in answers) == {
        "backend1": 2,
        "backend2": 2,
        "backend3": 2,
    }
    seen = lab.client.address6 if nat == "dnat" else lab.balancer.addresses["back"][1]
    assert {answer.peer for answer in answers} == {seen}


@pytest.mark.usefixtures("balanced")
def test_a_download_arrives_as_it_is(lab: Lab) -> None:
    content = hashlib.shake_256(b"featherlb").digest(1 << 20) * MEGABYTES
    with Nginx(lab.backends[0], "[::]", 8081) as server:
        (server.files / "large").write_bytes(content)
        url = f"http://[{VIP6}]:{FILES}/files/large"
        summed = f"set -o pipefail; curl --silent --fail --max-time 30 '{url}' | sha256sum"
        digest = lab.client.run(["bash", "-c", summed]).stdout.split()[0]
    assert digest == hashlib.sha256(content).hexdigest()


@ONE_DRIVER
@pytest.mark.usefixtures("balanced")
def test_udp(lab: Lab, nat: str) -> None:
    seen = []
    with Receivers(lab.backends, 9000, socket.AF_INET6) as receivers:
        for _ in range(6):
            with open_socket(lab.client, (lab.client.address6, 0), (VIP6, DATAGRAMS)) as client:
                first = receivers.exchange(client)
                assert receivers.exchange(client) == first
                if nat == "dnat":
                    assert first.peer == client.getsockname()[:2]
            seen.append(first.backend)
    assert Counter(seen) == {"backend1": 2, "backend2": 2, "backend3": 2}


@ONE_DRIVER
@pytest.mark.usefixtures("balanced")
def test_clients_and_backends_on_the_balancers_host(lab: Lab, nat: str) -> None:
    with HttpServer(lab.balancer, lab.balancer.addresses["front"][1], 9000):
        for node in (lab.client, lab.balancer):
            answers = [ask(node, VIP6, MIXED) for _ in range(4)]
            assert Counter(answer.backend for answer in answers) == {"backend1": 2, "lb": 2}
            if nat == "dnat" and node is lab.client:
                assert {answer.peer for answer in answers} == {lab.client.address6}


@ONE_DRIVER
def test_an_assigned_vip_is_announced_to_clients_that_knew_another_owner(
    own_lab: Lab, featherlb: Up
) -> None:
    lab = own_lab
    entry = ["ip", "-6", "neigh", "replace", VIP6, "dev", "eth0"]
    lab.client.run([*entry, "lladdr", "02:00:00:00:00:99", "nud", "reachable"])
    mac = lab.balancer.run(["cat", "/sys/class/net/front/address"]).stdout.strip()

    def known() -> str:
        return lab.client.run(["ip", "-6", "neigh", "show", VIP6]).stdout

    assert "02:00:00:00:00:99" in known()
    with featherlb(lab, *options()):
        # Before any packet of the client's could have made it ask again.
        wait_for(lambda: mac in known(), "the new owner in the client's neighbour table", 3)
        assert ask(lab.client, VIP6).backend.startswith("backend")


@ONE_DRIVER
def test_without_a_backend_clients_are_refused(own_lab: Lab, featherlb: Up) -> None:
    lab = own_lab
    with featherlb(lab, *options(count=0), f"--vip=[{VIP6}]:80/udp"):
        with pytest.raises(ConnectionRefusedError):
            lab.client.connect(VIP6, 80)
        with open_socket(lab.client, (lab.client.address6, 0), (VIP6, 80)) as client:
            client.send(b"query")
            with pytest.raises(ConnectionRefusedError):
                client.recv(1)


@ONE_DRIVER
def test_brackets_in_a_configuration(own_lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    lab = own_lab
    path = tmp_path / "lb.yaml"
    path.write_text(
        "services:\n"
        f'  - {{name: six, vip: "[{VIP6}]:80", backends: ["[{BACKENDS[1]}]:8080"]}}\n'
        f'  - {{name: range, vip: ["[{VIP6}]:8000-8010", "[2001:db8::11]:80"],\n'
        f'     backends: [{{address: "[{BACKENDS[2]}]:8080"}}]}}\n'
        f"  - {{name: four, vip: 10.0.0.10:80, backends: [10.0.1.2:9000]}}\n"
    )
    with HttpServer(lab.backends[0], port=9000), featherlb(lab, "--config", str(path)):
        assert ask(lab.client, VIP6).backend == "backend2"
        for port in (8000, 8005, 8010):
            assert ask(lab.client, VIP6, port).backend == "backend3"
        assert ask(lab.client, "2001:db8::11").backend == "backend3"
        assert ask(lab.client).backend == "backend1"
        with pytest.raises(ConnectionRefusedError):
            lab.client.connect(VIP6, 8011)


@ONE_DRIVER
def test_nothing_stays_on_the_host(own_lab: Lab, featherlb: Up) -> None:
    lab = own_lab
    before = snapshot(lab.balancer)
    with featherlb(lab, *options("full")):
        ask(lab.client, VIP6)
        during = snapshot(lab.balancer)
        assert any(re.search(r"FEATHERLB", line) for line in during["ip6tables-save"])
        assert any(VIP6 in line for line in during["addresses"])
    assert snapshot(lab.balancer) == before
    with featherlb(lab, *options("full")) as running:
        running.kill()
        wait_for(lambda: not lab.balancer.pids(), "no process of the killed run is left")
    assert snapshot(lab.balancer) != before
    assert run(lab.balancer, "down").returncode == 0
    assert snapshot(lab.balancer) == before
