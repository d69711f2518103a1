"""core/flows/members.py: numbers of pool members, and their reuse."""

from featherlb.model import Timeouts
from tests.world import ONE, World, client, service

TIMES = Timeouts(closed=10)


def test_numbers_of_removed_backends_are_reused() -> None:
    """And never while a flow still points to one."""
    world = World(service(ONE), timeouts=TIMES)
    old = world.connect()
    for number in range(2, 40):
        world.apply(service(f"10.1.0.{number}:8080"))
        short = world.connect(client(number))
        assert short.server == f"10.1.0.{number}:8080"
        assert [one.packets_forward for one in world.statistics().backends] == [2]
        short.send("R")
        world.advance(TIMES.closed)
        old.send("PA", b"x")
        assert old.server == ONE
    assert len(world.flows()) == 1
