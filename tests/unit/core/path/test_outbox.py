"""core/path/outbox.py: which packets are answered, and rate limits."""

from dataclasses import replace

import pytest

from featherlb.model import Protocol, Verdict
from featherlb.model.reason import Reason
from tests.builders import tcp, udp
from tests.world import VIP, World, client, service

VIP6 = "[2001:db8::10]:80"


def test_refusals_are_answered_until_the_queue_is_full_and_counted_all() -> None:
    world = World(service())
    for number in range(600):
        packet = tcp(client(number), VIP, "S")
        buffer = bytearray(packet)
        world.balancer.attach(buffer)
        verdict = world.balancer.handle_packet(0, len(packet), 0, 0, world.now)
        assert verdict == Verdict.DROP
    assert world.statistics().reasons[Reason.NO_BACKEND] == 600
    assert len(world.balancer.outbox.take()) == 512
    assert world.balancer.outbox.take() == []


@pytest.mark.parametrize(
    "source", ["0.0.0.0:5", "224.0.0.1:5", "255.255.255.255:5", "[ff02::1]:5", "[::]:5"]
)
def test_no_answer_to_a_source_that_is_not_unicast(source: str) -> None:
    """RFC 1122 section 3.2.2."""
    vip = VIP6 if "[" in source else VIP
    world = World(
        service(vips=vip), replace(service(vips=vip, protocol=Protocol.UDP), name="datagrams")
    )
    for packet in (udp(source, vip), tcp(source, vip, "S")):
        outcome = world.handle(packet)
        assert (outcome.reason, outcome.answers) == (Reason.MARTIAN, ())


def test_errors_are_limited_in_rate() -> None:
    world = World(service(protocol=Protocol.UDP))

    def ask(who: str) -> tuple[bytes, ...]:
        return world.handle(udp(who, VIP, b"?")).answers

    assert sum(len(ask(client(number))) for number in range(150)) == 100
    world.advance(0.1)
    assert ask(client(0))
