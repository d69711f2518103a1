"""Whole lives of TCP connections through the balancer, in both NAT modes."""

import hashlib
import os
import signal
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP

from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer, Nginx
from tests.netns.command import flows
from tests.netns.conftest import SEEING, SERVED, Up, all_pairs
from tests.netns.datagrams import open_socket
from tests.netns.test_operate_pools import reloaded
from tests.netns.traffic import (
    Session,
    ask,
    ask_concurrently,
    ask_over,
    pair,
    receive_all,
    reset,
    standing_still,
    wait_for,
)
from tests.netns.wire import Capture

# Ports of the VIP, by what is behind them.
WEB, TURNS, ONE, FILES, NOBODY, REFUSING = range(80, 86)
WEB_SERVERS = "'10.0.1.2:8080', '10.0.1.3:8080', '10.0.1.4:8080'"
# Endpoints of their own: in TIME_WAIT of a connection that another instance's client had from the
# same SNAT port, a backend can refuse a SYN.
TURN_SERVERS = "'10.0.1.2:8090', '10.0.1.3:8090', '10.0.1.4:8090'"
SERVICES = f"""
  - {{name: web, vip: '{VIP}:{WEB}', scheduler: lc, nat: NAT, backends: [{WEB_SERVERS}]}}
  - {{name: turns, vip: '{VIP}:{TURNS}', scheduler: rr, nat: NAT, backends: [{TURN_SERVERS}]}}
  - {{name: one, vip: '{VIP}:{ONE}', nat: NAT, backends: ['10.0.1.2:9000']}}
  - {{name: files, vip: '{VIP}:{FILES}', nat: NAT, backends: ['10.0.1.2:8081']}}
  - {{name: nobody, vip: '{VIP}:{NOBODY}', nat: NAT, backends: []}}
  - {{name: refusing, vip: '{VIP}:{REFUSING}', nat: NAT, backends: ['10.0.1.2:9999']}}
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(clients=2, backends=3) as lab:
        yield lab


@pytest.fixture(scope="module")
def balanced(
    lab: Lab, featherlb: Up, nat: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """One instance with SERVICES, for all tests that leave it as it is."""
    path = tmp_path_factory.mktemp("tcp") / "lb.yaml"
    path.write_text("services:" + SERVICES.replace("NAT", nat))
    with featherlb(lab, "--config", str(path)):
        yield


@pytest.fixture
def turn_servers(lab: Lab) -> Iterator[None]:
    with ExitStack() as servers:
        for node in lab.backends:
            servers.enter_context(HttpServer(node, port=8090))
        yield


@pytest.fixture
def ends(lab: Lab, balanced: None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's and the server's end of one connection."""
    with pair(lab, VIP, 9000, ONE) as ends:
        yield ends


Ends = tuple[socket.socket, socket.socket]
PAYLOAD = os.urandom(1 << 20)


def exchange(source: socket.socket, sink: socket.socket, payload: bytes) -> bytes:
    """Send, close the sending direction, and return what arrived."""
    with ThreadPoolExecutor(1) as sender:
        done = sender.submit(source.sendall, payload)
        done.add_done_callback(lambda _: source.shutdown(socket.SHUT_WR))
        received = receive_all(sink)
        done.result()
    return received


def test_the_other_direction_lives_on_after_the_client_closed_its_own(ends: Ends) -> None:
    client, server = ends
    assert exchange(client, server, b"request") == b"request"
    assert exchange(server, client, PAYLOAD) == PAYLOAD


def test_the_other_direction_lives_on_after_the_server_closed_its_own(ends: Ends) -> None:
    client, server = ends
    assert exchange(server, client, b"greeting") == b"greeting"
    assert exchange(client, server, PAYLOAD) == PAYLOAD


def test_a_reset_by_the_client_reaches_the_server(ends: Ends) -> None:
    client, server = ends
    reset(client)
    with pytest.raises(ConnectionResetError):
        server.recv(1)


