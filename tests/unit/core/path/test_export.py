"""core/path/export.py: flows and counters as values."""

import pytest

from featherlb.model import Protocol
from tests.builders import tcp
from tests.world import ONE, THREE, TWO, VIP, World, client, service

CLIENT6, VIP6, ONE6 = "[2001:db8:1::7]:40000", "[2001:db8::10]:80", "[fd00::1]:8080"


def test_counters_of_a_backend() -> None:
    world = World(service(ONE, name="web"), service(ONE, name="other", vips="192.0.2.11:80"))
    connection = world.connect()
    connection.send("PA", b"x" * 10)
    connection.reply("PA", b"y" * 100)
    connection.reply("PA", b"y" * 100)
    web, other = world.statistics().backends
    assert (web.service, str(web.backend), web.flows, web.active) == ("web", ONE, 1, 1)
    assert (web.packets_forward, web.bytes_forward) == (3, 3 * 40 + 10)
    assert (web.packets_reply, web.bytes_reply) == (3, 3 * 40 + 200)
    assert (other.flows, other.packets_forward, other.packets_reply) == (0, 0, 0)
    (view,) = world.flows()
    assert (view.bytes_forward, view.bytes_reply) == (3 * 40 + 10, 3 * 40 + 200)


def test_many_backends_have_counters_of_their_own() -> None:
    endpoints = [f"10.1.1.{number}:8080" for number in range(1, 41)]
    world = World(service(*endpoints))
    for number in range(60):
        world.handle(tcp(client(number), VIP, "S"))
    counts = [one.flows for one in world.statistics().backends]
    assert counts == [2] * 20 + [1] * 20
    assert [one.packets_forward for one in world.statistics().backends] == counts


@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_a_flow_as_people_see_it(nat: str) -> None:
    world = World(service(ONE6, name="six", vips=VIP6, nat=nat, sources=["fd00::fe"]))
    connection = world.connect(CLIENT6, VIP6)
    world.advance(2.5)
    connection.send()
    world.advance(1.0)
    (view,) = world.flows()
    seen = (view.service, view.protocol, view.state.name, view.age, view.idle)
    assert seen == ("six", Protocol.TCP, "ESTABLISHED", 3.5, 1.0)
    assert [str(end) for end in (view.client, view.vip, view.backend, view.source)] == [
        CLIENT6, VIP6, ONE6, connection.source,
    ]  # fmt: skip


def test_flows_are_listed_in_parts() -> None:
    world = World(service(ONE))
    for number in range(5):
        world.handle(tcp(client(number), VIP, "S"))
    listed = list(world.balancer.views.list_flows(world.now, first=2, limit=3))
    assert [str(view.client) for view in listed] == [client(1), client(2), client(3)]


def test_opened_flows_are_reported_once_on_request() -> None:
    world = World(service(ONE, TWO, THREE))
    world.connect(client(1))
    assert world.balancer.views.take_opened(world.now) == []
    world.balancer.lifecycle.opened = []
    world.connect(client(2)).send("PA", b"x")
    told = world.balancer.views.take_opened(world.now)
    assert [(str(view.client), str(view.backend)) for view in told] == [(client(2), TWO)]
    assert world.balancer.views.take_opened(world.now) == []
