"""`Views.explain`: what a packet would meet, told without handling one."""

from dataclasses import replace

import pytest

from featherlb.core.flows.tcp_state import State
from featherlb.core.path.export import Explanation
from featherlb.model import Endpoint, Protocol
from tests.world import ONE, THREE, TWO, VIP, World, client, service

OTHER_VIP = "192.0.2.11:80"


def explain(world: World, source: str, vip: str = VIP) -> Explanation:
    views = world.balancer.views
    pool = views.find_pool(Protocol.TCP, Endpoint.parse(vip))
    assert pool is not None
    ends = Endpoint.parse(source), Endpoint.parse(vip)
    return views.explain(pool, Protocol.TCP, *ends, world.now)


@pytest.mark.parametrize("scheduler", ["rr", "lc", "random", "maglev"])
@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_a_new_flow_goes_where_it_was_told_to_go(scheduler: str, nat: str) -> None:
    world = World(service(ONE, TWO, THREE, scheduler=scheduler, nat=nat))
    for number in range(20):
        told = [explain(world, client(number)) for _ in range(3)]
        assert told[0] == told[2]
        assert (told[0].flow, told[0].clash, told[0].full) == (None, None, False)
        assert str(told[0].decision.backend) == world.connect(client(number)).server


def test_a_flow_and_its_end() -> None:
    world = World(service(ONE, TWO))
    connection = world.connect(client(1))
    connection.send("PA", b"x" * 10)
    world.advance(2.0)
    told = explain(world, client(1))
    assert told.flow is not None
    assert (str(told.flow.backend), told.flow.state) == (ONE, State.ESTABLISHED)
    assert (told.flow.age, told.reopens) == (2.0, False)
    # Where another one would go.
    assert str(told.decision.backend) == TWO
    connection.send("R")
    told = explain(world, client(1))
    assert told.flow is not None
    assert told.reopens
    assert [one.active for one in told.decision.candidates] == [0, 0]


def test_a_port_that_is_in_use_through_another_vip() -> None:
    world = World(service(ONE, name="web"), service(ONE, name="other", vips=OTHER_VIP))
    connection = world.connect(client(1))
    told = explain(world, client(1), OTHER_VIP)
    assert told.flow is None
    assert told.clash is not None
    assert str(told.clash.vip) == VIP
    connection.send("R")
    assert explain(world, client(1), OTHER_VIP).clash is None
    assert explain(world, client(2), OTHER_VIP).clash is None


def test_a_full_flow_table_and_an_unknown_vip() -> None:
    world = World(service(ONE), capacity=2)
    assert not explain(world, client(9)).full
    world.connect(client(1))
    world.connect(client(2))
    assert explain(world, client(9)).full
    assert world.balancer.views.find_pool(Protocol.TCP, Endpoint.parse("192.0.2.99:80")) is None
    assert world.balancer.views.find_pool(Protocol.UDP, Endpoint.parse(VIP)) is None


def test_a_service_without_backends() -> None:
    world = World(service())
    told = explain(world, client(1))
    assert told.decision.backend is None
    assert told.decision.reasons == ("primary: no backend takes new flows",)
    assert replace(told, flow=None) == told
