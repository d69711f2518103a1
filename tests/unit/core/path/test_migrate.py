"""core/path/migrate.py: flows whose service changes to the datapath offload, and back."""

from dataclasses import replace

import pytest

from featherlb.model import Datapath, Hook, Protocol, Service, Verdict
from featherlb.model.reason import Reason
from tests.builders import tcp, udp
from tests.ctnetlink import CREATE, DELETE, messages
from tests.world import CLIENT, ONE, VIP, World, endpoints, service

QUEUED, CARRIED = service(ONE), service(ONE, datapath=Datapath.OFFLOAD)


def test_an_established_connection_migrates_both_ways() -> None:
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


def test_a_half_closed_connection_migrates_both_ways() -> None:
    world = World(QUEUED)
    connection = world.connect()
    connection.send("FA")
    world.apply(CARRIED)
    (entered,) = messages(world)
    state = entered.get_attr("CTA_PROTOINFO").get_attr("CTA_PROTOINFO_TCP")
    assert state.get_attr("CTA_PROTOINFO_TCP_STATE") == 4  # TCP_CONNTRACK_FIN_WAIT
    world.apply(QUEUED)
    connection.reply("PA", b"y")
    connection.reply("FA")
    assert connection.state == "CLOSING"


def test_a_connection_that_has_closed_ends_instead() -> None:
    world = World(QUEUED)
    connection = world.connect()
    connection.send("FA")
    connection.reply("FA")
    world.apply(CARRIED)
    assert (messages(world), world.flows()) == ([], [])
    assert world.handle(tcp(CLIENT, VIP, "S")).verdict is Verdict.OFFLOAD


@pytest.mark.parametrize(("before", "after"), [(QUEUED, CARRIED), (CARRIED, QUEUED)])
def test_until_the_rules_are_those_of_the_new_datapath_no_flow_is_opened(
    before: Service, after: Service
) -> None:
    """Its client sends it again; a RST would tell it that nobody is there."""
    world = World(before)
    world.balancer.apply([after], rules_applied=False)
    for flags in ("S", "PA"):
        assert world.handle(tcp(CLIENT, VIP, flags)).reason is Reason.INVALID
    assert (world.flows(), world.balancer.outbox.take()) == ([], [])
    world.balancer.apply([after])
    assert world.handle(tcp(CLIENT, VIP, "S")).reason is Reason.FORWARD


def test_until_then_a_datagram_of_a_known_flow_does_not_reopen_it() -> None:
    """The rules of before would lead its copy here once more."""
    queued, carried = (replace(one, protocol=Protocol.UDP) for one in (QUEUED, CARRIED))
    world = World(queued)
    assert world.handle(udp(CLIENT, VIP)).reason is Reason.FORWARD
    world.balancer.apply([carried], rules_applied=False)
    assert world.handle(udp(CLIENT, VIP)).reason is Reason.INVALID
    assert world.balancer.offload.take_reinjected() == []


def test_a_flow_that_counts_responses_migrates_both_ways() -> None:
    """Conntrack carries it as any other, and nobody counts its responses any more."""
    queued, offloaded = (replace(one, protocol=Protocol.UDP) for one in (QUEUED, CARRIED))
    world = World(replace(queued, responses=2))
    sent = world.handle(udp(CLIENT, VIP))
    world.apply(offloaded)
    (entered,) = messages(world)
    assert entered["header"]["type"] == CREATE
    assert world.balancer.flows.is_offloaded(1)
    world.apply(queued)
    (removed,) = messages(world)
    assert removed["header"]["type"] == DELETE
    source, backend = endpoints(sent.packet)
    for _ in range(4):
        assert world.handle(udp(backend, source), Hook.POSTROUTING).reason is Reason.REPLY


def test_between_two_that_conntrack_has_no_part_in_flows_are_opened_at_once() -> None:
    world = World(QUEUED)
    world.balancer.apply([replace(QUEUED, scheduler="maglev")], rules_applied=False)
    assert world.handle(tcp(CLIENT, VIP, "S")).reason is Reason.FORWARD
