"""Datagrams longer than the MTU: the kernel reassembles them before they are balanced."""

import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import VIP, VIP6
from tests.netns.command import api
from tests.netns.conftest import ONE_DRIVER, QUEUEING, Up, in_turn
from tests.netns.traffic import wait_for

FAMILIES = (socket.AF_INET, socket.AF_INET6)
EACH_SERVICE = tuple(itertools.product(("dnat", "full"), FAMILIES))
PORTS = {"dnat": 80, "full": 81}
VIPS: dict[int, str] = {socket.AF_INET: VIP, socket.AF_INET6: VIP6}
FAR: dict[int, str] = {socket.AF_INET: "192.0.2.10", socket.AF_INET6: "2001:db8:ffff::10"}
"""VIPs that are no address of this host."""
DATAGRAMS = [os.urandom(size) for size in (100, 5_000, 30_000)]
LONGEST: dict[int, int] = {socket.AF_INET: 65_507, socket.AF_INET6: 65_527}
"""Bytes of payload: as UDP and IP can have them."""
LONGEST_QUEUED: dict[int, int] = {socket.AF_INET: 65_503, socket.AF_INET6: 65_483}
"""As a queue delivers them whole: the packet has 65,531 bytes (NFQNL_MAX_COPY_RANGE)."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(clients=1, backends=1) as lab:
        yield lab


def large_datagrams(lab: Lab, vip: str, port: int = 80) -> None:
    """Send each there and back, from a client that begins with it; both ends must get exactly what
    the other one sent."""
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    for first in DATAGRAMS:
        with (
            lab.client.new_socket(family, socket.SOCK_DGRAM) as client,
            lab.backends[0].new_socket(family, socket.SOCK_DGRAM) as server,
        ):
            server.bind(("", port + 8000))
            client.connect((vip, port))
            for query in (first, *DATAGRAMS):
                client.send(query)
                data, peer = server.recvfrom(1 << 16)
                assert data == query
                answer = query[::-1]
                server.sendto(answer, peer)
                assert client.recv(1 << 16) == answer


def learn_path_mtu(client: Node, vip: str, family: int, port: int) -> None:
    """Send a datagram that doesn't get through, and wait for the error."""
    with client.new_socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((vip, port))
        probe.send(bytes(1400))
        wait_for(
            lambda: " mtu 1280 " in client.run(["ip", "route", "get", vip]).stdout,
            f"the path MTU to {vip}",
        )


def configuration(lab: Lab, vips: dict[int, str] = VIPS) -> str:
    """A service of each NAT mode and family."""
    lines = ["services:"]
    for nat, family in EACH_SERVICE:
        port, six = PORTS[nat], family == socket.AF_INET6
        backend = f"[{lab.backends[0].address6}]" if six else lab.backends[0].address
        lines.append(
            f"  - {{name: {nat}{6 if six else 4}, protocol: udp, nat: {nat},"
            f" vip: '[{vips[family]}]:{port}', backends: ['{backend}:{port + 8000}']}}"
        )
    return "\n".join(lines) + "\n"


