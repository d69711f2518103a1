"""Who may open flows, as the core decides it on every datapath; tests/netns/test_admission.py has
the kernel's part."""

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from featherlb.model import (
    Admission,
    Datapath,
    Endpoint,
    Hook,
    MaxFlows,
    MaxNew,
    NetworkSet,
    Protocol,
    Refusal,
    Service,
    Verdict,
)
from featherlb.model.reason import Reason
from tests.builders import parse, tcp, udp
from tests.world import ONE, TWO, VIP, Connection, Outcome, World, client, service

GOOD, BAD, OTHER = "10.1.2.3:40000", "10.1.9.9:40000", "192.168.0.1:40000"


def listed(*texts: str) -> NetworkSet:
    return NetworkSet.of(map(ip_network, texts))


def limited(name: str = "web", protocol: Protocol = Protocol.TCP, **fields: object) -> Service:
    """A service with these conditions for clients."""
    admission = Admission(**fields)  # type: ignore[arg-type]
    return replace(service(ONE, TWO, name=name, protocol=protocol), admission=admission)


def syn(world: World, source: str, **options: object) -> Outcome:
    return world.handle(tcp(source, VIP, "S"), **options)  # type: ignore[arg-type]


def reasons(world: World, *sources: str) -> list[str]:
    return [syn(world, source).reason.label for source in sources]


def refused(world: World) -> dict[str, int]:
    (counts,) = world.statistics().refused.values()
    return {reason.label: count for reason, count in counts.items() if count}


LISTS: dict[str, Any] = {
    "allow": listed("10.0.0.0/8"),
    "deny": listed("10.1.9.0/24", "10.2.0.0/16"),
}


def test_only_clients_that_are_allowed_and_not_denied_open_flows() -> None:
    world = World(limited(**LISTS))
    assert reasons(world, GOOD, BAD, OTHER) == ["forward", "not-allowed", "not-allowed"]
    assert refused(world) == {"not-allowed": 2}
    assert len(world.flows()) == 1


@pytest.mark.parametrize("datapath", Datapath)
def test_the_lists_hold_on_every_datapath(datapath: Datapath) -> None:
    world = World(replace(limited(**LISTS), datapath=datapath))
    hook = Hook.WIRE if datapath.takes_frames else Hook.PREROUTING
    assert syn(world, OTHER, hook=hook).reason is Reason.NOT_ALLOWED
    assert syn(world, GOOD, hook=hook).reason is not Reason.NOT_ALLOWED
    assert syn(world, OTHER, hook=Hook.OUTPUT).reason is Reason.NOT_ALLOWED


def test_ipv6_clients_are_told_apart_as_well() -> None:
    six = replace(
        service("[fd00::2]:80", vips="[fd00::10]:80"),
        admission=Admission(allow=listed("fd00:1::/64", "0.0.0.0/0")),
    )
    world = World(six)
    assert world.handle(tcp("[fd00:1::7]:4000", "[fd00::10]:80", "S")).reason is Reason.FORWARD
    outcome = world.handle(tcp("[fd00:2::7]:4000", "[fd00::10]:80", "S"))
    assert outcome.reason is Reason.NOT_ALLOWED


@pytest.mark.parametrize("protocol", Protocol)
def test_a_refusal_is_told_if_that_is_wanted(protocol: Protocol) -> None:
    world = World(limited(protocol=protocol, deny_action=Refusal.RESET, **LISTS))
    packet = tcp(BAD, VIP, "S") if protocol is Protocol.TCP else udp(BAD, VIP, b"x")
    outcome = world.handle(packet)
    assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.NOT_ALLOWED)
    (answer,) = map(parse, outcome.answers)
    if protocol is Protocol.TCP:
        assert answer["TCP"].flags == "RA"
    else:
        assert (answer["ICMP"].type, answer["ICMP"].code) == (3, 3)


def test_a_flood_is_not_answered_by_a_flood() -> None:
    world = World(limited(deny_action=Refusal.RESET, **LISTS), capacity=4)
    told = sum(len(syn(world, f"10.1.9.9:{port}").answers) for port in range(1, 500))
    assert told == 100
    world.now += 0.1
    assert len(syn(world, BAD).answers) == 1


