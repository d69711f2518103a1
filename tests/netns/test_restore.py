"""Connections survive a worker, an instance, and a restart with another configuration."""

import hashlib
import os
import random
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from tests.netns.command import Featherlb, api, run, worker_pids
from tests.netns.conftest import ONE_DRIVER, SEEING, Up, all_pairs
from tests.netns.datagrams import Receivers, open_socket
from tests.netns.traffic import Session, ask, pair, receive_all, wait_for

WEB = ("--vip", f"{VIP}:80", "--backend", "10.0.1.2:8080", "--backend", "10.0.1.3:8080")
SESSIONS = 12


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(clients=1, backends=2) as lab, ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(HttpServer(node))
        yield lab


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def sessions(lab: Lab, stack: ExitStack, count: int = SESSIONS) -> list[Session]:
    opened = [stack.enter_context(Session(lab.client)) for _ in range(count)]
    for session in opened:
        # A packet that meets nobody is sent again, with ever longer pauses.
        session.socket.settimeout(30)
    return opened


def kill_workers(lab: Lab, running: Featherlb) -> None:
    """All of them, and wait for the next ones."""
    workers = worker_pids(lab.balancer)
    restarts = running.log.count("is balancing again")
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    wait_for(
        lambda: running.log.count("is balancing again") == restarts + len(workers), "new workers"
    )


def states(lab: Lab) -> list[str]:
    return [flow["state"] for flow in api(lab.balancer, "flows")["flows"]]


@all_pairs(drivers=SEEING, nat=("dnat", "full"), workers=(1, 3))
def test_a_worker_dies(lab: Lab, featherlb: Up, stack: ExitStack, nat: str, workers: int) -> None:
    with featherlb(lab, *WEB, "--nat", nat, "--workers", str(workers)) as running:
        held = sessions(lab, stack)
        first = [session.ask() for session in held]
        before = api(lab.balancer, "services")["services"][0]["backends"]
        kill_workers(lab, running)
        assert states(lab).count("established") == SESSIONS
        after = api(lab.balancer, "services")["services"][0]["backends"]
        assert [one["active"] for one in after] == [one["active"] for one in before]
        assert [session.ask() for session in held] == first
        held[0].close()
        assert ask(lab.client).backend in ("backend1", "backend2")
        assert " restored " in running.log


@all_pairs(drivers=SEEING, nat=("dnat", "full"), workers=(1, 3), killed=(False, True))
def test_an_instance_ends(
    lab: Lab, featherlb: Up, stack: ExitStack, nat: str, workers: int, killed: bool
) -> None:
    options = (*WEB, "--nat", nat, "--workers", str(workers))
    with featherlb(lab, *options) as running:
        held = sessions(lab, stack)
        first = [session.ask() for session in held]
        running.forgets = False
        if killed:
            running.kill()
    wait_for(lambda: not lab.balancer.pids(), "the end of the workers")
    with featherlb(lab, *options) as running:
        assert states(lab).count("established") == SESSIONS
        assert [session.ask() for session in held] == first
        assert ask(lab.client).backend in ("backend1", "backend2")
        assert f"restored {SESSIONS} flows" in running.log or workers > 1


@pytest.mark.parametrize("driver", ["netlink", "raw", "offload"], indirect=True)
def test_both_ends_may_send_while_it_restarts(lab: Lab, featherlb: Up) -> None:
    """The VIP and the source address of the mode `full` stay this host's, which resets nothing."""
    options = ("--vip", f"{VIP}:80", "--nat", "full", "--backend", "10.0.1.2:8081")
    vip = ["ip", "-o", "address", "show", "to", VIP]
    with ExitStack() as ends:
        with featherlb(lab, *options) as running:
            client, server = ends.enter_context(pair(lab, VIP, 8081))
            running.forgets = False
            running.process.send_signal(signal.SIGUSR2)
            assert running.process.wait(30) == 0
            assert "dropped until the next `featherlb up`" in running.log
        wait_for(lambda: not lab.balancer.pids(), "the end of the workers")
        assert VIP in lab.balancer.run(vip).stdout
        client.sendall(b"from the client")
        server.sendall(b"from the backend")
        with featherlb(lab, *options):
            assert client.recv(16) == b"from the backend"
            assert server.recv(16) == b"from the client"
    # Of `offload`, open connections continue.
    assert run(lab.balancer, "down").returncode == 0
    assert lab.balancer.run(vip).stdout == ""


