"""Several nodes behind a router that spreads packets over them: connections survive any of them."""

import http.client
import os
import select
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from featherlb.cluster import keys
from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import BACK, FRONT
from tests.netns.command import Featherlb, api, run
from tests.netns.traffic import wait_for

pytest.importorskip("cryptography")

VIP = "10.9.9.10"
"""On no link: routes lead there."""
FIRST_PORT = 12000
CONNECTIONS = 9
"""Through each service: some for each node."""
NAMES = ("lb1", "lb2", "lb3")
PORTS = {"web": 80, "hidden": 81}
CONFIG = """
services:
  - name: web
    vip: {vip}:80
    backends: [{backends}]
  - name: hidden
    vip: {vip}:81
    nat: full
    datapath: raw
    scheduler: least-connections
    backends: [{backends}]
hash_key: the same everywhere
api: {{listen: 127.0.0.1:9180, token: not-needed-for-this}}
cluster:
  node: {node}
  listen: {listen}
  peers: [{peers}]
  keys: {keys}
  source_addresses: {{{sources}}}
"""

Connection = tuple[socket.socket, socket.socket]
"""The client's end and the server's."""


class Nodes:
    """Three nodes, a router in front of them, and one behind them, which both spread packets over
    the nodes. The routers hear of a death from the test, as BFD would tell it."""

    def __init__(self, directory: Path) -> None:
        self.lab = Lab(clients=2, backends=3, balancers=3)
        self._directory = directory
        self.client, self._outer = self.lab.clients
        *self._backends, self._inner = self.lab.backends
        keys.make(directory / "keys", NAMES)

    def start(self, number: int) -> Featherlb:
        """A node's instance; its block begins when it may get traffic."""
        front = [node.addresses[FRONT.name][0] for node in self.lab.balancers]
        back = [node.addresses[BACK.name][0] for node in self.lab.balancers]
        path = self._directory / f"{NAMES[number]}.yaml"
        path.write_text(
            CONFIG.format(
                vip=VIP,
                node=NAMES[number],
                listen=f"{front[number]}:7946",
                peers=", ".join(f"{address}:7946" for address in front),
                keys=self._directory / "keys",
                sources=", ".join(map(": ".join, zip(NAMES, back, strict=True))),
                backends=", ".join(f"{one.address}:8080" for one in self._backends),
            )
        )
        return Featherlb(self.lab.balancers[number], ("up", "--config", str(path)), self._directory)

    def route(self, numbers: Sequence[int]) -> None:
        """Spread packets over these nodes: the same one gets both directions of a connection."""
        # Source address and port there, destination address and port back.
        self.client.run(["ip", "route", "replace", f"{VIP}/32", "via", self._outer.address])
        for node in self.lab.balancers:
            there = ["via", self._outer.address]
            node.run(["ip", "route", "replace", f"{self.client.address}/32", *there], check=False)
        _spread(self._outer, f"{VIP}/32", self._hops(FRONT.name, numbers), 0x11)
        behind = self._hops(BACK.name, numbers)
        _spread(self._inner, "default", behind, 0x22)
        for number, source in enumerate(self._hops(BACK.name, range(3))):
            hop = source if number in numbers else behind[0]
            self._inner.run(["ip", "route", "replace", f"{source}/32", "via", hop])
            for backend in self._backends:
                via = ["via", self._inner.address]
                backend.run(["ip", "route", "replace", f"{source}/32", *via])
                backend.run(["ip", "route", "replace", "default", *via])

    def _hops(self, network: str, numbers: Sequence[int]) -> list[str]:
        return [self.lab.balancers[number].addresses[network][0] for number in numbers]

    def connect(self) -> dict[str, list[Connection]]:
        """Connections by service."""
        found: dict[str, list[Connection]] = {}
        listeners = [backend.listen("0.0.0.0", 8080) for backend in self._backends]
        with ExitStack() as stack:
            for listener in listeners:
                stack.enter_context(listener)
            for name, port in PORTS.items():
                for number in range(CONNECTIONS):
                    # The routers' hash has a fixed seed: each node gets some of these.
                    source = (self.client.address, FIRST_PORT + port * 100 + number)
                    client = self.client.call(socket.create_connection, (VIP, port), 30, source)
                    found.setdefault(name, []).append((client, _accept(listeners)))
        return found


