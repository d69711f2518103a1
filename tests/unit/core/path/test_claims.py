"""core/path/claims.py: no connection gets a tuple that another one has."""

from dataclasses import replace

import pytest

from featherlb.model import Datapath, Endpoint, Hook, Protocol, Service, Verdict
from featherlb.model.reason import Reason
from featherlb.model.shard import WHOLE, Shard
from featherlb.net.addresses import words_of
from tests.builders import tcp, udp
from tests.world import CLIENT, ONE, TWO, VIP, Connection, World, client, service

OTHER_PORTS = 8
"""That are tried, if the client's own has an owner."""
CLIENT6, VIP6, ONE6 = "[2001:db8::7]:40001", "[2001:db8::10]:80", "[2001:db8:1::2]:8080"


def asking(*services: Service, adopt_until: float = 0.0, shard: Shard = WHOLE) -> World:
    """A world whose connection tracking can be asked."""
    world = World(*services, adopt_until=adopt_until, shard=shard)
    world.balancer.claims.active = True
    return world


@pytest.mark.parametrize(("who", "vip", "one"), [(CLIENT, VIP, ONE), (CLIENT6, VIP6, ONE6)])
def test_a_free_tuple_keeps_the_clients_port(who: str, vip: str, one: str) -> None:
    world = asking(service(one, vips=vip))
    connection = world.connect(who, vip)
    assert connection.source == who
    connection.send("PA", b"x")
    connection.lose("S")
    assert world.asked == [(who, one)], "once, and not about packets of the connection"


@pytest.mark.parametrize("port", [40000, 700])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_connection_of_the_clients_own_keeps_its_tuple(port: int, workers: int) -> None:
    """Another port, of the same kind, whose replies meet the same worker."""
    who = client(1, port)
    high, low = words_of(Endpoint.parse(who).address)
    shards = [Shard(number, workers, 0xCAFE) for number in range(workers)]
    (shard,) = (one for one in shards if one.has(high, low, port))
    world = asking(service(ONE, TWO), shard=shard)
    world.tracked = {(who, ONE), (who, TWO)}
    connection = world.connect(who)
    source = Endpoint.parse(connection.source)
    assert connection.server == ONE, "the scheduler's choice stays"
    assert source.address == Endpoint.parse(who).address
    assert source.port != port
    assert (source.port < 1024) == (port < 1024)
    assert shard.has(high, low, source.port)
    connection.send("PA", b"x")
    connection.reply("PA", b"y")
    # A port of the client's that is in use as well is passed over.
    assert world.asked == [(who, ONE), (connection.source, ONE)]


@pytest.mark.parametrize("one_packet", [False, True])
def test_datagrams_of_the_clients_own_keep_their_tuple(one_packet: bool) -> None:
    world = asking(replace(service(ONE, protocol=Protocol.UDP), one_packet=one_packet))
    world.tracked = {(CLIENT, ONE)}
    sources = set()
    for _ in range(2):
        question = world.handle(udp(CLIENT, VIP, b"?"))
        sources.add(question.source)
        assert question.destination == ONE
        reply = world.handle(udp(ONE, question.source, b"!"), Hook.POSTROUTING)
        assert (reply.source, reply.destination) == (VIP, CLIENT)
        assert world.handle(udp(ONE, CLIENT, b"!"), Hook.POSTROUTING).reason is Reason.NOT_OURS
    assert CLIENT not in sources
    if not one_packet:
        assert world.asked == [(CLIENT, ONE), (*sources, ONE)], "once for a flow"


def test_the_search_for_a_port_ends() -> None:
    world = asking(service(ONE))

    class Everything(set[tuple[str, str]]):
        def __contains__(self, item: object) -> bool:
            return True

    world.tracked = Everything()
    outcome = Connection(world).lose("S")
    assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.TUPLE_IN_USE)
    assert len(world.asked) == 1 + OTHER_PORTS
    assert world.flows() == []
    world.tracked = set()
    assert world.connect().source == CLIENT


@pytest.mark.parametrize(
    ("wanted", "packet"),
    [
        (service(ONE, nat="full"), tcp(CLIENT, VIP, "S")),
        (service(ONE, datapath=Datapath.OFFLOAD), tcp(CLIENT, VIP, "S")),
    ],
    ids=["full", "offload"],
)
def test_others_are_not_asked_about(wanted: Service, packet: bytes) -> None:
    """SNAT ports are featherlb's own, and the kernel resolves clashes itself."""
    world = asking(wanted)
    assert world.handle(packet).reason is Reason.FORWARD
    assert world.asked == []


def test_a_segment_of_a_connection_of_the_clients_own_is_not_adopted() -> None:
    """Neither by a reply nor by a client's segment, which would need the tuple."""
    for tracked in (False, True):
        world = asking(replace(service(ONE), scheduler="maglev"), adopt_until=2000.0)
        if tracked:
            world.tracked = {(CLIENT, ONE)}
        connection = Connection(world)
        connection.server, connection.source = ONE, CLIENT
        outcome = world.handle(tcp(ONE, CLIENT, "A"), connection.reply_hook)
        assert outcome.reason is (Reason.NOT_OURS if tracked else Reason.REPLY)
        assert world.asked == [(CLIENT, ONE)]
        assert len(world.flows()) == (not tracked)
        outcome = connection.lose("A")
        assert outcome.reason is (Reason.TUPLE_IN_USE if tracked else Reason.FORWARD)
