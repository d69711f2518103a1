"""ICMP on a real kernel: path MTU discovery, unreachable ports, time exceeded, ping; and the errors
of connections that are not balanced."""

import hashlib
import itertools
import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6

from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import VIP, VIP6
from tests.netns.conftest import ONE_DRIVER, Up, all_pairs, in_turn
from tests.netns.traffic import forward, let_forward, wait_for
from tests.netns.wire import Capture, send

IP_RECVTTL, IPV6_RECVHOPLIMIT = 12, 51  # linux/in.h, linux/in6.h
V4, V6 = socket.AF_INET, socket.AF_INET6
FAMILIES, NAT_MODES = (V4, V6), ("dnat", "full")
EACH_SERVICE = tuple(itertools.product(NAT_MODES, FAMILIES))
PORTS = {"dnat": 80, "full": 81}
"""Of the VIPs, by NAT mode; the backend's is higher by BESIDE."""
BESIDE = 8000
WORKERS = 3
MAKERS = ("balancer", "router")
"""Whose kernel finds that a packet is too big."""
SMALL = 1280
SIZES = {"netlink": 100, "netfilterqueue": 10, "raw": 100, "offload": 100}
"""What is transferred, in MiB: the second driver gets every segment on its own."""
BLOCK = os.urandom(1 << 20)


@contextmanager
def talkative_lab() -> Iterator[Lab]:
    """Two clients and two backends, whose kernels don't limit the rate of their ICMP errors."""
    with Lab(clients=2, backends=2) as lab:
        for node in lab.nodes:
            node.sysctl("net.ipv4.icmp_ratelimit", 0)
            node.sysctl("net.ipv6.icmp.ratelimit", 0)
        yield lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with talkative_lab() as lab:
        yield lab


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    """For one test alone, which changes routes or rules."""
    with talkative_lab() as lab:
        yield lab


def address(node: Node, family: int) -> str:
    return node.address6 if family == V6 else node.address


