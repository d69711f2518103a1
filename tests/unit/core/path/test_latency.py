"""What of a connection is timed, and what is counted as sent again."""

import pytest

from featherlb.core.flows.tcp_state import State
from featherlb.core.path.export import BackendStats
from featherlb.model import Datapath, Endpoint, Hook, Protocol
from tests.builders import udp
from tests.unit.core.path.test_kernel_flows import Kernel
from tests.world import CLIENT, ONE, TWO, VIP, Connection, World, client, endpoints, service

FAILURE = 1.0
"""Seconds that a failed connection counts as."""


def stats(world: World) -> BackendStats:
    """Those of the first backend."""
    return world.statistics().backends[0]


def timed(world: World) -> tuple[int, float]:
    """How often, and how long in all, to a tenth of a millisecond."""
    one = stats(world)
    return sum(one.answers), round(one.answer_time, 4)


@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_from_the_syn_to_the_first_syn_ack(nat: str) -> None:
    world = World(service(ONE, nat=nat))
    connection = Connection(world)
    connection.send("S")
    world.now += 0.03
    connection.reply("SA")
    assert timed(world) == (1, 0.03)
    assert stats(world).latency == pytest.approx(0.03)
    # The backend sends it again, then the connection works.
    world.now += 1
    connection.replied -= 1
    connection.reply("SA")
    connection.send("A")
    connection.reply("A", b"data")
    assert timed(world) == (1, 0.03)
    assert stats(world).retransmits_reply == 1


def test_an_answer_to_a_syn_that_was_sent_twice_is_not_timed() -> None:
    world = World(service(ONE))
    connection = Connection(world)
    connection.lose("S")
    world.now += 1
    connection.send("S")
    world.now += 0.001
    connection.reply("SA")
    assert timed(world) == (0, 0)
    assert stats(world).syn_retries == 1


def test_an_answer_to_another_syn_is_not_timed() -> None:
    world = World(service(ONE))
    connection = Connection(world)
    connection.send("S")
    connection.sent -= 1000
    connection.reply("SA")
    assert timed(world) == (0, 0)


def test_a_backend_that_takes_over_is_timed_for_itself() -> None:
    world = World(service(ONE, TWO))
    connection = Connection(world)
    connection.lose("S")
    assert connection.server == ONE
    world.now += 1
    connection.send("S")
    world.now += 0.002
    connection.reply("SA")
    silent, other = world.statistics().backends
    assert (silent.answers, sum(other.answers)) == ((), 1)
    assert other.answer_time == pytest.approx(0.002)


@pytest.mark.parametrize("flags", ["RA", "S"], ids=["refused", "silent"])
def test_failures_make_a_backend_look_slow(flags: str) -> None:
    world = World(service(ONE))
    pool = world.balancer.views.find_pool(Protocol.TCP, Endpoint.parse(VIP))
    assert pool is not None
    (member,) = pool.members.values()
    world.connect(client(1))
    assert member.latency is not None
    assert member.latency < FAILURE
    connection = Connection(world)
    connection.send("S")
    if flags == "RA":
        connection.reply(flags)
    else:
        world.advance(1)
        connection.sent -= 1
        connection.send(flags)
    assert member.latency == FAILURE


def test_datagrams_are_timed_from_the_first_to_the_first_answer() -> None:
    world = World(service(ONE, protocol=Protocol.UDP))
    sent = world.handle(udp(CLIENT, VIP, b"query"))
    source, server = endpoints(sent.packet)
    world.now += 0.2
    world.handle(udp(CLIENT, VIP, b"query"))
    world.now += 0.3
    for _ in range(2):
        world.handle(udp(server, source, b"answer"), Hook.POSTROUTING)
    assert timed(world) == (1, 0.5)


def test_where_the_kernel_forwards_its_events_are_timed() -> None:
    world = World(service(ONE, datapath=Datapath.OFFLOAD))
    kernel = Kernel(world)
    world.handle(Connection(world).segment("S"))
    kernel.execute()
    one = kernel.only
    one.state = int(State.SYN_RECEIVED)
    world.balancer.offload.changed(one, world.now + 0.004)
    one.state = int(State.ESTABLISHED)
    world.balancer.offload.changed(one, world.now + 1)
    assert timed(world) == (1, 0.004)


def test_a_look_up_is_no_event() -> None:
    world = World(service(ONE, datapath=Datapath.OFFLOAD))
    kernel = Kernel(world)
    world.handle(Connection(world).segment("S"))
    kernel.execute()
    kernel.only.state = int(State.SYN_RECEIVED)
    world.now += 1
    world.balancer.offload.look_up_all()
    kernel.execute()
    assert [one.state for one in world.flows()] == [State.SYN_RECEIVED]
    assert timed(world) == (0, 0)


def test_data_that_come_again_or_late_are_counted() -> None:
    world = World(service(ONE))
    connection = world.connect()
    connection.send("A", b"request")
    connection.sent -= len(b"request")
    connection.send("A", b"request")
    connection.reply("A", b"answer, first part")
    connection.send("A")  # acknowledged
    connection.reply("A", b"second")
    connection.replied -= len(b"second")
    connection.reply("A", b"second")
    connection.send("A")
    connection.send("A")  # an ACK twice is no data
    one = stats(world)
    assert (one.retransmits_forward, one.retransmits_reply) == (1, 1)