def _spread(node: Node, destination: str, hops: list[str], fields: int) -> None:
    for name, value in (
        ("ip_forward", 1),
        ("conf.all.send_redirects", 0),
        ("conf.eth0.send_redirects", 0),
        ("fib_multipath_hash_policy", 3),
        ("fib_multipath_hash_fields", fields),
        ("fib_multipath_hash_seed", 1),
    ):
        node.sysctl(f"net.ipv4.{name}", value)
    each = [word for hop in hops for word in ("nexthop", "via", hop)]
    node.run(["ip", "route", "replace", destination, *each])


def _accept(listeners: list[socket.socket]) -> socket.socket:
    """The server's end of a connection that one of them has got."""
    ready, _, _ = select.select(listeners, [], [], 30)
    server, _ = ready[0].accept()
    server.settimeout(30)
    return server


def all_go_on(connections: dict[str, list[Connection]]) -> None:
    """Both ends of each are heard, the server first: nobody has told its node of the client."""
    for name, each in connections.items():
        for number, (client, server) in enumerate(each):
            for sender, receiver in ((server, client), (client, server)):
                text = f"{name} {number}".encode()
                sender.sendall(text)
                try:
                    assert receiver.recv(100) == text
                except TimeoutError:
                    pytest.fail(f"{text!r} did not arrive from {sender.getsockname()}")


def is_ready(node: Node) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", 9180, timeout=30)
    connection.sock = node.connect("127.0.0.1", 9180)
    connection.request("GET", "/ready")
    status = connection.getresponse().status
    connection.close()
    assert status in (200, 503)
    return status == 200


def synchronisers(node: Node) -> list[int]:
    """The processes that talk to other nodes."""
    found = []
    for pid in node.pids():
        # Programs of health checks and of featherlb itself come and go.
        with suppress(OSError):
            if "featherlb.cluster" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


def taken_over(node: Node) -> int:
    count: int = api(node, "cluster")["flows"]["taken_over"]
    return count


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    if not Path("/proc/sys/net/ipv4/fib_multipath_hash_seed").exists():
        pytest.skip("this kernel has no fib_multipath_hash_seed")
    found = Nodes(tmp_path)
    with found.lab:
        yield found


def test_connections_survive_a_death_and_a_return(nodes: Nodes) -> None:
    lab = nodes.lab
    with ExitStack() as stack:
        running = [nodes.start(number) for number in range(3)]
        for one in running:
            stack.enter_context(one)
        wait_for(lambda: all(map(is_ready, lab.balancers)), "all nodes are ready")
        nodes.route((0, 1, 2))
        connections = nodes.connect()
        for each in connections.values():
            for ends in each:
                for end in ends:
                    stack.enter_context(end)
        all_go_on(connections)
        status = api(lab.balancers[1], "cluster")
        assert [(one["node"], one["copied"], one["same"]) for one in status["peers"]] == [
            ("lb1", True, True),
            ("lb3", True, True),
        ]
        (pid,) = synchronisers(lab.balancer)
        limits = Path(f"/proc/{pid}/status").read_text().split("\n")
        assert "CapEff:\t0000000000000000" in limits
        assert "Seccomp:\t2" in limits

        # Whatever a node was told is on its way to the others for some milliseconds.
        expected = CONNECTIONS * len(PORTS)
        wait_for(
            lambda: all(api(node, "status")["flows"] == expected for node in lab.balancers),
            "all nodes know all flows",
        )

        # It dies without a word.
        lab.balancer.run(["ip", "link", "set", FRONT.name, "down"])
        lab.balancer.run(["ip", "link", "set", BACK.name, "down"])
        for pid in lab.balancer.pids():
            os.kill(pid, signal.SIGKILL)
        running[0].kill()
        nodes.route((1, 2))
        all_go_on(connections)

        # It returns with nothing, copies all, and only then is ready.
        lab.balancer.run(["ip", "link", "set", FRONT.name, "up"])
        lab.balancer.run(["ip", "link", "set", BACK.name, "up"])
        with nodes.start(0):
            wait_for(lambda: is_ready(lab.balancer), "it is ready again")
            nodes.route((0,))
            all_go_on(connections)
            assert taken_over(lab.balancer) == expected
            left = run(lab.balancers[2], "cluster", "leave")
            assert "not ready: it leaves the cluster" in left.stdout
            assert not is_ready(lab.balancers[2])
            shown = run(lab.balancers[1], "cluster", "status").stdout
            assert "node lb2 is ready" in shown
