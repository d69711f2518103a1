"""Clients keep their backend across connections, by the network that they are in."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from tests.netns.conftest import ONE_DRIVER, Up, in_turn
from tests.netns.traffic import Session, wait_for

NAT_MODES = pytest.mark.parametrize("nat", ["dnat", "full"])
NETWORKS = [[f"192.0.{network}.{host}" for host in (1, 77, 254)] for network in range(1, 7)]
"""Addresses of the client, in networks of 24 bits."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """With HTTP servers on port 8080 of three backends; the networks are behind the client."""
    with Lab(backends=3) as lab, ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(HttpServer(node))
        for network in NETWORKS:
            for address in network:
                lab.client.run(["ip", "address", "add", f"{address}/32", "dev", "eth0"])
        route = ["ip", "route", "add", "192.0.0.0/21", "via", lab.client.address]
        lab.balancer.run(route)
        yield lab


def write(path: Path, nat: str, timeout: str, weights: Sequence[int] = (1, 1, 1)) -> None:
    lines = [
        "services:",
        "  - name: web",
        f"    vip: {VIP}:80",
        f"    nat: {nat}",
        "    scheduler: rr",
        f"    persistence: {{timeout: {timeout}, prefix: 24}}",
        "    backends:",
    ]
    for host, weight in enumerate(weights, start=2):
        lines.append(f"      - {{address: 10.0.1.{host}:8080, weight: {weight}}}")
    path.write_text("\n".join(lines) + "\n")


def ask_from(lab: Lab, address: str) -> str:
    with Session(lab.client, source=(address, 0)) as session:
        return session.ask().backend


@ONE_DRIVER
@NAT_MODES
def test_clients_of_one_network_keep_a_backend_of_a_weight_above_0(
    lab: Lab, featherlb: Up, tmp_path: Path, nat: str
) -> None:
    path = tmp_path / "lb.yaml"
    write(path, nat, "1h")
    with featherlb(lab, "--config", str(path)) as running:
        rounds = [[{ask_from(lab, a) for a in network} for network in NETWORKS] for _ in range(2)]
        assert rounds[1] == rounds[0]
        assert all(len(backends) == 1 for backends in rounds[0])
        # One choice for each network, in turn.
        chosen = [backends.pop() for backends in rounds[0]]
        assert set(chosen[:3]) == {"backend1", "backend2", "backend3"}
        assert chosen[3:] == chosen[:3]
        start = len(running.log)
        write(path, nat, "1h", (0, 1, 1))
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reloaded" in running.log[start:], "the end of the reload in the log")
        after = [{ask_from(lab, address) for address in network} for network in NETWORKS]
        for before, now in zip(chosen, after, strict=True):
            assert len(now) == 1
            assert now == {before} if before != "backend1" else "backend1" not in now


@in_turn(("netlink", "raw", "offload"), nat=["dnat", "full"])
def test_several_workers_remember_a_network_as_one(
    lab: Lab, featherlb: Up, tmp_path: Path, nat: str
) -> None:
    """All its connections, from whatever port, meet one worker, and so do the replies."""
    path = tmp_path / "lb.yaml"
    write(path, nat, "1h")
    with featherlb(lab, "--config", str(path), "--workers", "3") as running:
        assert "remembers" not in running.log
        chosen = [
            {ask_from(lab, address) for _ in range(4) for address in network}
            for network in NETWORKS
        ]
        assert all(len(backends) == 1 for backends in chosen), chosen
        # A service with another persistence waits for the next start.
        start = len(running.log)
        path.write_text(path.read_text().replace("prefix: 24", "prefix: 16"))
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reloaded" in running.log[start:], "the end of the reload in the log")
        wait_for(lambda: "until the next start" in running.log[start:], "the warning")


@ONE_DRIVER
def test_a_client_that_stays_away_is_forgotten(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    write(path, "dnat", "500ms")
    client, other = NETWORKS[0][0], NETWORKS[1][0]
    with featherlb(lab, "--config", str(path)):
        pause = 0.1
        while True:
            before = ask_from(lab, client)
            # The other network takes a turn, so the next choice is another backend.
            ask_from(lab, other)
            # Asking would start the timeout anew, so this can't be polled in equal steps.
            time.sleep(pause)
            if ask_from(lab, client) != before:
                break
            pause *= 2
            assert pause < 10, "the client keeps its backend"