def test_a_reset_by_the_server_reaches_the_client(ends: Ends) -> None:
    client, server = ends
    reset(server)
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_both_sides_close_at_the_same_time(lab: Lab, ends: Ends, driver: str) -> None:
    if driver == "offload":
        pytest.skip("the kernel keeps no packet waiting")
    client, server = ends
    ports = [(end.getsockname()[1], end.getpeername()[1]) for end in ends]

    def states() -> list[str]:
        nodes = (lab.client, lab.backends[0])
        return [tcp_state(node, *pair) for node, pair in zip(nodes, ports, strict=True)]

    # While the balancer stands still, both FINs wait in its queue: they cross.
    with standing_still(lab.balancer):
        for end in ends:
            end.shutdown(socket.SHUT_WR)
        wait_for(lambda: states() == ["FIN-WAIT-1"] * 2, "both sides sent a FIN")
    assert client.recv(1) == server.recv(1) == b""
    # Only a simultaneous close leaves both in this state (RFC 9293, section 3.6).
    wait_for(lambda: states() == ["TIME-WAIT"] * 2, "both sides are in TIME-WAIT")


def tcp_state(node: Node, port: int, peer_port: int) -> str:
    """The state of the node's connection with these ports, as `ss` calls it; "" if it has none."""
    ports = ["sport", "=", f":{port}", "and", "dport", "=", f":{peer_port}"]
    lines = node.run(["ss", "-Htan", "state", "connected", *ports]).stdout
    return lines.split()[0] if lines else ""


def test_keep_alive_probes_hold_an_idle_connection(ends: Ends) -> None:
    client, server = ends
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
        client.setsockopt(socket.IPPROTO_TCP, option, 1)

    def milliseconds_since_ack() -> tuple[int, int]:
        # struct tcp_info (linux/tcp.h): tcpi_last_data_sent, tcpi_last_ack_recv.
        info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        data, _, _, ack = struct.unpack_from("4I", info, 44)
        return data, ack

    client.sendall(b"x")
    assert server.recv(1) == b"x"

    def probed() -> bool:
        since_data, since_ack = milliseconds_since_ack()
        return since_data > 2500 and since_ack < since_data - 1500

    wait_for(probed, "probes of an idle connection are answered")
    client.sendall(b"y")
    assert server.recv(1) == b"y"


@pytest.mark.usefixtures("balanced")
def test_a_thousand_connections_of_two_clients(lab: Lab) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(HttpServer(node)) for node in lab.backends]
        with ThreadPoolExecutor(2) as clients:
            answers = clients.map(lambda node: ask_concurrently(node, 500, 50), lab.clients)
            count = Counter(answer.backend for batch in answers for answer in batch)
        assert count.total() == 1000
        assert {server.node.name: server.counters()["connections"] for server in servers} == count
        assert min(count.values()) > 200


@SERVED
@pytest.mark.usefixtures("balanced")
def test_long_connections_stay_while_others_come_and_go(lab: Lab) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(Session(lab.client)) for _ in range(50)]
        first = [session.ask() for session in held]
        assert len({answer.backend for answer in first}) == 3
        with ThreadPoolExecutor(1) as others:
            load = others.submit(ask_concurrently, lab.clients[1], 300, 20)
            while not load.done():
                assert [session.ask() for session in held] == first
            assert len(load.result()) == 300
        for pid in lab.backends[2].pids():
            os.kill(pid, signal.SIGKILL)
        survivors = [
            (session, answer)
            for session, answer in zip(held, first, strict=True)
            if answer.backend != "backend3"
        ]
        assert [session.ask() for session, _ in survivors] == [answer for _, answer in survivors]


def test_the_backends_port_may_differ_from_the_vips(lab: Lab, ends: Ends) -> None:
    client, server = ends
    assert client.getpeername() == (VIP, ONE)
    assert server.getsockname() == (lab.backends[0].address, 9000)


