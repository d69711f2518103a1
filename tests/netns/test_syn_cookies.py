"""SYN floods: connections that open with a cookie are as good as others."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import VIP, VIP6
from scripts.bench.flood import next_hop, route_back
from scripts.bench.spoof import SOURCES
from tests.netns.command import api, flows, worker_pids
from tests.netns.conftest import SEEING, Up, in_turn
from tests.netns.traffic import pair, wait_for

PORT = 9000
ROOT = Path(__file__).parents[2]
MUCH = bytes(range(256)) * 2048
"""Half a megabyte."""


def write(
    lab: Lab,
    directory: Path,
    vip: str = VIP,
    nat: str = "dnat",
    mode: str = "always",
    more: str = "",
) -> str:
    path = directory / "lb.yaml"
    backend = lab.backends[0].address6 if ":" in vip else lab.backends[0].address
    at, to = (f"[{one}]" if ":" in one else one for one in (vip, backend))
    path.write_text(
        f"{more}\nservices: [{{vip: '{at}:80', nat: {nat}, syn_cookies: {mode},"
        f" backends: ['{to}:{PORT}']}}]\n"
    )
    return str(path)


def reasons(node: Node) -> dict[str, int]:
    found: dict[str, int] = api(node, "stats")["reasons"]
    return found


@contextmanager
def losing(*nodes: Node) -> Iterator[None]:
    """One in twenty of the segments that these nodes receive is lost."""
    rule = [
        "INPUT",
        "-p",
        "tcp",
        "-m",
        "statistic",
        "--mode",
        "nth",
        "--every",
        "20",
        "--packet",
        "0",
    ]
    rule += ["-j", "DROP"]
    commands = [(node, program) for node in nodes for program in ("iptables", "ip6tables")]
    for node, program in commands:
        node.run([program, "-A", *rule])
    try:
        yield
    finally:
        for node, program in commands:
            node.run([program, "-D", *rule])


def recoveries(node: Node) -> int:
    """How often a sender there has recovered from losses by SACK."""
    names, values = (
        line.split()
        for line in node.call(Path("/proc/thread-self/net/netstat").read_text).splitlines()[:2]
    )
    return int(dict(zip(names, values, strict=True))["TCPSackRecovery"])


def receive(end: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = end.recv(count)
        assert part
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def connect_with_options(vip: str, port: int) -> socket.socket:
    """From here, by packets with IP options: the program leaves such SYNs to the worker."""
    with ExitStack() as on_failure:
        client = on_failure.enter_context(socket.socket())
        client.settimeout(30)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, bytes((1, 1, 1, 0)))
        client.connect((vip, port))
        on_failure.pop_all()
    return client


def answering(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = api(node, "status")["syn_cookies"]
    return found


def until_the_kernel_answers(node: Node) -> None:
    if missing := answering(node)["missing"]:
        pytest.skip(missing)
    wait_for(lambda: answering(node)["answering"] == "kernel", "the kernel answers")


@pytest.mark.parametrize(
    ("driver", "vip", "nat", "by"),
    [
        ("netlink", VIP, "full", "worker"),
        ("netlink", VIP6, "dnat", "kernel"),
        ("netfilterqueue", VIP, "dnat", "kernel"),
        ("raw", VIP, "dnat", "worker"),
        ("raw", VIP6, "full", "kernel"),
        ("offload", VIP6, "dnat", "kernel"),
        ("offload", VIP, "full", "worker"),
    ],
    indirect=["driver"],
)
def test_a_connection_that_opened_with_a_cookie_recovers_from_losses(
    lab: Lab, featherlb: Up, driver: str, vip: str, nat: str, by: str, tmp_path: Path
) -> None:
    """In both directions, by SACK; and the backend may speak first, close first, or refuse. With
    `offload`, another worker knows the connection from the kernel."""
    backend = lab.backends[0]

    def connect() -> socket.socket:
        if by == "worker":
            return lab.client.call(connect_with_options, vip, 80)
        return lab.client.connect(vip, 80)

    with featherlb(lab, "--config", write(lab, tmp_path, vip, nat)):
        if by == "kernel":
            until_the_kernel_answers(lab.balancer)
        listener = backend.listen("::" if ":" in vip else "0.0.0.0", PORT)
        with connect() as client, listener.accept()[0] as server:
            server.settimeout(30)
            server.sendall(b"welcome")
            assert receive(client, 7) == b"welcome"
            before = recoveries(lab.client), recoveries(backend)
            with losing(lab.client, backend):
                for source, target in ((client, server), (server, client)):
                    sending = threading.Thread(target=source.sendall, args=(MUCH,))
                    sending.start()
                    assert receive(target, len(MUCH)) == MUCH
                    sending.join()
            after = recoveries(lab.client), recoveries(backend)
            assert after > before
            found = reasons(lab.balancer)
            assert found["cookie-ack"] >= 1
            assert (found["syn-cookie"] > 0) is (by == "worker")
            if driver == "offload":
                (worker,) = worker_pids(lab.balancer)
                os.kill(worker, signal.SIGKILL)
                wait_for(lambda: worker_pids(lab.balancer) not in ([], [worker]), "another one")
                wait_for(lambda: len(flows(lab.balancer)) == 1, "it has found the connection")
                client.sendall(b"again")
                assert receive(server, 5) == b"again"
            server.close()
            assert client.recv(1) == b""
        listener.close()
        with pytest.raises(ConnectionResetError), connect() as refused:
            refused.recv(1)


@contextmanager
def flood(lab: Lab, count: int) -> Iterator[None]:
    """Send so many SYNs from random addresses, in two seconds or more."""
    route_back(lab.balancer, lab.client)
    hop = next_hop(lab.client, VIP)
    command = [sys.executable, "-m", "scripts.bench.spoof", *hop, VIP, "80", "5000"]
    with lab.client.popen([*command, "50", str(count)], cwd=ROOT) as process:
        yield
        assert process.wait(timeout=60) == 0


@in_turn((*SEEING, "offload"), nat=("dnat", "full"))
def test_nothing_is_kept_of_a_flood(
    lab: Lab, featherlb: Up, driver: str, nat: str, tmp_path: Path
) -> None:
    """But for what came before it looked like one; connections open meanwhile and stay open. With
    `offload` it looks like one after half a second, in which half-open connections are opened."""
    more = "max_flows: 20000\ntimeouts: {half_open: 2}"
    config = write(lab, tmp_path, nat=nat, mode="auto", more=more)
    with featherlb(lab, "--config", config), pair(lab, VIP, PORT) as (client, server):
        assert reasons(lab.balancer)["syn-cookie"] == 0
        assert answering(lab.balancer)["answering"] == "nobody"
        silence = ["-p", "tcp", "--syn", "--dport", str(PORT), "-s", SOURCES, "-j", "DROP"]
        lab.backends[0].run(["iptables", "-A", "INPUT", *silence])
        if nat == "full":  # it can't tell them from others
            lab.backends[0].run(["iptables", "-A", "INPUT", *silence[:5], "-j", "DROP"])
        with flood(lab, 10_000):
            wait_for(lambda: answering(lab.balancer)["flooded"], "it sees a flood")
        lab.backends[0].run(["iptables", "-F", "INPUT"])

        def answered() -> int:
            by_kernel: int = answering(lab.balancer)["answered"]
            return by_kernel + reasons(lab.balancer)["syn-cookie"]

        # What the kernel has answered is read now and then.
        wait_for(lambda: answered() > (4000 if driver == "offload" else 8000), "SYNs are answered")
        if driver == "offload":
            wait_for(lambda: len(flows(lab.balancer)) < 1000, "half-open connections end")
        assert len(flows(lab.balancer)) < 1000
        with pair(lab, VIP, PORT) as (another, accepted):
            for source, target in ((client, server), (another, accepted)):
                source.sendall(b"hello")
                assert receive(target, 5) == b"hello"
        assert reasons(lab.balancer)["cookie-ack"] >= 1
        wait_for(lambda: answering(lab.balancer)["answering"] == "nobody", "the flood is over")
        with pair(lab, VIP, PORT):
            pass
        assert reasons(lab.balancer)["cookie-ack"] == 1
