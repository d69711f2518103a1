"""Where the VIP, the clients and the backends are: elsewhere, or on the balancer's own host."""

import re
from collections.abc import Iterator

import pytest

from netns import Lab
from netns.lab import VIP, VIP6
from netns.servers import HttpServer
from tests.netns.conftest import QUEUED, QUEUEING, Up, all_pairs, in_turn
from tests.netns.traffic import Answer, Session, ask, let_forward

FRONT, BACK = "10.0.0.1", "10.0.1.1"
BACKEND = ("--backend", "10.0.1.2:8080")
NAT_MODES = ("dnat", "full")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """With an HTTP server on port 8080 of the first backend."""
    with Lab(backends=1) as lab, HttpServer(lab.backends[0]):
        yield lab


def addresses(lab: Lab) -> str:
    return lab.balancer.run(["ip", "-brief", "address"]).stdout


@in_turn(nat=NAT_MODES)
def test_a_vip_that_no_host_has_is_assigned(lab: Lab, featherlb: Up, nat: str) -> None:
    with featherlb(lab, "--vip", f"{VIP}:80", "--nat", nat, *BACKEND):
        assert f" {VIP}/" in addresses(lab)
        assert ask(lab.client).backend == "backend1"
    assert f" {VIP}/" not in addresses(lab)


@in_turn(nat=NAT_MODES)
def test_a_vip_that_is_an_address_of_the_host_stays_so(lab: Lab, featherlb: Up, nat: str) -> None:
    before = addresses(lab)
    with featherlb(lab, "--vip", f"{FRONT}:80", "--nat", nat, *BACKEND):
        assert addresses(lab) == before
        assert ask(lab.client, FRONT).backend == "backend1"
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


@all_pairs(nat=NAT_MODES, vip=(VIP, FRONT))
def test_a_client_on_the_balancers_host(lab: Lab, featherlb: Up, nat: str, vip: str) -> None:
    with featherlb(lab, "--vip", f"{vip}:80", "--nat", nat, *BACKEND):
        for _ in range(3):
            assert ask(lab.balancer, vip).backend == "backend1"
        assert ask(lab.client, vip).backend == "backend1"


@all_pairs(QUEUEING, nat=NAT_MODES, address=(FRONT, BACK, "127.0.0.1"), vip=(VIP, FRONT))
def test_a_backend_on_the_balancers_host(
    lab: Lab, featherlb: Up, nat: str, address: str, vip: str
) -> None:
    backend = ("--backend", f"{address}:9000")
    with (
        HttpServer(lab.balancer, address, 9000),
        featherlb(lab, "--vip", f"{vip}:80", "--nat", nat, *backend),
    ):
        answer = ask(lab.client, vip)
        assert answer.backend == "lb"
        if nat == "dnat":
            assert answer.peer == lab.client.address
        # The client may be there as well.
        assert ask(lab.balancer, vip).backend == "lb"


@QUEUED
def test_local_and_remote_backends_share_a_pool(lab: Lab, featherlb: Up) -> None:
    with (
        HttpServer(lab.balancer, "127.0.0.1", 9000),
        featherlb(lab, "--vip", f"{VIP}:80", *BACKEND, "--backend", "127.0.0.1:9000"),
    ):
        for node in (lab.client, lab.balancer):
            assert sorted(ask(node).backend for _ in range(4)) == ["backend1"] * 2 + ["lb"] * 2


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


@pytest.mark.parametrize("family", [4, 6])
def test_one_arm_no_backend_is_told_a_way_around_the_balancer(featherlb: Up, family: int) -> None:
    with Lab(backends=1, arms=1) as lab:
        (backend,) = lab.backends
        client, gateway, server, vip, any_address = (
            (lab.client.address, FRONT, backend.address, VIP, "0.0.0.0")
            if family == 4
            else (
                lab.client.address6,
                lab.balancer.addresses["front"][1],
                f"[{backend.address6}]",
                VIP6,
                "::",
            )
        )
        backend.run(
            [
                "ip",
                f"-{family}",
                "route",
                "add",
                f"{client}/{32 if family == 4 else 128}",
                "via",
                gateway,
            ]
        )
        with (
            HttpServer(backend, any_address),
            featherlb(
                lab, "--vip", f"{vip}:80" if family == 4 else f"[{vip}]:80", *backend_option(server)
            ),
        ):
            assert {ask(lab.client, vip).peer for _ in range(20)} == {client}
        counted = backend.run(["nstat", "-asz", "IcmpInRedirects", "Icmp6InRedirects"]).stdout
    assert re.findall(r"InRedirects\s+(\d+)", counted) == ["0", "0"]


def backend_option(address: str) -> tuple[str, str]:
    return "--backend", f"{address}:8080"
