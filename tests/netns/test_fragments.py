"""Datagrams longer than the MTU: the kernel reassembles them before they are balanced."""

import os
import socket
from collections.abc import Iterator

import pytest

from netns import Lab, Node
from netns.lab import VIP, VIP6
from tests.netns.command import run
from tests.netns.conftest import ONE_DRIVER, Up, all_pairs
from tests.netns.traffic import wait_for

FAMILIES = (socket.AF_INET, socket.AF_INET6)
BOTH = all_pairs(nat=("dnat", "full"), family=FAMILIES)
DATAGRAMS = [os.urandom(size) for size in (100, 5_000, 30_000)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(clients=1, backends=1) as lab:
        yield lab


def large_datagrams(lab: Lab, family: int, vip: str = "") -> None:
    """Send each there and back, from a client that begins with it; both ends must get exactly what
    the other one sent."""
    vip = vip or (VIP6 if family == socket.AF_INET6 else VIP)
    for first in DATAGRAMS:
        with (
            lab.client.new_socket(family, socket.SOCK_DGRAM) as client,
            lab.backends[0].new_socket(family, socket.SOCK_DGRAM) as server,
        ):
            server.bind(("", 8080))
            client.connect((vip, 80))
            for query in (first, *DATAGRAMS):
                client.send(query)
                data, peer = server.recvfrom(1 << 16)
                assert data == query
                answer = query[::-1]
                server.sendto(answer, peer)
                assert client.recv(1 << 16) == answer


def learn_path_mtu(client: Node, vip: str, family: int) -> None:
    """Send a datagram that doesn't get through, and wait for the error."""
    with client.new_socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((vip, 80))
        probe.send(bytes(1400))
        wait_for(
            lambda: " mtu 1280 " in client.run(["ip", "route", "get", vip]).stdout,
            f"the path MTU to {vip}",
        )


def options(lab: Lab, family: int, nat: str, vip: str = "") -> tuple[str, ...]:
    if family == socket.AF_INET6:
        service, backend = f"[{vip or VIP6}]:80/udp", f"[{lab.backends[0].address6}]:8080"
    else:
        service, backend = f"{vip or VIP}:80/udp", f"{lab.backends[0].address}:8080"
    return "--vip", service, "--backend", backend, "--nat", nat


@BOTH
def test_large_datagrams_arrive_whole(lab: Lab, featherlb: Up, nat: str, family: int) -> None:
    with featherlb(lab, *options(lab, family, nat)):
        large_datagrams(lab, family)


@all_pairs(nat=("dnat", "full"), family=FAMILIES, routed=(False, True))
def test_large_datagrams_to_a_vip_that_is_no_address_of_this_host(
    lab: Lab, featherlb: Up, nat: str, family: int, routed: bool
) -> None:
    """Nor need this host know a way to it."""
    six = family == socket.AF_INET6
    vip, client = (
        ("2001:db8:ffff::10", lab.client.address6) if six else ("192.0.2.10", lab.client.address)
    )
    if routed:
        lab.balancer.run(["ip", "route", "add", vip, "via", client])
    with featherlb(lab, *options(lab, family, nat, vip), "--no-assign"):
        large_datagrams(lab, family, vip)
    # The next test has other VIPs, and maybe another datapath.
    assert run(lab.balancer, "down").returncode == 0
    if routed:
        lab.balancer.run(["ip", "route", "del", vip])


@BOTH
def test_a_small_link_behind_the_balancer(featherlb: Up, nat: str, family: int) -> None:
    """What is reassembled is cut again: in IPv4 to what the link takes. In IPv6 the client is told
    to cut it smaller."""
    with Lab(clients=1, backends=1) as lab:
        for node, interface in ((lab.balancer, "back"), (lab.backends[0], "eth0")):
            node.run(["ip", "link", "set", interface, "mtu", "1280"])
        with featherlb(lab, *options(lab, family, nat)):
            learn_path_mtu(lab.client, VIP6 if family == socket.AF_INET6 else VIP, family)
            large_datagrams(lab, family)


@ONE_DRIVER
@pytest.mark.parametrize("family", FAMILIES)
def test_either_kind_of_rule_makes_the_kernel_reassemble(featherlb: Up, family: int) -> None:
    """The one about the state that every set-up has, and the one for a kernel without it."""
    iptables, nowhere = (
        ("ip6tables", "ff02::1") if family == socket.AF_INET6 else ("iptables", "255.255.255.255")
    )
    with Lab(clients=1, backends=1) as lab, featherlb(lab, *options(lab, family, "dnat")):
        large_datagrams(lab, family)
        lab.balancer.run([iptables, "-t", "filter", "-F"])
        with (
            lab.client.new_socket(family, socket.SOCK_DGRAM) as client,
            lab.backends[0].new_socket(family, socket.SOCK_DGRAM) as server,
        ):
            server.bind(("", 8080))
            client.connect((VIP6 if family == socket.AF_INET6 else VIP, 80))
            client.send(DATAGRAMS[1])
            client.send(b"behind it")
            assert server.recv(1 << 16) == b"behind it"
        rule = ("-s", nowhere, "-m", "socket", "-j", "RETURN")
        lab.balancer.run([iptables, "-t", "raw", "-I", "PREROUTING", *rule])
        large_datagrams(lab, family)
