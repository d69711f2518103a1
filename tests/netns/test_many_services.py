"""Hundreds of services in one instance: lists of VIPs, ranges of ports, both protocols."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.servers import HttpServer
from tests.netns.conftest import ONE_DRIVER, Up
from tests.netns.datagrams import Receivers, open_socket
from tests.netns.traffic import ask

pytestmark = ONE_DRIVER

COUNT = 300
FIRST_PORT = 20000


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """With an HTTP server on port 8080 of each backend."""
    with Lab(backends=2) as lab, HttpServer(lab.backends[0]), HttpServer(lab.backends[1]):
        yield lab


def configuration(count: int) -> str:
    """One service with a range of ports, one with a list of VIPs, and further ones with a port
    each: of UDP where the number is odd, behind the first backend where it isn't."""
    lines = [
        "services:",
        "  - {name: range, vip: 10.0.0.10:8000-8010, backends: [10.0.1.2:8080]}",
        "  - {name: list, vip: [10.0.0.10:80, 10.0.0.11:80], backends: [10.0.1.3:8080]}",
    ]
    for number in range(2, count):
        protocol, backend = ("udp", "10.0.1.3:9000") if number % 2 else ("tcp", "10.0.1.2:8080")
        lines.append(
            f"  - {{name: s{number}, vip: 10.0.0.10:{FIRST_PORT + number},"
            f" protocol: {protocol}, backends: [{backend}]}}"
        )
    return "\n".join(lines) + "\n"


def rules(lab: Lab) -> list[str]:
    saved = lab.balancer.run(["iptables-save"]).stdout.splitlines()
    return [line for line in saved if line.startswith("-A")]


def test_rules_do_not_grow_with_services(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(configuration(8))
    with featherlb(lab, "--config", str(path)):
        few = rules(lab)
    path.write_text(configuration(COUNT))
    with (
        featherlb(lab, "--config", str(path)),
        Receivers([lab.backends[1]], 9000) as receivers,
    ):
        assert len(rules(lab)) == len(few)
        for port in (8000, 8005, 8010):
            assert ask(lab.client, port=port).backend == "backend1"
        for vip in ("10.0.0.10", "10.0.0.11"):
            assert ask(lab.client, vip).backend == "backend2"
        for number in (2, *range(48, COUNT, 50), COUNT - 2):
            assert ask(lab.client, port=FIRST_PORT + number).backend == "backend1"
        for number in (3, *range(49, COUNT, 50)):
            service = ("10.0.0.10", FIRST_PORT + number)
            with open_socket(lab.client, (lab.client.address, 0), service) as client:
                assert receivers.exchange(client).backend == "backend2"
        for port in (7999, 8011, FIRST_PORT + COUNT):
            with pytest.raises(ConnectionRefusedError):
                lab.client.connect("10.0.0.10", port)


def test_services_of_every_address_beside_those_of_a_single_one(
    lab: Lab, featherlb: Up, tmp_path: Path
) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(
        "services:\n"
        "  - {name: every, vip: 0.0.0.0:8000-8002, backends: [10.0.1.2:8080]}\n"
        "  - {name: one, vip: 10.0.0.10:8003, backends: [10.0.1.3:8080]}\n"
    )
    with featherlb(lab, "--config", str(path)):
        for address in ("10.0.0.10", "10.0.0.1", "10.0.1.1"):
            for port in (8000, 8002):
                assert ask(lab.client, address, port).backend == "backend1"
        assert ask(lab.client, "10.0.0.10", 8003).backend == "backend2"
        with pytest.raises(ConnectionRefusedError):
            lab.client.connect("10.0.0.1", 8003)
