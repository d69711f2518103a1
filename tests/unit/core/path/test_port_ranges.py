"""Backends of several ports: which port a packet reaches, and from which one its reply comes."""

import pytest

from featherlb.model import Datapath, Hook, Protocol, Timeouts, Verdict
from featherlb.model.reason import Reason
from featherlb.model.shard import Shard
from tests.builders import tcp, udp
from tests.world import CLIENT, World, service

RANGE, ADDRESS, SHIFTED = "192.0.2.10:10000-10009", "10.1.0.1", "10.1.0.1:20000-20009"
ALONE = Shard(0, 1, 0)
ALL, WEB = "192.0.2.10:*", "192.0.2.10:80"


@pytest.mark.parametrize("nat", ["dnat", "full"])
@pytest.mark.parametrize(("backend", "first"), [(ADDRESS, 10000), (SHIFTED, 20000)])
def test_each_port_leads_to_its_own(nat: str, backend: str, first: int) -> None:
    world = World(service(backend, vips=RANGE, nat=nat))
    for offset in (0, 5, 9):
        connection = world.connect(CLIENT, f"192.0.2.10:{10000 + offset}")
        assert connection.server == f"10.1.0.1:{first + offset}"
        connection.reply("A", b"answer")
    assert world.active() == {backend: 3}


def test_several_vips_keep_their_ports() -> None:
    world = World(service(ADDRESS, vips=[RANGE, "192.0.2.11:21", "192.0.2.11:80"]))
    for vip, port in (("192.0.2.10:10009", 10009), ("192.0.2.11:21", 21), ("192.0.2.11:80", 80)):
        assert world.connect(CLIENT, vip).server == f"10.1.0.1:{port}"


def test_a_more_specific_service_has_its_port() -> None:
    every, web = service(ADDRESS, name="all", vips=ALL), service("10.1.0.2:8080", vips=WEB)
    for order in ([every, web], [web, every]):
        world = World(*order)
        assert world.connect(CLIENT, WEB).server == "10.1.0.2:8080"
        for port in (1, 79, 81, 65535):
            assert world.connect(CLIENT, f"192.0.2.10:{port}").server == f"10.1.0.1:{port}"
        assert world.handle(tcp(CLIENT, "192.0.2.11:81", "S")).reason is Reason.NOT_OURS
        world.apply(every)
        assert world.connect("198.51.100.9:1000", WEB).server == "10.1.0.1:80"


def test_connections_of_this_host_from_a_vip_with_all_ports_pass() -> None:
    for scheduler in ("round-robin", "maglev"):
        world = World(service(ADDRESS, vips=ALL, scheduler=scheduler))
        for flags in ("SA", "A", "FA", "R"):
            outcome = world.handle(tcp("203.0.113.1:443", "192.0.2.10:40000", flags))
            assert (outcome.reason, outcome.answers) == (Reason.NOT_OURS, ())
        assert not world.flows()


def test_source_ports_are_unique_towards_a_host() -> None:
    """Whether flows reach it as a backend of one port or of many."""
    one = service("10.1.0.1:10005", name="one", vips=WEB, nat="full")
    many = service(ADDRESS, name="many", vips=RANGE, nat="full")
    world = World(one, many, source_ports=range(5000, 5004))
    for number in range(2):
        for vip in (WEB, "192.0.2.10:10005"):
            world.connect(f"198.51.100.7:{3000 + number}", vip)
    flows = world.flows()
    assert {flow.service for flow in flows} == {"one", "many"}
    assert {str(flow.backend) for flow in flows} == {"10.1.0.1:10005"}
    assert len({flow.source for flow in flows}) == 4
    refused = world.handle(tcp("198.51.100.7:2000", WEB, "S"))
    assert refused.reason is Reason.NO_SOURCE_PORT
    world.advance(Timeouts().established)
    assert world.handle(tcp("198.51.100.7:2000", WEB, "S")).verdict is Verdict.REWRITTEN


def test_an_address_of_all_ports_keeps_its_source_ports() -> None:
    world = World(service(ADDRESS, vips=ALL, nat="full", sources=["192.0.2.10"]))
    connection = world.connect(CLIENT, "192.0.2.10:443")
    connection.reply("A", b"answer")
    assert connection.server == "10.1.0.1:443"


def test_a_client_port_reaches_several_ports() -> None:
    world = World(service(ADDRESS, vips=RANGE, protocol=Protocol.UDP))
    for port in (10000, 10001):
        outcome = world.handle(udp(CLIENT, f"192.0.2.10:{port}"))
        assert outcome.destination == f"10.1.0.1:{port}"
    for port in (10000, 10001):
        answer = world.handle(udp(f"10.1.0.1:{port}", CLIENT), Hook.POSTROUTING)
        assert answer.source == f"192.0.2.10:{port}"


@pytest.mark.parametrize("backend", [ADDRESS, SHIFTED])
@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_flows_are_restored(nat: str, backend: str) -> None:
    before = World(service(backend, vips=RANGE, nat=nat))
    before.connect(CLIENT, "192.0.2.10:10003")
    world = World(service(backend, vips=RANGE, nat=nat))
    assert world.balancer.restoration.restore(before.memory, ALONE) == (1, 0)
    assert [flow.backend for flow in world.flows()] == [flow.backend for flow in before.flows()]
    elsewhere = World(service("10.1.0.1:30000-30009", vips=RANGE, nat=nat))
    assert elsewhere.balancer.restoration.restore(before.memory, ALONE) == (0, 1)
    assert not elsewhere.flows()


def test_a_reply_tells_the_port_of_the_vip() -> None:
    """After a restart without saved flows."""
    for backend, first in ((ADDRESS, 10000), (SHIFTED, 20000)):
        offered = service(backend, vips=RANGE, scheduler="maglev")
        world = World(offered, adopt_until=1e9)
        outcome = world.handle(tcp(f"10.1.0.1:{first + 4}", CLIENT, "A"), Hook.POSTROUTING)
        assert outcome.source == "192.0.2.10:10004"


def test_a_range_moves_while_flows_continue() -> None:
    world = World(service(SHIFTED, vips=RANGE))
    connection = world.connect(CLIENT, "192.0.2.10:10009")
    world.apply(service(SHIFTED, vips="192.0.2.10:11000-11009"))
    assert world.connect("198.51.100.9:1000", "192.0.2.10:11009").server == "10.1.0.1:20009"
    connection.reply("A", b"answer")


def test_offloaded_flows_have_the_port() -> None:
    world = World(service(SHIFTED, vips=RANGE, datapath=Datapath.OFFLOAD))
    world.handle(tcp(CLIENT, "192.0.2.10:10002", "S"))
    (flow,) = world.flows()
    assert str(flow.backend) == "10.1.0.1:20002"