@pytest.mark.usefixtures("balanced")
def test_100_megabytes_arrive_as_they_were(lab: Lab) -> None:
    block = os.urandom(1 << 20)
    with Nginx(lab.backends[0], port=8081) as server:
        expected = hashlib.sha256()
        with (server.files / "big").open("wb") as file:
            for number in range(100):
                # No two blocks are equal, so a lost or doubled one shows.
                part = number.to_bytes(4, "big") + block[4:]
                file.write(part)
                expected.update(part)
        url = f"http://{VIP}:{FILES}/files/big"
        download = f"curl --silent --fail --max-time 120 {url} | sha256sum"
        got = lab.client.run(["bash", "-o", "pipefail", "-c", download]).stdout
    assert got.split()[0] == expected.hexdigest()


@SERVED
@pytest.mark.usefixtures("balanced")
def test_whose_address_the_backend_sees(lab: Lab, nat: str) -> None:
    for client in lab.clients:
        expected = client.address if nat == "dnat" else lab.balancer.addresses["back"][0]
        assert ask(client).peer == expected


@pytest.mark.usefixtures("balanced")
def test_without_backends_connections_are_refused(lab: Lab) -> None:
    with pytest.raises(ConnectionRefusedError):
        lab.client.connect(VIP, NOBODY)


@pytest.mark.usefixtures("balanced")
def test_a_refusal_by_the_backend_reaches_the_client(lab: Lab) -> None:
    with pytest.raises(ConnectionRefusedError):
        lab.client.connect(VIP, REFUSING)


def configuration(nat: str, endpoints: int) -> str:
    """A service with so many VIPs and backends. Connections go to the second backend's host."""
    vips = ", ".join(f"'10.0.0.{20 + i}:80'" for i in range(endpoints))
    idle = ", ".join(f"{{address: '10.0.1.2:{9100 + i}', weight: 0}}" for i in range(endpoints - 1))
    service = f"name: web, vip: [{vips}], nat: {nat}, backends: ['10.0.1.3:8080', {idle}]"
    return f"services: [{{{service}}}]\n"


@all_pairs(("netlink", "raw", "offload"), nat=("dnat", "full"))
def test_endpoints_may_become_many_and_few_again(featherlb: Up, nat: str, tmp_path: Path) -> None:
    """Rules name a few of them, and look into sets for more: the same for both queue drivers."""
    path = tmp_path / "lb.yaml"
    path.write_text(configuration(nat, 2))
    with (
        Lab(clients=2, backends=2) as lab,
        HttpServer(lab.backends[1]),
        featherlb(lab, "--config", str(path)) as running,
        Session(lab.client, "10.0.0.20") as session,
    ):
        first = session.ask()
        assert first.backend == "backend2"
        for times, endpoints in enumerate((8, 2), 1):
            path.write_text(configuration(nat, endpoints))
            running.process.send_signal(signal.SIGHUP)
            wait_for(partial(reloaded, running, times), "the reload")
            rules = lab.balancer.run(["iptables-save"]).stdout
            assert ("--match-set" in rules) == (endpoints == 8)
            for client in lab.clients:
                for i in range(endpoints):
                    assert ask(client, f"10.0.0.{20 + i}").backend == "backend2"
            assert session.ask() == first


