"""Ranges of ports whose backends keep the client's port or shift it, and all ports of a VIP."""

import itertools
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from featherlb.lab import Lab, Node
from featherlb.lab.servers import HttpServer
from tests.netns.command import Featherlb, api, change, flows, kill, reload, run
from tests.netns.conftest import ONE_DRIVER, Up, all_pairs
from tests.netns.datagrams import Receivers, open_socket
from tests.netns.traffic import Session, ask, wait_for

V4, V6 = socket.AF_INET, socket.AF_INET6
BACKENDS = ("10.0.1.2", "10.0.1.2:10000-10009")
EACH = pytest.mark.parametrize(
    ("nat", "family"), list(itertools.product(("dnat", "full"), (V4, V6)))
)
FIRST = {"dnat": 10000, "full": 12000}
"""The first port of a range of 10, by NAT mode; SHIFT behind it, another one begins."""
SHIFT, BEHIND = 1000, 20000
"""A port of the second range leads to the one that is higher by BEHIND."""
VIP = {V4: "10.0.0.10", V6: "2001:db8::10"}
EVERY = {
    ("dnat", V4): "10.0.0.11",
    ("full", V4): "10.0.0.12",
    ("dnat", V6): "2001:db8::11",
    ("full", V6): "2001:db8::12",
}
"""VIPs with all ports, of which one leads to the second backend."""
SPECIFIC = 8080


def address(node: Node, family: socket.AddressFamily) -> str:
    return node.address6 if family == V6 else node.address


def at(host: str, ports: object) -> str:
    return f"[{host}]:{ports}" if ":" in host else f"{host}:{ports}"