def endpoint(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def vip(family: int) -> str:
    return VIP6 if family == V6 else VIP


def options(lab: Lab, family: int, nat: str, protocol: str = "udp") -> tuple[str, ...]:
    """VIP:80 with port 8080 of the first backend."""
    backend = endpoint(address(lab.backends[0], family), 8080)
    service = f"{endpoint(vip(family), 80)}/{protocol}"
    return "--vip", service, "--backend", backend, "--nat", nat


def configuration(lab: Lab, vips: dict[int, str] | None = None) -> str:
    """A service for UDP of each NAT mode and family, with the first backend."""
    vips = vips or {family: vip(family) for family in FAMILIES}
    return "services:\n" + "".join(
        f"  - {{name: {nat}{4 if family == V4 else 6}, nat: {nat}, protocol: udp,"
        f" vip: '{endpoint(vips[family], PORTS[nat])}',"
        f" backends: ['{endpoint(address(lab.backends[0], family), BESIDE + PORTS[nat])}']}}\n"
        for nat, family in EACH_SERVICE
    )


@pytest.fixture(scope="module")
def balanced(lab: Lab, featherlb: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One instance with each service, for all tests that leave it as it is; its host forwards."""
    path = tmp_path_factory.mktemp("icmp") / "lb.yaml"
    path.write_text(configuration(lab))
    let_forward(lab.balancer)
    with featherlb(lab, "--config", str(path), "--workers", str(WORKERS)):
        yield


def route(node: Node, family: int, destination: str, *words: str) -> None:
    """Add a route to one host."""
    prefix = f"{destination}/{128 if family == V6 else 32}"
    node.run(["ip", f"-{6 if family == V6 else 4}", "route", "add", prefix, *words])


def make_router(lab: Lab, router: Node, target: Node, family: int, *words: str) -> None:
    """Let packets from the balancer to `target` go through `router`, on the same network."""
    for setting in ("ip_forward", "conf.all.send_redirects", "conf.eth0.send_redirects"):
        router.sysctl(f"net.ipv4.{setting}", int(setting == "ip_forward"))
    router.sysctl("net.ipv6.conf.all.forwarding", 1)
    route(lab.balancer, family, address(target, family), "via", address(router, family))
    route(router, family, address(target, family), "dev", "eth0", *words)


def make_small(lab: Lab, target: Node, family: int, maker: str) -> None:
    """Let nothing longer than SMALL get to `target`.

    The ends' own links stay large, so both announce large segments and have to find out.
    """
    if maker == "router":
        router = lab.clients[1] if target is lab.client else lab.backends[1]
        make_router(lab, router, target, family, "mtu", "lock", str(SMALL))
        if target is lab.client:
            # There and back: frames go where the client's come from.
            target.sysctl("net.ipv6.conf.eth0.accept_redirects", 0)
            route(target, family, vip(family), "via", address(router, family))
    else:
        interface = "front" if target is lab.client else "back"
        lab.balancer.run(["ip", "link", "set", interface, "mtu", str(SMALL)])


def transfer(source: socket.socket, sink: socket.socket, count: int) -> None:
    """Send BLOCK `count` times; it must arrive whole."""

    def send() -> None:
        for _ in range(count):
            source.sendall(BLOCK)
        source.shutdown(socket.SHUT_WR)

    expected, received = hashlib.sha256(), hashlib.sha256()
    with ThreadPoolExecutor(1) as sender:
        done = sender.submit(send)
        # Each of these has the sockets' timeout: a black hole ends the test.
        while part := sink.recv(1 << 20):
            received.update(part)
        done.result()
    for _ in range(count):
        expected.update(BLOCK)
    assert received.digest() == expected.digest()


def path_mtu(node: Node, destination: str) -> str:
    """What the node's kernel has learnt about the way to a host."""
    return node.run(["ip", "route", "get", destination]).stdout


@all_pairs(nat=NAT_MODES, family=FAMILIES, maker=MAKERS, direction=("upload", "download"))
def test_path_mtu_discovery(
    own_lab: Lab, featherlb: Up, driver: str, nat: str, family: int, maker: str, direction: str
) -> None:
    lab, upload = own_lab, direction == "upload"
    make_small(lab, lab.backends[0] if upload else lab.client, family, maker)
    with (
        featherlb(lab, *options(lab, family, nat, "tcp")),
        lab.backends[0].listen("::" if family == V6 else "0.0.0.0", 8080) as listener,
        lab.client.connect(vip(family), 80) as client,
        listener.accept()[0] as server,
    ):
        server.settimeout(30)
        source, sink = (client, server) if upload else (server, client)
        transfer(source, sink, SIZES[driver])
        sender = lab.client if upload else lab.backends[0]
        assert f" mtu {SMALL} " in path_mtu(sender, source.getpeername()[0])


def udp(node: Node, family: int) -> socket.socket:
    return node.new_socket(family, socket.SOCK_DGRAM)


def connected(node: Node, family: int, remote: tuple[str, int]) -> socket.socket:
    """A UDP socket that receives ICMP errors."""
    new = udp(node, family)
    new.connect(remote)
    return new


def is_refused(client: socket.socket) -> bool:
    """Whether a connected UDP socket gets an error that its datagrams are refused."""
    try:
        client.send(b"anybody there?")
        client.recv(1)
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.usefixtures("balanced")
@pytest.mark.parametrize(("nat", "family"), EACH_SERVICE)
def test_port_unreachable_reaches_the_client(lab: Lab, nat: str, family: int) -> None:
    service = (vip(family), PORTS[nat])
    # So many flows that each worker has some: it is the one that must see their errors.
    for _ in range(4 * WORKERS):
        with connected(lab.client, family, service) as client:
            assert is_refused(client)
    with connected(lab.balancer, family, service) as own:
        assert is_refused(own)


@pytest.mark.usefixtures("balanced")
@pytest.mark.parametrize(("nat", "family"), EACH_SERVICE)
def test_port_unreachable_reaches_the_backend(lab: Lab, nat: str, family: int) -> None:
    for _ in range(4 * WORKERS):
        with udp(lab.backends[0], family) as server:
            server.bind(("", BESIDE + PORTS[nat]))
            with connected(lab.client, family, (vip(family), PORTS[nat])) as client:
                client.send(b"query")
                _, peer = server.recvfrom(100)
                server.connect(peer)
                server.send(b"answer")
                assert client.recv(100) == b"answer"
            assert is_refused(server)


class IcmpSocket:
    """What a node's kernel receives of ICMP."""

    def __init__(self, node: Node, family: int) -> None:
        self._family = family
        self._protocol = socket.IPPROTO_ICMPV6 if family == V6 else socket.IPPROTO_ICMP
        self._socket = node.call(socket.socket, family, socket.SOCK_RAW, self._protocol)
        self._socket.settimeout(30)

    def __enter__(self) -> "IcmpSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def receive(self, *kinds: int) -> tuple[str, bytes]:
        """The next message of one of these types, and its source."""
        while True:
            data, origin = self._socket.recvfrom(1 << 16)
            message = data if self._family == V6 else data[(data[0] & 15) * 4 :]
            if message[0] in kinds:
                return origin[0], message


def test_a_datagram_whose_time_is_exceeded(own_lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    """What traceroute does, hop by hop: the balancer, a router behind it, the end."""
    lab = own_lab
    for family in FAMILIES:
        make_router(lab, lab.backends[1], lab.backends[0], family)
    path = tmp_path / "lb.yaml"
    path.write_text(configuration(lab))
    with featherlb(lab, "--config", str(path)):
        for nat, family in EACH_SERVICE:
            trace(lab, family, (vip(family), PORTS[nat]))


def trace(lab: Lab, family: int, service: tuple[str, int]) -> None:
    level, option, _, exceeded = hop_options(family)
    unreachable = 1 if family == V6 else 3
    # The VIP is one of its addresses as well.
    balancer = {service[0], *(own[family == V6] for own in lab.balancer.addresses.values())}
    with IcmpSocket(lab.client, family) as errors, udp(lab.client, family) as client:
        client.bind(("", 33434))
        for hops, kind, sources in (
            (1, exceeded, balancer),
            (2, exceeded, {service[0]}),
            (3, unreachable, {service[0]}),
        ):
            client.setsockopt(level, option, hops)
            client.sendto(b"probe", service)
            origin, message = errors.receive(exceeded, unreachable)
            quoted = (IPv6 if family == V6 else IP)(message[8:])
            assert message[0] == kind
            assert origin in sources
            assert (quoted.src, quoted.dst) == (address(lab.client, family), service[0])
            assert (quoted[UDP].sport, quoted[UDP].dport) == (33434, service[1])


def hop_options(family: int) -> tuple[int, int, int, int]:
    """To set and to receive the hops that a datagram has left: level, both options; and the type of
    the ICMP error that says that there are none."""
    if family == V6:
        return socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, IPV6_RECVHOPLIMIT, 3
    return socket.IPPROTO_IP, socket.IP_TTL, IP_RECVTTL, 11


@pytest.mark.usefixtures("balanced")
@pytest.mark.parametrize(("nat", "family"), EACH_SERVICE)
def test_each_datagram_takes_one_hop(lab: Lab, nat: str, family: int) -> None:
    """The first of a flow and the second; a client on this host is no hop away."""
    level, option, receive, exceeded = hop_options(family)
    service = (vip(family), PORTS[nat])
    with udp(lab.backends[0], family) as server, IcmpSocket(lab.client, family) as errors:
        server.setsockopt(level, receive, 1)
        server.bind(("", BESIDE + PORTS[nat]))

        def arrives(hops: int) -> None:
            _, ((_, _, seen), *_), _, _ = server.recvmsg(100, 100)
            assert int.from_bytes(seen[:4], sys.byteorder) == hops

        for hops in (64, 9, 2, 1):
            with udp(lab.client, family) as client, udp(lab.client, family) as following:
                client.setsockopt(level, option, hops)
                for _ in range(2):
                    client.sendto(b"probe", service)
                    if hops > 1:
                        arrives(hops - 1)
                        continue
                    _, message = errors.receive(exceeded)
                    quoted = (IPv6 if family == V6 else IP)(message[8:])
                    assert quoted[UDP].sport == client.getsockname()[1]
                    # Nothing has arrived before the next one.
                    following.sendto(b"probe", service)
                    arrives(63)
        with udp(lab.balancer, family) as own:
            own.setsockopt(level, option, 1)
            for _ in range(2):
                own.sendto(b"probe", service)
                arrives(1)


def test_each_segment_takes_one_hop(own_lab: Lab, featherlb: Up) -> None:
    """A SYN, and a segment that joins a connection."""
    lab, service = own_lab, (VIP, 80)
    arguments = ("--vip", f"{VIP}:80", "--scheduler", "maglev")
    with (
        featherlb(lab, *arguments, "--backend", f"{lab.backends[0].address}:8080"),
        Capture(lab.backends[0], "eth0") as wire,
        IcmpSocket(lab.client, V4) as errors,
        lab.client.new_socket() as client,
    ):
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        with pytest.raises(OSError, match="No route to host"):
            client.connect(service)
        errors.receive(11)
        ports = itertools.count(40001)
        for hops in (1, 64, 9, 2):
            for flags in ("S", "A"):
                segment = TCP(sport=next(ports), dport=80, flags=flags, seq=1000, ack=2000)
                send(lab, [bytes(IP(src=lab.client.address, dst=VIP, ttl=hops) / segment)])
                if hops == 1:
                    _, message = errors.receive(11)
                    assert IP(message[8:]).dport == 80
                    continue
                arrives(wire, lab, segment.sport, flags, hops - 1)
        assert not [one for one in arrivals(wire, lab) if one[0] in (40001, 40002)]


def arrives(wire: Capture, lab: Lab, *segment: object) -> None:
    """Wait for a segment at the backend, as `arrivals` has it."""
    wait_for(lambda: segment in arrivals(wire, lab), f"{segment}")


def arrivals(wire: Capture, lab: Lab) -> set[tuple[object, ...]]:
    """The segments to the backend: the client's port, the flags, the hops that are left."""
    return {
        (packet.sport, str(packet[TCP].flags), packet.ttl)
        for packet in wire.packets(lab.client.address)
        if TCP in packet and packet.dport == 8080
    }


@pytest.mark.usefixtures("balanced")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernel_answers_ping_for_an_assigned_vip(lab: Lab, family: int) -> None:
    lab.client.run(["ping", "-c3", "-i0.2", "-W5", vip(family)])


def test_featherlb_answers_ping_for_a_vip_of_no_host(
    own_lab: Lab, featherlb: Up, tmp_path: Path
) -> None:
    lab = own_lab
    far: dict[int, str] = {V4: "192.0.2.1", V6: "2001:db8:ffff::1"}
    path = tmp_path / "lb.yaml"
    path.write_text(configuration(lab, far))
    forward(lab.balancer)
    with featherlb(lab, "--config", str(path), "--no-assign"):
        for family in FAMILIES:
            lab.client.run(["ping", "-c3", "-i0.2", "-W5", "-s1000", far[family]])
            # Others' pings go on as they came.
            lab.client.run(["ping", "-c1", "-W5", address(lab.backends[0], family)])


@pytest.mark.usefixtures("balanced")
def test_an_error_of_another_connection_passes_as_it_is(lab: Lab) -> None:
    error = bytes(
        IP(src=lab.backends[1].address, dst=lab.client.address)
        / ICMP(type=3, code=3)
        / IP(src=lab.client.address, dst="198.51.100.1")
        / UDP(sport=1234, dport=5678)
    )
    with (
        IcmpSocket(lab.client, V4) as errors,
        lab.backends[1].call(
            socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW
        ) as wire,
    ):
        wire.sendto(error, (lab.client.address, 0))
        assert errors.receive(3) == (lab.backends[1].address, error[20:])


@in_turn(nat=NAT_MODES)
def test_errors_pass_a_closed_firewall_and_the_kernel_translates_its_own(
    own_lab: Lab, featherlb: Up, nat: str
) -> None:
    """A host that forwards nothing by default, and hides the backends' own connections."""
    lab = own_lab
    rules = """\
*filter
:FORWARD DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i back -m conntrack --ctstate NEW -j ACCEPT
COMMIT
*nat
-A POSTROUTING -s 10.0.1.0/24 -o front -j MASQUERADE
COMMIT
"""
    lab.balancer.run(["iptables-restore", "--noflush"], input=rules)
    forward(lab.balancer)
    with (
        featherlb(lab, *options(lab, V4, nat)),
        connected(lab.client, V4, (VIP, 80)) as client,
        connected(lab.backends[1], V4, (lab.client.address, 7)) as hidden,
    ):
        assert is_refused(client)
        assert is_refused(hidden)


@ONE_DRIVER
def test_instances_pass_on_each_others_errors(own_lab: Lab, featherlb: Up) -> None:
    lab = own_lab
    other = ("--vip", "10.0.0.11:80/udp", "--backend", f"{lab.backends[1].address}:8080")
    with featherlb(lab, *options(lab, V4, "dnat")), featherlb(lab, *other):
        for address in (VIP, "10.0.0.11"):
            with connected(lab.client, V4, (address, 80)) as client:
                assert is_refused(client)