def test_open_connections_stay_when_their_client_is_denied() -> None:
    """And where the client was forgotten, it can't continue by the door of adoption."""
    open_to_all = replace(limited(), scheduler="maglev")
    world = World(open_to_all)
    connection = world.connect(BAD)
    world.apply(replace(open_to_all, admission=Admission(**LISTS)))
    connection.send("PA", b"more")
    connection.reply("PA", b"answer")
    stray = world.handle(tcp(BAD.replace("40000", "40001"), VIP, "A", seq=5, ack=7))
    assert stray.reason is Reason.NOT_ALLOWED
    world.apply(open_to_all)
    assert reasons(world, "10.1.9.9:40002") == ["forward"]


def test_a_client_has_no_more_flows_than_it_may() -> None:
    world = World(limited(max_flows=(MaxFlows(2, 24), MaxFlows(3, 0))))
    first = world.connect("10.0.0.1:4000")
    world.connect("10.0.0.2:4000")
    assert reasons(world, "10.0.0.3:4000") == ["max-flows"]
    world.connect("10.0.1.1:4000")
    # The whole service has as many as it may.
    assert reasons(world, "10.0.2.1:4000") == ["max-flows"]
    # A retransmission, or another packet of an open flow, opens none.
    first.send("PA", b"more")
    first.send("R")
    assert reasons(world, "10.0.0.3:4000", "10.0.2.1:4000") == ["forward", "max-flows"]
    assert refused(world) == {"max-flows": 3}


def test_flows_that_are_open_already_count_against_a_new_limit() -> None:
    world = World(limited())
    open_ones = [world.connect(f"10.0.0.1:{port}") for port in (1, 2, 3)]
    limit = limited(max_flows=(MaxFlows(3, 32),))
    world.apply(limit)
    assert reasons(world, "10.0.0.1:9", "10.0.0.2:9") == ["max-flows", "forward"]
    open_ones[0].send("R")
    assert reasons(world, "10.0.0.1:9") == ["forward"]
    # A higher one lets more in at once; one that was away in between counts anew.
    world.apply(limited(max_flows=(MaxFlows(4, 32),)))
    assert reasons(world, "10.0.0.1:10", "10.0.0.1:11") == ["forward", "max-flows"]
    world.apply(limited())
    open_ones[1].send("R")
    world.apply(limit)
    assert reasons(world, "10.0.0.1:12") == ["max-flows"]
    open_ones[2].send("R")
    assert reasons(world, "10.0.0.1:12") == ["forward"]


def test_counts_end_with_their_flows_whatever_ends_them() -> None:
    """By expiry, by eviction, with their backend: nothing is left that would keep a client out."""
    world = World(limited(max_flows=(MaxFlows(1000, 32),)), capacity=16)
    for number in range(40):
        syn(world, client(number))
    world.advance(31)
    assert world.flows() == []
    world.apply(limited(max_flows=(MaxFlows(1, 32),)))
    assert reasons(world, *(client(number) for number in range(16))) == ["forward"] * 16
    world.apply(replace(limited(max_flows=(MaxFlows(1, 32),)), backends=()))
    world.advance(31)
    world.apply(limited(max_flows=(MaxFlows(1, 32),)))
    assert reasons(world, *(client(number) for number in range(16))) == ["forward"] * 16


def test_a_client_opens_flows_no_faster_than_it_may() -> None:
    """A burst, then one for each interval; a client that was quiet has its burst again."""
    world = World(limited(max_new=(MaxNew(2.0, 3, 32),)))
    fast = [f"10.0.0.1:{port}" for port in range(1, 30)]
    assert reasons(world, *fast[:4]) == ["forward"] * 3 + ["max-new"]
    assert reasons(world, "10.0.0.2:1") == ["forward"]
    world.now += 0.5
    assert reasons(world, *fast[4:6]) == ["forward", "max-new"]
    world.now += 0.4
    assert reasons(world, fast[6]) == ["max-new"]
    world.now += 0.1
    assert reasons(world, *fast[7:9]) == ["forward", "max-new"]
    world.now += 60
    assert reasons(world, *fast[10:14]) == ["forward"] * 3 + ["max-new"]