@pytest.mark.parametrize("driver", ["netlink", "raw", "offload"], indirect=True)
def test_a_privileged_client_port_stays_privileged(featherlb: Up) -> None:
    """NFS and rsh servers refuse others. Replies find the worker of the flow by that port, and
    mounts of the balancer itself (from port 665 on) are none of its flows."""
    backend = "10.0.1.2:9000"
    both = ("--vip", f"{VIP}:80", "--vip", f"{VIP}:80/udp", "--backend", backend)
    with (
        Lab(backends=1) as lab,
        lab.backends[0].listen("0.0.0.0", 9000) as listener,
        open_socket(lab.backends[0], ("0.0.0.0", 9000)) as receiver,
    ):
        lab.balancer.run(["iptables", "-P", "INPUT", "DROP"])
        known = ["-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT"]
        lab.balancer.run(["iptables", "-A", "INPUT", *known])

        def exchange(node: Node, address: str, port: int, source: int) -> int:
            """A question over TCP and its answer; the port that the server saw."""
            client = node.call(socket.create_connection, (address, port), 30, ("", source))
            server, seen = listener.accept()
            with client, server:
                server.settimeout(30)
                assert exchange_byte(client, server) == b"1"
                assert exchange_byte(server, client) == b"1"
            return int(seen[1])

        with featherlb(lab, *both, "--nat", "full", "--workers", "2"):
            for port in (1, 700, 1023, 1024, 40000):
                with open_socket(lab.client, ("0.0.0.0", port), (VIP, 80)) as client:
                    client.send(b"?")
                    _, seen = receiver.recvfrom(1)
                    receiver.sendto(b"!", seen)
                    assert client.recv(1) == b"!"
                for given in (seen[1], exchange(lab.client, VIP, 80, port)):
                    assert (given in range(512, 665)) == (port < 1024)
            assert exchange(lab.balancer, lab.backends[0].address, 9000, 700) == 700


def exchange_byte(sender: socket.socket, receiver: socket.socket) -> bytes:
    sender.sendall(b"1")
    return receiver.recv(1)


@pytest.mark.usefixtures("balanced", "turn_servers")
def test_a_client_port_is_used_again_at_once(lab: Lab) -> None:
    endpoint = f"{lab.client.address}:20000"

    def closed() -> bool:
        return not {one["state"] for one in flows(lab.balancer) if one["client"] == endpoint} - {
            "closed"
        }

    turns = []
    for _ in range(6):
        with Session(lab.client, port=TURNS, source=(lab.client.address, 20000)) as session:
            turns.append(session.ask().backend)
            session.reset()
        # From another processor, the next SYN could overtake the RST.
        wait_for(closed, "the connection is closed")
    # Each SYN was a new connection for the scheduler, not a late packet of the closed one.
    assert Counter(turns) == {"backend1": 2, "backend2": 2, "backend3": 2}


@pytest.mark.usefixtures("balanced", "turn_servers")
def test_a_late_packet_of_the_last_connection_moves_no_new_one(lab: Lab, driver: str) -> None:
    """It makes the client, whose SYN is under way, reset the old connection and send the SYN
    again: one connection, so one backend."""
    if driver not in SEEING:
        pytest.skip("the kernel keeps no packet waiting")
    late = IP(src=VIP, dst=lab.client.address) / TCP(sport=TURNS, dport=20001, flags="A", ack=1)
    names = [node.name for node in lab.backends]
    # Whose turn it is next.
    turn = names.index(ask(lab.client, port=TURNS).backend) + 1
    with (
        lab.balancer.call(
            socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW
        ) as raw,
        Capture(lab.client, "eth0") as seen,
    ):

        def sent(flags: str) -> int:
            packets = [p[TCP] for p in seen.packets(VIP) if p.src == lab.client.address]
            return sum(p.sport == 20001 and p.flags == flags for p in packets)

        def more(flags: str, than: int) -> bool:
            return sent(flags) > than

        for backend in names[turn:] + names[:turn]:
            with lab.client.new_socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind((lab.client.address, 20001))
                client.setblocking(False)
                with standing_still(lab.balancer):
                    syns, resets = sent("S"), sent("R")
                    client.connect_ex((VIP, TURNS))
                    wait_for(partial(more, "S", syns), "a SYN")
                    raw.sendto(bytes(late), (lab.client.address, 0))
                    wait_for(partial(more, "R", resets), "a RST of the old connection")
                    wait_for(partial(more, "S", syns + 1), "the same SYN again")
                client.settimeout(30)
                assert ask_over(client).backend == backend
                reset(client)
