"""core/handover.py: flows whose service goes over to conntrack, and back."""

from featherlb.core.stats import Reason
from featherlb.model import Datapath, Verdict
from tests.builders import tcp
from tests.ctnetlink import CREATE, DELETE, messages
from tests.world import CLIENT, ONE, VIP, World, service

QUEUED, CARRIED = service(ONE), service(ONE, datapath=Datapath.OFFLOAD)


def test_an_open_connection_goes_over_and_comes_back() -> None:
    world = World(QUEUED)
    connection = world.connect()
    world.apply(CARRIED)
    (entered,) = messages(world)
    assert entered["header"]["type"] == CREATE
    assert entered.get_attr("CTA_PROTOINFO") is not None  # it is open
    assert world.handle(connection.segment("A")).reason is Reason.INVALID
    world.apply(QUEUED)
    (removed,) = messages(world)
    assert removed["header"]["type"] == DELETE
    connection.send("PA", b"x")
    connection.reply("PA", b"y")
    assert connection.state == "ESTABLISHED"


def test_a_connection_that_closes_ends_instead() -> None:
    world = World(QUEUED)
    world.connect().send("FA")
    world.apply(CARRIED)
    assert (messages(world), world.flows()) == ([], [])
    assert world.handle(tcp(CLIENT, VIP, "S")).verdict is Verdict.CARRY
