"""What an instance refuses, against what the kernel would do."""

import re
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from itertools import product

import pytest
from netfilterqueue import NetfilterQueue

from featherlb import host
from featherlb.lab import Lab, Node
from featherlb.model import Service
from featherlb.model.errors import HostError
from featherlb.system import arp
from tests.netns.host_owner import service
from tests.netns.test_host_changes import Owner, refusal, snapshot

pytestmark = pytest.mark.no_packets("what is refused before a worker starts")


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(backends=1) as lab:
        yield lab


def refused(node: Node, nat: str, vip: str, *backends: str) -> str | None:
    """The sentence with which a service is refused on this node, None if it isn't."""

    def check() -> None:
        services = host.prepare([service(nat, vip, list(backends))])
        host.check(services, host.Options(), host.survey(services))

    before = snapshot(node)
    fault = None
    try:
        node.call(check)
    except HostError as error:
        fault = str(error)
    assert snapshot(node) == before
    assert "\n" not in (fault or "")
    return fault


def test_a_plain_service_is_fine(lab: Lab) -> None:
    assert refused(lab.balancer, "dnat", "10.0.0.10:80", "10.0.1.2:8080") is None
    assert refused(lab.balancer, "full", "0.0.0.0:80", "10.0.1.2:8080") is None
    assert refused(lab.balancer, "dnat", "[2001:db8::10]:80", "[2001:db8:1::2]:8080") is None


def test_a_queue_in_use(lab: Lab) -> None:
    def bind() -> NetfilterQueue:
        queue = NetfilterQueue()
        queue.bind(0, lambda packet: packet.accept())
        return queue

    queue = lab.balancer.call(bind)
    try:
        fault = refused(lab.balancer, "dnat", "10.0.0.10:80")
        assert fault is not None
        assert "queue 0 is in use by" in fault
        assert lab.balancer.call(host.free_queue, 1) == 1
    finally:
        queue.unbind()


@pytest.mark.parametrize("second", ["10.0.0.10:80", "10.0.0.10:70-90", "0.0.0.0:80"])
def test_a_vip_that_another_instance_serves(lab: Lab, second: str) -> None:
    owner = Owner(lab.balancer, "0", "dnat", "10.0.0.10:80", "10.0.1.2:8080")
    fault = refusal(lab.balancer, "1", "dnat", second, "10.0.1.2:8080")
    assert f"already served by the featherlb with pid {owner.process.pid}" in fault
    assert "queue 0 is in use" in refusal(lab.balancer, "0", "dnat", "10.0.0.11:80")
    owner.stop()


def test_full_nat_to_one_backend_from_one_address_twice(lab: Lab) -> None:
    owner = Owner(lab.balancer, "0", "full", "10.0.0.10:80", "10.0.1.2:8080")
    fault = refusal(lab.balancer, "1", "full", "10.0.0.11:80", "10.0.1.2:8080")
    assert f"pid {owner.process.pid}" in fault
    assert "ports would collide" in fault
    Owner(lab.balancer, "1", "full", "10.0.0.11:80", "10.0.1.2:8081").stop()
    owner.stop()


