"""core/path/liveness.py: silent connections are probed once, and dead ones are found."""

import pytest
from scapy.layers.inet import TCP

from featherlb.core.path.liveness import AT_ONCE
from featherlb.model import Timeouts
from tests.builders import parse
from tests.world import ONE, Connection, World, client, service

TIMES = Timeouts(established=80, closed=10)
SILENCE = 10

both_modes = pytest.mark.parametrize("nat", ["dnat", "full"])


def make_world(nat: str = "dnat", capacity: int = 64) -> World:
    return World(service(ONE, nat=nat), timeouts=TIMES, capacity=capacity)


def probes(world: World) -> list[tuple[str, str, TCP]]:
    """Source, destination and TCP header of the packets that it sends."""
    found = []
    for packet in map(parse, world.balancer.outbox.take()):
        ip, tcp = packet, packet["TCP"]
        found.append((f"{ip.src}:{tcp.sport}", f"{ip.dst}:{tcp.dport}", tcp))
    return found


def silent(world: World) -> tuple[Connection, TCP]:
    """A connection after a while of silence, and its probe."""
    connection = world.connect()
    connection.send("PA", b"question")
    connection.reply("PA", b"answer")
    connection.send("A")
    world.advance(SILENCE - 0.1)
    assert probes(world) == []
    world.advance(0.1)
    ((source, destination, probe),) = probes(world)
    assert (source, destination) == (connection.source, ONE)
    return connection, probe


@both_modes
def test_a_silent_connection_is_probed_in_front_of_what_the_backend_expects(nat: str) -> None:
    world = make_world(nat)
    connection, probe = silent(world)
    expected = connection.segment("A")
    assert (probe.seq + 1) % (1 << 32) == parse(expected)["TCP"].seq
    assert probe.ack == parse(expected)["TCP"].ack
    assert str(probe.flags) == "SA"


def test_answers_to_probes_do_not_extend_the_timeout() -> None:
    """The client may have vanished without a word: the backend's answers say nothing of it."""
    world = make_world()
    connection, _ = silent(world)
    connection.reply("A")
    world.advance(TIMES.established - SILENCE - 0.1)
    assert connection.state == "ESTABLISHED"
    assert probes(world) == [], "one probe for each silence"
    world.advance(0.1)
    assert world.flows() == []


@pytest.mark.parametrize("sign", [">A", ">PA", "<PA"])
def test_a_sign_of_life_starts_over(sign: str) -> None:
    world = make_world()
    connection, _ = silent(world)
    connection.reply("A")
    world.advance(TIMES.established / 2)
    (connection.send if sign[0] == ">" else connection.reply)(
        sign[1:], b"x" if "P" in sign else b""
    )
    world.advance(SILENCE - 0.1)
    assert probes(world) == []
    world.advance(0.1)
    assert len(probes(world)) == 1
    world.advance(TIMES.established - SILENCE - 0.1)
    assert connection.state == "ESTABLISHED"
    world.advance(0.1)
    assert world.flows() == []


@pytest.mark.parametrize("who", ["client", "backend"])
def test_an_end_that_is_gone_ends_the_flow(who: str) -> None:
    world = make_world()
    connection, _ = silent(world)
    if who == "client":
        connection.reply("A")
        connection.send("R")
    else:
        connection.reply("R")
    assert connection.state == "CLOSED"
    world.advance(TIMES.closed)
    assert world.flows() == []


def test_probes_are_limited_and_none_is_forgotten() -> None:
    world = make_world(capacity=3 * AT_ONCE)
    connections = [world.connect(client(number)) for number in range(2 * AT_ONCE + 1)]
    connections.pop().send("R")
    counts = []
    world.advance(SILENCE)
    for _ in range(4):
        counts.append(len(probes(world)))
        connections.pop().send("R")
        world.advance(0.1)
    assert counts[0] == AT_ONCE
    assert AT_ONCE - 4 <= sum(counts[1:]) <= AT_ONCE