def test_large_datagrams_arrive_whole(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    path = tmp_path / "lb.yaml"
    path.write_text(configuration(lab))
    with featherlb(lab, "--config", str(path)):
        for nat, family in EACH_SERVICE:
            large_datagrams(lab, VIPS[family], PORTS[nat])


def test_the_longest_datagrams_get_through_where_they_need_not_pass_a_queue(
    lab: Lab, featherlb: Up, driver: str, tmp_path: Path
) -> None:
    """With the datapath raw all, with offload all but the one that opens the flow. What a queue
    can't deliver is lost as a whole, and counted."""
    path = tmp_path / "lb.yaml"
    path.write_text(configuration(lab))
    with featherlb(lab, "--config", str(path)):
        for nat, family in EACH_SERVICE:
            longest_datagrams(lab, driver, family, PORTS[nat])


def longest_datagrams(lab: Lab, driver: str, family: int, port: int) -> None:
    longest, queued = os.urandom(LONGEST[family]), os.urandom(LONGEST_QUEUED[family])
    through_queue = driver in QUEUEING

    def truncated() -> int:
        reasons: dict[str, int] = api(lab.balancer, "stats")["reasons"]
        return reasons["truncated"]

    before = truncated()

    def lost(count: int) -> bool:
        return truncated() == before + count

    with (
        lab.client.new_socket(family, socket.SOCK_DGRAM) as client,
        lab.backends[0].new_socket(family, socket.SOCK_DGRAM) as server,
    ):
        server.bind(("", port + 8000))
        client.connect((VIPS[family], port))
        client.send(longest)
        if driver == "raw":
            assert server.recv(1 << 17) == longest
        else:
            wait_for(lambda: lost(1), "the datagram is counted")
        for data in (queued,) if through_queue else (longest, queued):
            client.send(data)
            arrived, peer = server.recvfrom(1 << 17)
            assert arrived == data
            server.sendto(data, peer)
            assert client.recv(1 << 17) == data
        if through_queue:
            client.send(longest)
            server.sendto(longest, peer)
            wait_for(lambda: lost(3), "both are counted")
        # Nor has anything else arrived in between.
        client.send(b"end")
        assert server.recv(1 << 17) == b"end"
        server.sendto(b"end", peer)
        assert client.recv(1 << 17) == b"end"
        assert lost({"raw": 0, "offload": 1}.get(driver, 3))


@in_turn(routed=(False, True))
def test_large_datagrams_to_a_vip_that_is_no_address_of_this_host(
    lab: Lab, featherlb: Up, tmp_path: Path, routed: bool
) -> None:
    """Nor need this host know a way to it, when it begins or later."""

    def route(verb: str) -> None:
        for vip, client in zip(
            FAR.values(), (lab.client.address, lab.client.address6), strict=True
        ):
            lab.balancer.run(["ip", "route", verb, vip, "via", client])

    path = tmp_path / "lb.yaml"
    path.write_text(configuration(lab, FAR))
    if routed:
        route("add")
    with featherlb(lab, "--config", str(path), "--no-assign"):
        for change in ("", "del" if routed else "add"):
            if change:
                route(change)
            for nat, family in EACH_SERVICE:
                large_datagrams(lab, FAR[family], PORTS[nat])


def test_a_small_link_behind_the_balancer(lab: Lab, featherlb: Up, tmp_path: Path) -> None:
    """Reassembled packets are fragmented again: over IPv4 to the link's MTU. Over IPv6 the client
    gets an error and sends smaller fragments."""
    for node, interface in ((lab.balancer, "back"), (lab.backends[0], "eth0")):
        node.run(["ip", "link", "set", interface, "mtu", "1280"])
    path = tmp_path / "lb.yaml"
    path.write_text(configuration(lab))
    with featherlb(lab, "--config", str(path)):
        for nat, family in EACH_SERVICE:
            learn_path_mtu(lab.client, VIPS[family], family, PORTS[nat])
            large_datagrams(lab, VIPS[family], PORTS[nat])
            lab.client.run(
                ["ip", f"-{6 if family == socket.AF_INET6 else 4}", "route", "flush", "cache"]
            )


@ONE_DRIVER
def test_either_kind_of_rule_makes_the_kernel_reassemble(
    lab: Lab, featherlb: Up, tmp_path: Path
) -> None:
    """The one about the state that every set-up has, and the one for a kernel without it."""
    path = tmp_path / "lb.yaml"
    path.write_text(configuration(lab))
    with featherlb(lab, "--config", str(path)):
        for family, vip in VIPS.items():
            iptables, nowhere = (
                ("ip6tables", "ff02::1")
                if family == socket.AF_INET6
                else ("iptables", "255.255.255.255")
            )
            large_datagrams(lab, vip)
            lab.balancer.run([iptables, "-t", "filter", "-F"])
            with (
                lab.client.new_socket(family, socket.SOCK_DGRAM) as client,
                lab.backends[0].new_socket(family, socket.SOCK_DGRAM) as server,
            ):
                server.bind(("", 8080))
                client.connect((vip, 80))
                client.send(DATAGRAMS[1])
                client.send(b"behind it")
                assert server.recv(1 << 16) == b"behind it"
            rule = ("-s", nowhere, "-m", "socket", "-j", "RETURN")
            lab.balancer.run([iptables, "-t", "raw", "-I", "PREROUTING", *rule])
            large_datagrams(lab, vip)