@pytest.mark.parametrize("listen", ["10.0.0.1", "0.0.0.0", "::"])
def test_a_port_that_a_local_process_has(lab: Lab, listen: str) -> None:
    program = f"import socket; s = socket.create_server(({listen!r}, 80)"
    if listen == "::":
        program += ", family=socket.AF_INET6, dualstack_ipv6=True"
    with lab.balancer.popen(
        [sys.executable, "-c", program + "); print(flush=True); input()"], stdin=-1, stdout=-1
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        for vip in ("10.0.0.1:80", "10.0.0.1:70-90", "0.0.0.0:80"):
            fault = refused(lab.balancer, "dnat", vip, "10.0.1.2:8080")
            assert fault is not None
            assert f"(pid {server.pid}) listens on" in fault
        assert refused(lab.balancer, "dnat", "10.0.0.1:81", "10.0.1.2:8080") is None
        server.kill()


def test_the_services_own_backend_may_listen_on_the_vips_port(lab: Lab) -> None:
    with lab.balancer.listen("127.0.0.1", 80):
        assert refused(lab.balancer, "dnat", "10.0.0.10:80", "127.0.0.1:80") is None
        assert refused(lab.balancer, "dnat", "127.0.0.1:80", "127.0.0.2:80") is not None


def test_a_vip_that_another_host_has(lab: Lab) -> None:
    for vip, owner in (("10.0.0.101", "10.0.0.101"), ("2001:db8::101", "2001:db8::101")):
        fault = refused(lab.balancer, "dnat", f"[{vip}]:80")
        assert fault is not None
        assert f"VIP {owner} already belongs to the host with the MAC address" in fault
    assert arp.owners("lo", [ip_address("10.0.0.101")]) == {}


def test_a_vip_that_nobody_can_reach_yet(lab: Lab) -> None:
    def advised(vip: str, *, assign: bool = False) -> list[str]:
        options = host.Options(assign=assign)

        def advise() -> list[str]:
            services = host.prepare([service("dnat", vip, [])])
            facts = host.survey(services)
            host.check(services, options, facts)
            return list(host.advise(services, options, facts))

        return lab.balancer.call(advise)

    vip = "10.0.0.10:80"
    (text,) = advised(vip)
    assert text.startswith("VIP 10.0.0.10 is not an address of this host")
    assert advised(vip, assign=True) == []
    # A router may send it here.
    assert advised("192.0.2.1:80") == []
    for what, way in (("neigh", "proxy 10.0.0.10 dev front"), ("addr", "10.0.0.10/32 dev lo")):
        lab.balancer.run(["ip", what, "add", *way.split()])
        assert advised(vip) == []
        lab.balancer.run(["ip", what, "del", *way.split()])
    lab.balancer.sysctl("net.ipv4.conf.front.proxy_arp", 1)
    assert advised(vip) == []


@pytest.mark.parametrize(
    ("vip", "backend"),
    [
        ("10.0.0.10:80", "10.0.0.10:80"),
        ("10.0.0.10:70-90", "10.0.0.10:80"),
        ("0.0.0.0:80", "10.0.1.1:80"),
        ("0.0.0.0:80", "127.0.0.1:80"),
    ],
)
def test_a_backend_that_is_the_vip(lab: Lab, vip: str, backend: str) -> None:
    fault = refused(lab.balancer, "dnat", vip, backend)
    assert fault is not None
    assert "is the VIP" in fault


def test_a_loopback_vip_needs_full_nat_for_other_hosts(lab: Lab) -> None:
    fault = refused(lab.balancer, "dnat", "127.0.0.1:80", "10.0.1.2:8080")
    assert fault is not None
    assert "nat: full" in fault
    assert refused(lab.balancer, "full", "127.0.0.1:80", "10.0.1.2:8080") is None
    assert refused(lab.balancer, "dnat", "127.0.0.1:80", "127.0.0.1:8080") is None


def test_a_full_backend_without_a_route(lab: Lab) -> None:
    fault = refused(lab.balancer, "full", "10.0.0.10:80", "192.0.2.1:80")
    assert fault is not None
    assert "no route" in fault
    assert refused(lab.balancer, "dnat", "10.0.0.10:80", "192.0.2.1:80") is None


def test_source_addresses_are_addresses_of_this_host(lab: Lab) -> None:
    node = lab.balancer
    one = service("full", "10.0.0.10:80", ["10.0.1.2:8080"])

    def ask(source: str, **options: bool) -> tuple[list[str], list[str]]:
        """What refuses a service with this source address, and what it warns of."""
        backends = [replace(backend, sources=(ip_address(source),)) for backend in one.backends]
        services = host.prepare([replace(one, backends=tuple(backends))])
        chosen = host.Options(**options)
        facts = host.survey(services)
        problems = [str(problem) for problem in host.problems(services, chosen, facts)]
        return problems, list(host.advise(services, chosen, facts))

    (fault,), none = node.call(ask, "10.0.1.77")
    assert none == []
    assert "10.0.1.77" in fault
    (addition,) = [part for part in fault.split("`") if part.startswith("ip addr add")]
    # A standby host gets it later.
    refused_, (warning, _) = node.call(lambda: ask("10.0.1.77", assign=False))
    assert refused_ == []
    assert "10.0.1.77" in warning
    node.run(addition.split())
    assert node.call(ask, "10.0.1.77") == ([], [])
    assert node.call(ask, "10.0.0.10") == ([], []), "a VIP that it is about to assign"
    node.run(["ip", "route", "add", "local", "10.9.0.0/24", "dev", "lo"])
    assert node.call(ask, "10.9.0.7") == ([], []), "all addresses of a network"


def test_backends_in_the_subnet_of_the_vip(lab: Lab) -> None:
    def advice(nat: str, vip: str, *backends: str) -> list[str]:
        return list(host.advice(host.prepare([service(nat, vip, list(backends))])))

    for vip, near, far, own in (
        ("10.0.0.10", "10.0.0.5", "10.0.1.2", "10.0.0.1"),
        ("[2001:db8::10]", "[2001:db8::5]", "[2001:db8:1::2]", "[2001:db8::1]"),
    ):
        pool = (f"{near}:80", f"{far}:80", f"{own}:8080")
        (sentence,) = lab.balancer.call(advice, "dnat", f"{vip}:80", *pool)
        assert f"({near.strip('[]')})" in sentence
        assert "nat: full" in sentence
        assert lab.balancer.call(advice, "full", f"{vip}:80", *pool) == []
        assert lab.balancer.call(advice, "dnat", f"{vip}:80", *pool[1:]) == []


def passes(sender: Node, receiver: Node, source: str) -> bool:
    """Whether the balancer's host forwards a datagram that claims to come from `source`.

    To its kernel that looks like a packet that featherlb has rewritten in PREROUTING.
    """
    receiving = receiver.new_socket(kind=socket.SOCK_DGRAM)
    sending = sender.call(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with receiving, sending:
        receiving.bind((receiver.address, 5555))
        for claimed in (source, sender.address):
            datagram = struct.pack("!HHHH", 1024, 5555, 9, 0) + b"?"
            header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, 17, 0)
            addresses = IPv4Address(claimed).packed + IPv4Address(receiver.address).packed
            sending.sendto(header + addresses + datagram, (receiver.address, 0))
        # They arrive in order: the honest one comes first if the other was dropped.
        came_from: str = receiving.recvfrom(16)[1][0]
        return came_from == source


@pytest.mark.parametrize("arms", [1, 2])
@pytest.mark.parametrize(
    ("vip", "assign"),
    [
        ("10.0.0.10", True),
        ("10.0.0.1", True),
        ("10.1.1.1", True),
        ("192.0.2.1", True),
        ("192.0.2.1", False),
    ],
)
def test_full_nat_is_refused_just_where_rp_filter_drops_it(
    arms: int, vip: str, assign: bool
) -> None:
    with Lab(backends=1, arms=arms) as lab:
        client, balancer, backend = lab.client, lab.balancer, lab.backends[0]
        balancer.run(["ip", "addr", "add", "10.1.1.1/32", "dev", "lo"])
        if arms == 1:
            balancer.run(["ip", "addr", "add", "10.0.1.1/32", "dev", "lo"])
            for node, peer in ((client, backend), (backend, client)):
                node.run(["ip", "route", "add", peer.address, "via", "10.0.0.1"])
        for source, rp_filter in product(("10.0.0.1", "10.0.1.1", "10.1.1.1"), (0, 1, 2)):
            for conf in ("all", *balancer.addresses):
                balancer.sysctl(f"net.ipv4.conf.{conf}.rp_filter", rp_filter)
            full = service("full", f"{vip}:80", [f"{backend.address}:8080"])
            full = replace(
                full, backends=(replace(full.backends[0], sources=(IPv4Address(source),)),)
            )
            fault, works = outcome(lab, full, assign)
            assert works == (fault is None), (source, rp_filter, fault)
            if fault:
                balancer.run(re.findall("`(sysctl .*)`", fault)[0].split())
                assert outcome(lab, full, assign) == (None, True), (source, rp_filter, fault)


def outcome(lab: Lab, wanted: Service, assign: bool) -> tuple[str | None, bool]:
    """The refusal because of rp_filter, and whether packets pass."""
    options = host.Options(assign=assign)
    services = lab.balancer.call(host.prepare, [wanted])
    facts = lab.balancer.call(host.survey, services)
    fault = None
    try:
        lab.balancer.call(host.check, services, options, facts)
    except HostError as error:
        fault = str(error)
    # The settings and addresses without the rules: nobody is there to consume the queue.
    plan = replace(host.build(services, options, facts), rules={})
    with lab.balancer.call(host.Host) as instance:
        lab.balancer.call(instance.apply, plan)
        source, vip = wanted.backends[0].sources[0], wanted.vips[0].address
        works = passes(lab.client, lab.backends[0], str(source)) and passes(
            lab.backends[0], lab.client, str(vip)
        )
        lab.balancer.call(instance.revert)
    return fault, works