def alone(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def configuration(lab: Lab) -> str:
    lines = ["services:"]

    def add(name: str, protocol: str, nat: str, vip: str, backend: str) -> None:
        lines.append(
            f"- {{name: {name}, protocol: {protocol}, nat: {nat}, vip: '{vip}',"
            f" backends: ['{backend}']}}"
        )

    for protocol, nat, family in itertools.product(("tcp", "udp"), FIRST, (V4, V6)):
        one, two = (address(node, family) for node in lab.backends[:2])
        first, every, label = FIRST[nat], EVERY[nat, family], f"{protocol}-{nat}-{family:d}"
        add(f"keep-{label}", protocol, nat, at(VIP[family], f"{first}-{first + 9}"), alone(one))
        second = first + SHIFT
        add(
            f"shift-{label}",
            protocol,
            nat,
            at(VIP[family], f"{second}-{second + 9}"),
            at(one, f"{second + BEHIND}-{second + BEHIND + 9}"),
        )
        add(f"all-{label}", protocol, nat, at(every, "*"), alone(one))
        add(f"one-{label}", protocol, nat, at(every, SPECIFIC), at(two, SPECIFIC))
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Kernels don't limit the rate of their ICMP errors."""
    with Lab(backends=2) as lab:
        for node in lab.nodes:
            node.sysctl("net.ipv4.icmp_ratelimit", 0)
            node.sysctl("net.ipv6.icmp.ratelimit", 0)
        yield lab


@pytest.fixture(scope="module")
def balanced(
    lab: Lab, featherlb: Up, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Featherlb]:
    path = tmp_path_factory.mktemp("ranges") / "lb.yaml"
    path.write_text(configuration(lab))
    with featherlb(lab, "--config", str(path), "--workers", "2") as running:
        yield running


def destinations(nat: str, family: socket.AddressFamily) -> list[tuple[str, int, int, int]]:
    """VIP, its port, the number of the backend and its port."""
    first, every = FIRST[nat], EVERY[nat, family]
    return [
        *((VIP[family], first + i, 0, first + i) for i in (0, 5, 9)),
        *((VIP[family], first + SHIFT + i, 0, first + SHIFT + BEHIND + i) for i in (0, 9)),
        (every, 1, 0, 1),
        (every, 33333, 0, 33333),
        (every, 65535, 0, 65535),
        (every, SPECIFIC, 1, SPECIFIC),
    ]


@EACH
@pytest.mark.usefixtures("balanced")
def test_datagrams_reach_the_port(lab: Lab, nat: str, family: socket.AddressFamily) -> None:
    for vip, port, number, reached in destinations(nat, family):
        with Receivers([lab.backends[number]], reached, family) as receivers:
            for node in (lab.client, lab.balancer):
                own = address(node, family)
                with open_socket(node, (own, 0), (vip, port)) as client:
                    for _ in range(2):
                        # A connected socket takes answers from this port of the VIP alone.
                        arrival = receivers.exchange(client)
                    if nat == "dnat":
                        assert arrival.peer == client.getsockname()[:2]
        with open_socket(lab.client, (address(lab.client, family), 0), (vip, port)) as client:
            client.send(b"anybody there?")
            with pytest.raises(ConnectionRefusedError):
                client.recv(1)


@EACH
@pytest.mark.usefixtures("balanced")
def test_connections_reach_the_port(lab: Lab, nat: str, family: socket.AddressFamily) -> None:
    for vip, port, number, reached in destinations(nat, family):
        backend = lab.backends[number]
        with (
            backend.listen("::" if family == V6 else "0.0.0.0", reached) as listener,
            lab.client.connect(vip, port) as client,
            listener.accept()[0] as server,
        ):
            server.settimeout(30)
            for sender, receiver in ((client, server), (server, client)):
                sender.sendall(b"word")
                assert receiver.recv(4) == b"word"
            if nat == "dnat":
                assert server.getpeername()[:2] == client.getsockname()[:2]
            own = at(address(lab.client, family), client.getsockname()[1])
            found = flows(lab.balancer, backend=at(address(backend, family), reached))
            assert [one["vip"] for one in found if one["client"] == own] == [at(vip, port)]
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            lab.client.connect(vip, port)


@EACH
@pytest.mark.usefixtures("balanced")
def test_a_client_has_one_port_towards_several(
    lab: Lab, nat: str, family: socket.AddressFamily
) -> None:
    """As media and their control have (RFC 3550 section 11)."""
    first = FIRST[nat]
    with (
        ExitStack() as stack,
        open_socket(lab.client, (address(lab.client, family), 0)) as client,
    ):
        receivers = [
            stack.enter_context(Receivers(lab.backends[:1], first + i, family)) for i in (0, 1)
        ]
        for _ in range(2):
            for i, receiver in enumerate(receivers):
                client.sendto(b"query", (VIP[family], first + i))
                receiver.answer(receiver.receive(), b"answer")
                data, peer = client.recvfrom(10)
                assert (data, peer[:2]) == (b"answer", (VIP[family], first + i))


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    with Lab(backends=2) as lab:
        yield lab


@pytest.fixture
def web(own_lab: Lab) -> Iterator[None]:
    """HTTP servers on port 10005 of both backends."""
    with ExitStack() as stack:
        for node in own_lab.backends:
            stack.enter_context(HttpServer(node, port=WEB))
        yield


WEB = 10005
RANGE = "10.0.0.20:10000-10009"


def options(*backends: str) -> tuple[str, ...]:
    return ("--vip", RANGE, *(word for one in backends for word in ("--backend", one)))


@pytest.mark.usefixtures("web")
@all_pairs(drivers=("netlink", "raw", "offload"), nat=("dnat", "full"), backend=BACKENDS)
def test_connections_survive_a_restart(own_lab: Lab, featherlb: Up, nat: str, backend: str) -> None:
    start = (*options(backend), "--nat", nat)
    with featherlb(own_lab, *start) as running:
        session = Session(own_lab.client, "10.0.0.20", WEB)
        assert session.ask().backend == "backend1"
        running.forgets = False
    with featherlb(own_lab, *start), session:
        assert session.ask().backend == "backend1"
        (flow,) = flows(own_lab.balancer, state="established")
        assert (flow["vip"], flow["backend"]) == (f"10.0.0.20:{WEB}", f"10.0.1.2:{WEB}")


@pytest.mark.usefixtures("web")
@pytest.mark.parametrize("driver", ["offload"], indirect=True)
@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_the_kernel_keeps_and_shifts_ports(own_lab: Lab, featherlb: Up, nat: str) -> None:
    """While featherlb is away, with `fail_open`."""
    shifted = ("--vip", "10.0.0.20:20000-20009", *options("10.0.1.2:10000-10009")[2:])
    for arguments, port in ((options("10.0.1.3"), WEB), (shifted, 20005)):
        with featherlb(own_lab, *arguments, "--nat", nat, "--fail-open") as running:
            before = ask(own_lab.client, "10.0.0.20", port)
            running.kill()
            assert ask(own_lab.client, "10.0.0.20", port).backend == before.backend
        run(own_lab.balancer, "down")


@ONE_DRIVER
@pytest.mark.usefixtures("web")
def test_backends_change_at_run_time(own_lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    text = (
        f"services: [{{name: range, vip: '{RANGE}', backends: [10.0.1.2],"
        f" health: {{type: tcp, port: {WEB}, interval: 100ms, rise: 1, fall: 1}}}}]\n"
    )
    path.write_text(text)

    def states() -> dict[str, str]:
        (service,) = api(own_lab.balancer, "services")["services"]
        return {one["backend"]: one["state"] for one in service["backends"]}

    def answering() -> set[str]:
        return {ask(own_lab.client, "10.0.0.20", WEB).backend for _ in range(4)}

    with featherlb(own_lab, "--config", str(path)):
        assert answering() == {"backend1"}
        change(own_lab.balancer, "add", "range", "10.0.1.3")
        wait_for(lambda: states() == {"10.0.1.2": "up", "10.0.1.3": "up"}, "both backends")
        assert answering() == {"backend1", "backend2"}
        assert "10.0.1.3 " in run(own_lab.balancer, "backends").stdout
        change(own_lab.balancer, "drain", "range", "10.0.1.2")
        assert answering() == {"backend2"}
        change(own_lab.balancer, "remove", "range", "10.0.1.3")
        change(own_lab.balancer, "enable", "range", "10.0.1.2")
        assert answering() == {"backend1"}
        path.write_text(text.replace("[10.0.1.2]", "['10.0.1.3:10000-10009']"))
        reload(own_lab.balancer)
        assert answering() == {"backend2"}
        assert (
            kill(own_lab.balancer, backend="10.0.1.2") + kill(own_lab.balancer, backend="10.0.1.3")
            > 0
        )
        assert flows(own_lab.balancer, backend="10.0.1.3:10000-10009") == []


@ONE_DRIVER
def test_daemons_of_a_vip_with_all_ports_are_named(own_lab: Lab, featherlb: Up) -> None:
    with (
        own_lab.balancer.listen("0.0.0.0", 2222),
        featherlb(own_lab, "--vip", "10.0.0.21:*", "--backend", "10.0.1.2") as running,
        own_lab.backends[0].listen("0.0.0.0", 2222) as listener,
        own_lab.client.connect("10.0.0.21", 2222),
        own_lab.client.connect(own_lab.balancer.address, 2222),
    ):
        listener.accept()[0].close()
        assert "VIP 10.0.0.21:*/tcp takes all connections to its address" in running.log
        assert "on port 2222 only at other addresses of this host" in running.log
        assert "masquerades none of their own connections" in running.log