def test_a_client_that_is_over_one_limit_takes_nothing_from_another() -> None:
    """Its refused packets must not use up what its network shares."""
    world = World(limited(max_new=(MaxNew(1.0, 1, 32), MaxNew(1.0, 2, 24))), capacity=256)
    assert reasons(world, *(f"10.0.0.1:{port}" for port in range(1, 101))).count("forward") == 1
    assert reasons(world, "10.0.0.2:1", "10.0.0.3:1") == ["forward", "max-new"]


def test_a_rate_counts_each_flow_once() -> None:
    """Not the retransmissions of its SYN, nor the packet that conntrack is asked about, nor the one
    that goes to another backend."""
    world = World(limited(max_new=(MaxNew(1.0, 2, 32),)))
    world.balancer.claims.active = True
    assert reasons(world, GOOD, GOOD, GOOD) == ["forward"] * 3
    connection = Connection(world, "10.1.2.3:40001")
    connection.send("S")
    answer = tcp(connection.server, connection.source, "RA", seq=0, ack=connection.sent)
    (again,) = world.handle(answer, connection.reply_hook).sent_again
    assert world.handle(again, Hook.OUTPUT).reason is Reason.FORWARD
    assert reasons(world, "10.1.2.3:40002") == ["max-new"]


def test_a_segment_of_a_forgotten_connection_is_never_reset_for_its_rate() -> None:
    """Its retransmission comes when there is room for it."""
    service = replace(
        limited(max_new=(MaxNew(1.0, 1, 32, Refusal.RESET),)), scheduler="source-hash"
    )
    world = World(service)
    for port, reason in ((1, Reason.FORWARD), (2, Reason.MAX_NEW)):
        outcome = world.handle(tcp(f"10.0.0.1:{port}", VIP, "A", seq=5, ack=7))
        assert (outcome.reason, outcome.answers) == (reason, ())
    outcome = world.handle(tcp("10.0.0.1:3", VIP, "S"))
    assert (outcome.reason, len(outcome.answers)) == (Reason.MAX_NEW, 1)
    world.now += 1
    assert world.handle(tcp("10.0.0.1:2", VIP, "A", seq=5, ack=7)).reason is Reason.FORWARD


def test_datagrams_that_open_flows_are_limited_and_others_are_not() -> None:
    world = World(limited(protocol=Protocol.UDP, max_new=(MaxNew(1.0, 1, 32),)))
    for _ in range(3):
        assert world.handle(udp(GOOD, VIP, b"x")).reason is Reason.FORWARD
    assert world.handle(udp("10.1.2.3:9", VIP, b"x")).reason is Reason.MAX_NEW


def test_an_explanation_says_which_condition_a_client_does_not_meet() -> None:
    world = World(
        limited(**LISTS, max_flows=(MaxFlows(1, 32),), max_new=(MaxNew(0.5, 2, 0),)),
    )

    def explain(text: str) -> tuple[Reason | None, tuple[str, ...]]:
        pool = world.balancer.views.find_pool(Protocol.TCP, Endpoint.parse(VIP))
        assert pool is not None
        told = world.balancer.views.explain(
            pool, Protocol.TCP, Endpoint.parse(text), Endpoint.parse(VIP), world.now
        )
        return told.refused, told.conditions

    assert explain(GOOD) == (None, ("max_flows: 10.1.2.3 has 0 of 1 flows",))
    assert explain(BAD) == (
        Reason.NOT_ALLOWED,
        ("deny: the client is on the list: new flows are dropped",),
    )
    assert explain(OTHER)[1] == ("allow: the client is not on the list: new flows are dropped",)
    syn(world, GOOD)
    assert explain(GOOD) == (
        Reason.MAX_FLOWS,
        ("max_flows: 10.1.2.3 has 1 of 1 flows: new flows are dropped",),
    )
    syn(world, "10.1.2.4:1")
    assert explain("10.1.2.5:1") == (
        Reason.MAX_NEW,
        ("max_new: the service may open the next flow in 2.00 s: new flows are dropped",),
    )