@pytest.mark.parametrize("nat", ["dnat", "full"])
@pytest.mark.parametrize("driver", ["netlink", "raw"], indirect=True)
def test_the_backend_speaks_first_afterwards(lab: Lab, featherlb: Up, nat: str) -> None:
    """The client has nothing to say that would tell where it is."""
    content = random.Random(1).randbytes(1 << 22)
    options = ("--vip", f"{VIP}:80", "--nat", nat, "--backend", "10.0.1.2:8081")
    with (
        featherlb(lab, *options) as running,
        pair(lab, VIP, 8081) as (client, server),
        ThreadPoolExecutor(2) as thread,
    ):
        for _ in range(2):
            kill_workers(lab, running)
            server.sendall(b"?")
            assert client.recv(1) == b"?"
        download = thread.submit(server.sendall, content)
        start = client.recv(1)
        kill_workers(lab, running)
        rest = thread.submit(receive_all, client)
        download.result()
        server.shutdown(socket.SHUT_WR)
        assert hashlib.sha256(start + rest.result()).digest() == hashlib.sha256(content).digest()


@ONE_DRIVER
def test_datagrams_continue(lab: Lab, featherlb: Up) -> None:
    options = [f"--vip={VIP}:53/udp", *(f"--backend=10.0.1.{host}:9000" for host in (2, 3))]
    with (
        featherlb(lab, *options) as running,
        Receivers(lab.backends, 9000) as receivers,
        open_socket(lab.client, (lab.client.address, 0), (VIP, 53)) as client,
    ):
        first = receivers.exchange(client)
        kill_workers(lab, running)
        for _ in range(3):
            assert receivers.exchange(client) == first


@ONE_DRIVER
def test_what_is_no_longer_served_ends(lab: Lab, featherlb: Up, stack: ExitStack) -> None:
    with featherlb(lab, *WEB) as running:
        running.forgets = False
        held = sessions(lab, stack, 4)
        backends = [session.ask().backend for session in held]
    with featherlb(lab, *WEB[:4]) as running:
        assert "restored 2 flows; 2 match no service" in running.log
        for session, backend in zip(held, backends, strict=True):
            if backend == "backend1":
                assert session.ask().backend == backend
            else:
                with pytest.raises(ConnectionResetError):
                    session.ask()


@ONE_DRIVER
def test_down_forgets_the_flows(lab: Lab, featherlb: Up, stack: ExitStack) -> None:
    with featherlb(lab, *WEB) as running:
        running.forgets = False
        (session,) = sessions(lab, stack, 1)
        session.ask()
    assert "saved flows" in run(lab.balancer, "down").stdout
    with featherlb(lab, *WEB):
        assert states(lab) == []
        with pytest.raises(ConnectionResetError):
            session.ask()


@ONE_DRIVER
def test_the_hash_key_survives_a_restart(
    lab: Lab, featherlb: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is another one on another host: who knows featherlb can't choose a backend."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    clients = [f"192.0.2.{number}:1234" for number in range(1, 41)]

    def picks() -> list[str]:
        with featherlb(lab, *WEB, "--scheduler", "maglev") as running:
            assert api(lab.balancer, "status")["hash_key"] == str(tmp_path / "hash-key")
            assert ("the hash schedulers' key is in" in running.log) is not known
            return [
                api(lab.balancer, f"explain?client={one}&vip={VIP}")["backend"] for one in clients
            ]

    known = False
    first = picks()
    known = True
    assert picks() == first
    (tmp_path / "hash-key").unlink()
    known = False
    assert picks() != first
