"""core/path/terminate.py: flows that an operator ends."""

import pytest

from featherlb.core.path.export import read_flows
from featherlb.model import Hook, Timeouts
from featherlb.model.reason import Reason
from tests.builders import tcp
from tests.world import BACKENDS, CLIENT, VIP, World, client, service

POSTROUTING = Hook.POSTROUTING


def consistent() -> World:
    """Connections that it doesn't know are joined, whichever side speaks first."""
    return World(service(*BACKENDS, scheduler="maglev"), adopt_until=1060.0)


def end_all(world: World, reset: bool) -> int:
    """End all flows; how many packets are sent because of it."""
    for number, key, _ in read_flows(world.balancer.views.copy_records(1, 1000, world.now)):
        assert world.balancer.termination.terminate(number, key, reset, world.now)
        assert not world.balancer.termination.terminate(number, key, reset, world.now)
    return len(world.balancer.outbox.take())


@pytest.mark.parametrize("reset", [True, False])
def test_a_terminated_connection_is_not_adopted(reset: bool) -> None:
    world = consistent()
    connection = world.connect()
    assert end_all(world, reset) == 2 * reset
    assert world.flows() == []
    sent = connection.lose("PA", b"under way")
    assert (sent.reason, len(sent.answers)) == (Reason.NO_FLOW, 1)
    assert world.handle(tcp(connection.server, CLIENT), POSTROUTING).reason is Reason.NOT_OURS
    # Another client's connection isn't meant, nor is a new one of this client's.
    assert world.handle(tcp(client(1), VIP, ack=7)).reason is Reason.FORWARD
    again = world.connect()
    world.advance(world.now + Timeouts().established)
    assert again.lose("A").reason is Reason.FORWARD


def test_the_memory_of_ended_connections_ends() -> None:
    world = consistent()
    connection = world.connect()
    end_all(world, reset=True)
    world.advance(61)
    assert connection.send("A").reason is Reason.FORWARD
