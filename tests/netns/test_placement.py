"""Where the VIP, the clients and the backends are: elsewhere, or on the balancer's own host."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP, VIP6
from featherlb.lab.servers import HttpServer
from tests.netns.conftest import QUEUEING, Up, all_pairs, in_turn
from tests.netns.traffic import Answer, Session, ask, let_forward

FRONT, BACK = "10.0.0.1", "10.0.1.1"
OWN = (FRONT, BACK, "127.0.0.1")
"""Addresses of the balancer's host."""
BACKEND = ("--backend", "10.0.1.2:8080")
NAT_MODES = ("dnat", "full")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """With an HTTP server on port 8080 of the first backend."""
    with Lab(backends=1) as lab, HttpServer(lab.backends[0]):
        yield lab


def addresses(lab: Lab) -> str:
    return lab.balancer.run(["ip", "-brief", "address"]).stdout


@all_pairs(nat=NAT_MODES)
def test_a_vip_of_no_host_is_assigned_and_one_of_this_host_stays(
    lab: Lab, featherlb: Up, nat: str
) -> None:
    before = addresses(lab)
    with featherlb(lab, "--vip", f"{VIP}:80", "--vip", f"{FRONT}:80", "--nat", nat, *BACKEND):
        during = addresses(lab)
        assert f" {VIP}/" in during
        assert re.sub(rf" {VIP}/\d+", "", during).split() == before.split()
        for vip in (VIP, FRONT):
            assert ask(lab.client, vip).backend == "backend1"
            # A client on the balancer's host.
            for _ in range(3):
                assert ask(lab.balancer, vip).backend == "backend1"
            assert ask(lab.client, vip).backend == "backend1"
    assert addresses(lab) == before


@in_turn(nat=NAT_MODES)
def test_an_address_of_this_host_as_the_only_vip(lab: Lab, featherlb: Up, nat: str) -> None:
    before = addresses(lab)
    with featherlb(lab, "--vip", f"{FRONT}:80", "--nat", nat, *BACKEND):
        assert addresses(lab) == before
        for node in (lab.client, lab.balancer):
            assert ask(node, FRONT).backend == "backend1"
    assert addresses(lab) == before


@in_turn(nat=NAT_MODES)
def test_a_vip_that_is_routed_to_the_balancer_needs_no_address(
    lab: Lab, featherlb: Up, nat: str
) -> None:
    before = addresses(lab)
    with featherlb(lab, "--vip", "192.0.2.1:80", "--no-assign", "--nat", nat, *BACKEND):
        assert addresses(lab) == before
        assert ask(lab.client, "192.0.2.1").backend == "backend1"


@all_pairs(nat=NAT_MODES)
def test_the_unspecified_address_is_every_address_of_the_host(
    lab: Lab, featherlb: Up, nat: str
) -> None:
    let_forward(lab.balancer)
    with featherlb(lab, "--vip", "0.0.0.0:8000", "--nat", nat, *BACKEND):
        for address in (FRONT, BACK):
            with Session(lab.client, address, 8000) as session:
                assert session.socket.getpeername() == (address, 8000)
                assert session.ask().backend == "backend1"
        # Traffic that only passes through the host isn't its own.
        assert ask(lab.client, lab.backends[0].address, 8080) == Answer(
            "backend1", lab.client.address
        )
        with pytest.raises(ConnectionRefusedError):
            lab.client.connect(lab.backends[0].address, 8000)


@all_pairs(QUEUEING, nat=NAT_MODES)
def test_backends_on_the_balancers_host(lab: Lab, featherlb: Up, nat: str, tmp_path: Path) -> None:
    """Each behind either kind of VIP, and one of them in a pool with another host."""
    ports = {place: 80 + i for i, place in enumerate(product((VIP, FRONT), OWN))}
    services = [
        f"{{name: s{port}, vip: '{vip}:{port}', nat: {nat}, backends: ['{address}:9000']}}"
        for (vip, address), port in ports.items()
    ]
    pool = "'10.0.1.2:8080', '127.0.0.1:9000'"
    services.append(f"{{name: mixed, vip: '{VIP}:90', nat: {nat}, backends: [{pool}]}}")
    path = tmp_path / "lb.yaml"
    path.write_text("services: [" + ", ".join(services) + "]\n")
    with ExitStack() as stack:
        for address in OWN:
            stack.enter_context(HttpServer(lab.balancer, address, 9000))
        stack.enter_context(featherlb(lab, "--config", str(path)))
        for (vip, _), port in ports.items():
            answer = ask(lab.client, vip, port)
            assert answer.backend == "lb"
            if nat == "dnat":
                assert answer.peer == lab.client.address
            # The client may be there as well.
            assert ask(lab.balancer, vip, port).backend == "lb"
        for node in (lab.client, lab.balancer):
            answers = sorted(ask(node, VIP, 90).backend for _ in range(4))
            assert answers == ["backend1"] * 2 + ["lb"] * 2


def test_one_arm_with_everything_on_one_network(featherlb: Up) -> None:
    with Lab(backends=2, arms=1) as lab:
        servers = [HttpServer(node) for node in lab.backends]
        options = [option for node in lab.backends for option in backend_option(node.address)]
        with (
            servers[0],
            servers[1],
            featherlb(lab, "--vip", f"{VIP}:80", "--nat", "full", *options),
        ):
            answers = [ask(lab.client) for _ in range(4)]
    assert sorted(answer.backend for answer in answers) == ["backend1"] * 2 + ["backend2"] * 2
    assert {answer.peer for answer in answers} <= {FRONT, VIP}


def test_one_arm_no_backend_is_told_a_way_around_the_balancer(
    featherlb: Up, tmp_path: Path
) -> None:
    with (
        Lab(backends=1, arms=1) as lab,
        HttpServer(lab.backends[0]),
        HttpServer(lab.backends[0], "::"),
    ):
        (backend,) = lab.backends
        gateway, gateway6 = lab.balancer.addresses["front"]
        backend.run(["ip", "route", "add", f"{lab.client.address}/32", "via", gateway])
        backend.run(["ip", "-6", "route", "add", f"{lab.client.address6}/128", "via", gateway6])
        path = tmp_path / "lb.yaml"
        path.write_text(
            "services:\n"
            f"  - {{name: four, vip: '{VIP}:80', backends: ['{backend.address}:8080']}}\n"
            f"  - {{name: six, vip: '[{VIP6}]:80', backends: ['[{backend.address6}]:8080']}}\n"
        )
        with featherlb(lab, "--config", str(path)):
            seen = {ask(lab.client, vip).peer for vip in (VIP, VIP6) for _ in range(20)}
        assert seen == {lab.client.address, lab.client.address6}
        counted = backend.run(["nstat", "-asz", "IcmpInRedirects", "Icmp6InRedirects"]).stdout
    assert re.findall(r"InRedirects\s+(\d+)", counted) == ["0", "0"]


def backend_option(address: str) -> tuple[str, str]:
    return "--backend", f"{address}:8080"
