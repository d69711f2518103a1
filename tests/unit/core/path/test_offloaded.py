"""core/path/offloaded.py: conntrack's events, from parsed messages."""

from array import array
from dataclasses import replace
from typing import Any

import pytest

from featherlb.core.flows.tcp_state import State
from featherlb.model import Datapath, Hook, PacketInfo, Protocol, Verdict
from featherlb.model.reason import Reason
from featherlb.system.conntrack_messages import Entry
from tests.builders import ip, parse, rebuilt, split, tcp, udp
from tests.ctnetlink import CREATE, DELETE, GET, entry, messages, read
from tests.world import World, service

CLIENT, VIP, ONE = "198.51.100.7:40001", "192.0.2.10:80", "10.1.0.1:8080"
CLIENT6, VIP6, ONE6 = "[2001:db8::7]:40001", "[2001:db8::10]:53", "[2001:db8:1::2]:8053"
NAT, SEEN_REPLY = 1 << 5, 1 << 1
SYN_SENT, ESTABLISHED, FIN_WAIT, CLOSE = 1, 3, 4, 8  # enum tcp_conntrack


def told(
    tcp_state: int,
    status: int = NAT,
    answers: int = 0,
    port: int = 40001,
    one: str = "10.1.0.1",
    seen: str = "198.51.100.7",
) -> Entry:
    """Word of the client's connection to the backend `one`, which sees it come from the address
    `seen` and this port."""
    client, vip = "198.51.100.7", "192.0.2.10"
    counted = {"attrs": [("CTA_COUNTERS_PACKETS", answers), ("CTA_COUNTERS_BYTES", 40 * answers)]}
    return read(
        entry(
            {"source": client, "destination": vip, "ports": (40001, 80), "protocol": 6},
            {"source": one, "destination": seen, "ports": (8080, port), "protocol": 6},
            CTA_STATUS=status,
            CTA_PROTOINFO={
                "attrs": [
                    ("CTA_PROTOINFO_TCP", {"attrs": [("CTA_PROTOINFO_TCP_STATE", tcp_state)]})
                ]
            },
            CTA_COUNTERS_REPLY=counted,
        )
    )


def opening() -> World:
    """A connection of which the backend has got the SYN."""
    world = World(service(ONE, datapath=Datapath.OFFLOAD))
    world.handle(tcp(CLIENT, VIP, "S"))
    messages(world)
    return world


def failures(world: World) -> tuple[int, int, int]:
    """Connections refused, never answered, and those whose client sent the SYN again."""
    (one,) = world.statistics().backends
    return one.refused, one.syn_timeouts, one.syn_retries


def ticks(world: World) -> int:
    return int(world.now * 10)


def end(world: World, entry: Entry) -> None:
    """The kernel removes the entry; a look-up, if there is one, confirms it."""
    world.balancer.offload.ended(entry, ticks(world))
    for request in messages(world):
        if request["header"]["type"] == GET:
            world.balancer.offload.gone(1, ticks(world))


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (told(CLOSE, answers=1), (1, 0, 0)),
        (told(SYN_SENT), (0, 1, 0)),
        (told(CLOSE, NAT | SEEN_REPLY, 3), (0, 0, 0)),
        (told(CLOSE), (0, 0, 0)),  # by a RST of the client's
    ],
    ids=["refused", "ignored", "served", "given up"],
)
def test_the_outcome_of_a_connection_is_known_from_its_end(
    last: Entry, expected: tuple[int, int, int]
) -> None:
    world = opening()
    end(world, last)
    assert failures(world) == expected
    assert world.flows() == []


def test_a_retransmitted_syn_counts_once() -> None:
    world = opening()
    world.advance(1)
    for _ in range(3):
        buffer = bytearray(tcp(CLIENT, VIP, "S"))
        world.balancer.attach(buffer)
        for expected in (Verdict.LOOK_UP, Verdict.OFFLOAD):
            verdict = world.balancer.handle_packet(
                0, len(buffer), Hook.PREROUTING, PacketInfo.NONE, world.now
            )
            assert verdict == expected
            if verdict == Verdict.LOOK_UP:
                assert [one["header"]["type"] for one in messages(world)][-1] == GET
                world.balancer.offload.counters(
                    world.balancer.offload.looked_up, told(SYN_SENT), ticks(world)
                )
        assert failures(world) == (0, 0, 1)
    end(world, told(SYN_SENT))
    assert failures(world) == (0, 1, 1)


def datagram(version: int, hops: int) -> bytes:
    """The client's, with so many hops left."""
    if version == 4:
        return udp(CLIENT, VIP, b"query", header=ip(CLIENT, VIP, ttl=hops))
    return udp(CLIENT6, VIP6, b"query", header=ip(CLIENT6, VIP6, hlim=hops))


def datagrams(version: int, **fields: Any) -> World:
    """A service for them."""
    vip, one = (VIP, ONE) if version == 4 else (VIP6, ONE6)
    return World(service(one, vips=vip, protocol=Protocol.UDP, datapath=Datapath.OFFLOAD, **fields))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("hook", [Hook.PREROUTING, Hook.INPUT, Hook.FORWARD])
def test_a_copy_takes_the_hop_that_the_kernel_does_not_see(version: int, hook: Hook) -> None:
    for hops in (64, 9, 2):
        world = datagrams(version)
        assert world.handle(datagram(version, hops), hook).verdict is Verdict.DROP
        (copy,) = world.balancer.offload.take_reinjected()
        assert rebuilt(copy) == copy == datagram(version, hops - 1)


@pytest.mark.parametrize("version", [4, 6])
def test_a_copy_without_hops_left_is_not_sent(version: int) -> None:
    world = datagrams(version)
    for hops in (1, 0):
        outcome = world.handle(datagram(version, hops), Hook.INPUT)
        assert outcome.reason is Reason.TTL_EXCEEDED
        (error,) = outcome.answers
        vip, _ = split(VIP if version == 4 else VIP6)
        assert (parse(error).src, parse(error).dst) == (vip, parse(datagram(version, 1)).src)
        kind = error[20] if version == 4 else error[40]
        assert kind == (11 if version == 4 else 3)
    assert not world.balancer.offload.take_reinjected()
    assert not messages(world)
    assert not world.flows()


@pytest.mark.parametrize("version", [4, 6])
def test_packets_within_this_host_take_no_hop(version: int) -> None:
    for world, hook in (
        (datagrams(version), Hook.OUTPUT),
        (datagrams(version, local=True), Hook.INPUT),
    ):
        world.handle(datagram(version, 1), hook)
        assert world.balancer.offload.take_reinjected() == [datagram(version, 1)]


def test_a_segment_that_joins_a_connection_takes_the_hop() -> None:
    for hops, copies in ((64, 1), (1, 0)):
        world = World(service(ONE, scheduler="maglev", datapath=Datapath.OFFLOAD))
        segment = tcp(CLIENT, VIP, "A", header=ip(CLIENT, VIP, ttl=hops))
        outcome = world.handle(segment, Hook.INPUT)
        assert outcome.reason is (Reason.FORWARD if copies else Reason.TTL_EXCEEDED)
        found = world.balancer.offload.take_reinjected()
        assert [parse(copy).ttl for copy in found] == [hops - 1] * copies
    # The kernel forwards the SYN, and takes the hop.
    world = World(service(ONE, datapath=Datapath.OFFLOAD))
    syn = tcp(CLIENT, VIP, "S", header=ip(CLIENT, VIP, ttl=1))
    outcome = world.handle(syn)
    assert (outcome.verdict, outcome.packet) == (Verdict.OFFLOAD, syn)


def test_another_datagram_of_a_known_flow_takes_the_hop() -> None:
    """One that came before the kernel knew the flow."""
    world = datagrams(4)
    world.handle(datagram(4, 64), Hook.INPUT)
    (flow,) = (message for message in messages(world) if message["header"]["type"] == CREATE)
    assert flow
    for hops, reason in ((9, Reason.FORWARD), (1, Reason.TTL_EXCEEDED)):
        buffer = bytearray(datagram(4, hops))
        world.balancer.attach(buffer)
        verdicts = [
            world.balancer.handle_packet(0, len(buffer), Hook.INPUT, PacketInfo.NONE, world.now)
            for _ in range(2)
        ]
        assert verdicts == [Verdict.LOOK_UP, Verdict.DROP]
        assert world.statistics().reasons[reason]
    assert [parse(copy).ttl for copy in world.balancer.offload.take_reinjected()] == [63, 8]


def expected(world: World, *packets: bytes) -> list[int]:
    """The kinds of the requests that a batch of packets makes before any of them is handled."""
    buffer = bytearray(b"".join(packets))
    world.balancer.attach(buffer)
    lengths = [len(packet) for packet in packets]
    offsets = [sum(lengths[:i]) for i in range(len(packets))]
    batch = (memoryview(array("q", offsets)), memoryview(array("q", lengths)), len(packets))
    world.balancer.expect_packets(*batch)
    world.balancer.look_up_ahead(*batch)
    requests = messages(world)
    return [request["header"]["type"] for request in requests]


def test_only_packets_that_may_reopen_a_flow_are_looked_up_ahead() -> None:
    world = opening()
    other = tcp("198.51.100.7:40002", VIP, "S")
    reply = tcp(ONE, CLIENT, "SA")
    syn = tcp(CLIENT, VIP, "S")
    assert expected(world, other, tcp(CLIENT, VIP, "A"), reply, udp(CLIENT, VIP)) == []
    assert expected(world, other, syn, b"\x45", reply) == [GET]
    # A connection that closes goes on by no packet but one that opens it anew.
    world.balancer.offload.counters(1, told(CLOSE), ticks(world))
    assert expected(world, syn) == []
    assert world.handle(syn).verdict == Verdict.OFFLOAD


def test_a_connection_that_closes_is_no_load_as_soon_as_conntrack_says_so() -> None:
    world = opening()
    (before,) = world.statistics().backends
    world.balancer.offload.changed(told(CLOSE), world.now)
    (after,) = world.statistics().backends
    assert (before.active, after.active) == (1, 0)
    assert [flow.state for flow in world.flows()] == [State.CLOSED]
    # Neither packets nor bytes come with it.
    assert (after.packets_reply, after.bytes_reply) == (0, 0)


def test_an_entry_with_another_port_is_the_flows_where_the_client_kept_its_own() -> None:
    world = opening()
    end(world, told(CLOSE, NAT | SEEN_REPLY, 3, port=39141))
    assert world.flows() == []


def test_the_port_that_conntrack_picked_is_used() -> None:
    world = opening()
    (flow,) = world.flows()
    record = 1
    for strange in (
        told(ESTABLISHED, port=39141, one="10.1.0.2"),
        told(ESTABLISHED, port=39141, seen="10.1.0.254"),
    ):
        world.balancer.offload.counters(record, strange, ticks(world))
        assert world.flows()[0].source == flow.source
    world.balancer.offload.counters(record, told(ESTABLISHED, port=39141), ticks(world))
    (turned,) = world.flows()
    assert (turned.client, turned.source) == (flow.client, replace(flow.source, port=39141))
    assert world.handle(tcp(ONE, "198.51.100.7:39141", "A")).reason is Reason.INVALID
    assert world.handle(tcp(ONE, CLIENT, "A")).reason is not Reason.INVALID
    # Where it goes over to another datapath, the backend goes on seeing that port.
    world.apply(service(ONE))
    messages(world)
    assert world.handle(tcp(CLIENT, VIP, "A")).source == "198.51.100.7:39141"
    world.apply(service(ONE, datapath=Datapath.OFFLOAD))
    (entered,) = messages(world)
    assert entered.get_attr("CTA_NAT_SRC") is not None


def test_with_allocated_ports_an_entry_with_another_port_is_another_flow() -> None:
    world = World(service(ONE, nat="full", datapath=Datapath.OFFLOAD))
    world.handle(tcp(CLIENT, VIP, "S"))
    (flow,) = world.flows()
    end(world, told(CLOSE, NAT | SEEN_REPLY, 3, port=flow.source.port ^ 1))
    assert len(world.flows()) == 1
    end(world, told(CLOSE, NAT | SEEN_REPLY, 3, port=flow.source.port))
    assert world.flows() == []


def test_a_super_packet_does_not_begin_again() -> None:
    """Where it is to be cut, nothing says."""
    offered = service(ONE6, vips=VIP6, protocol=Protocol.UDP, datapath=Datapath.OFFLOAD)
    world = World(offered)
    world.handle(udp(CLIENT6, VIP6, bytes(5000)), info=PacketInfo.GSO)
    assert world.balancer.offload.take_reinjected() == []


def test_the_packet_of_a_flow_that_conntrack_refuses_counts_as_dropped() -> None:
    offered = service(ONE6, vips=VIP6, protocol=Protocol.UDP, datapath=Datapath.OFFLOAD)
    world = World(offered)
    world.handle(udp(CLIENT6, VIP6, b"question"))
    messages(world)
    world.balancer.offload.refused(1)
    statistics = world.statistics()
    assert (statistics.translated, statistics.dropped) == (0, 1)
    assert statistics.reasons[Reason.NO_ENTRY] == 1
    assert world.balancer.offload.take_reinjected() == []
    assert world.flows() == []
    # Nothing is to be deleted, and the next one is entered.
    assert messages(world) == []
    world.handle(udp(CLIENT6, VIP6, b"question"))
    assert [message["header"]["type"] for message in messages(world)] == [CREATE]


def test_a_truncated_datagram_opens_its_flow_but_is_not_copied() -> None:
    offered = service(ONE6, vips=VIP6, protocol=Protocol.UDP, datapath=Datapath.OFFLOAD)
    world = World(offered)
    whole = udp(CLIENT6, VIP6, bytes(5000))
    for _ in range(2):
        cut = world.handle(whole, info=PacketInfo.TRUNCATED | PacketInfo.CHECKSUM_NOT_READY)
        assert (cut.verdict, cut.reason) == (Verdict.DROP, Reason.TRUNCATED)
        assert world.balancer.offload.take_reinjected() == []
        assert [message["header"]["type"] for message in messages(world)] == [CREATE]
        # If conntrack takes none, it was dropped already.
        world.balancer.offload.refused(1)
        assert world.flows() == []
        world.check()
    world.handle(whole, info=PacketInfo.TRUNCATED)
    assert [flow.state for flow in world.flows()] == [State.UDP_ONE_WAY]


def port_of(create: Any) -> int:
    """The source port that an insert gives to a flow."""
    port: int = (
        create.get_attr("CTA_NAT_SRC").get_attr("CTA_NAT_PROTO").get_attr("CTA_PROTONAT_PORT_MIN")
    )
    return port


def test_an_opening_flow_may_get_another_port() -> None:
    ports = range(2000, 2003)
    world = World(service(ONE, nat="full", datapath=Datapath.OFFLOAD), source_ports=ports)
    world.handle(tcp(CLIENT, VIP, "S"))
    seen = []
    (create,) = messages(world)
    # The first clash may be with what has gone meanwhile: the same port is tried once more.
    world.balancer.offload.exists(1, 0, None)
    delete, again = messages(world)
    assert (delete["header"]["type"], port_of(again)) == (DELETE, port_of(create))
    for attempts in range(1, 1 + len(ports)):
        (flow,) = world.flows()
        seen.append(flow.source.port)
        assert port_of(again) == flow.source.port
        world.balancer.offload.exists(1, attempts, None)
        (again,) = messages(world)
        world.check()
    # What was given back is the last to be given again.
    assert sorted(seen) == list(ports)
    (flow,) = world.flows()
    world.balancer.offload.counters(1, told(ESTABLISHED, port=flow.source.port), ticks(world))
    assert world.handle(tcp(ONE, str(flow.source), "A")).reason is Reason.INVALID
    # All of them are free again when it has ended.
    end(world, told(CLOSE, NAT | SEEN_REPLY, 3, port=flow.source.port))
    for number in range(len(ports)):
        assert (
            world.handle(tcp(f"198.51.100.7:{41000 + number}", VIP, "S")).reason is Reason.FORWARD
        )
    messages(world)
    # There is no other port: the flow is refused.
    world.balancer.offload.exists(1, 1, None)
    assert world.balancer.offload.take_refused() == [1]
    assert messages(world) == []
    assert len(world.flows()) == len(ports) - 1


@pytest.mark.parametrize("state", [ESTABLISHED, CLOSE])
def test_a_flow_that_is_open_gets_no_other_port(state: int) -> None:
    world = World(service(ONE, nat="full", datapath=Datapath.OFFLOAD))
    world.handle(tcp(CLIENT, VIP, "S"))
    (flow,) = world.flows()
    messages(world)
    world.balancer.offload.counters(1, told(state, port=flow.source.port), ticks(world))
    world.balancer.offload.exists(1, 1, None)
    assert world.balancer.offload.take_refused() == [1]
    assert messages(world) == []


def test_a_client_that_is_seen_keeps_its_port() -> None:
    world = opening()
    world.balancer.offload.exists(1, 1, None)
    assert world.balancer.offload.take_refused() == [1]
    assert messages(world) == []


@pytest.mark.parametrize("hook", [Hook.INPUT, Hook.FORWARD])
def test_out_of_state_packets_are_treated_alike_before_and_after_routing(hook: Hook) -> None:
    world = World(service(ONE, datapath=Datapath.OFFLOAD, scheduler="maglev"))
    joining = world.handle(tcp(CLIENT, VIP, "A"), hook)
    assert (joining.verdict, joining.reason) == (Verdict.DROP, Reason.FORWARD)
    assert len(world.balancer.offload.take_reinjected()) == 1
    (flow,) = world.flows()
    assert str(flow.backend) == ONE
    world = World(service(ONE, datapath=Datapath.OFFLOAD))
    refused = world.handle(tcp(CLIENT, VIP, "A"), hook)
    assert (refused.verdict, refused.reason) == (Verdict.DROP, Reason.NO_FLOW)
    assert len(refused.answers) == 1
    wrong = world.handle(tcp(CLIENT, VIP, "SF"), hook)
    assert (wrong.verdict, wrong.reason) == (Verdict.DROP, Reason.BAD_FLAGS)
    # From a backend, without a flow.
    assert world.handle(tcp(ONE, "198.51.100.9:1234", "A"), hook).verdict is Verdict.PASS


@pytest.mark.parametrize("hook", [Hook.INPUT, Hook.POSTROUTING])
def test_packets_after_the_routing_decision_open_no_flow_with_nfqueue(hook: Hook) -> None:
    world = World(service(ONE))
    for flags in ("S", "A"):
        assert world.handle(tcp(CLIENT, VIP, flags), hook).verdict is Verdict.PASS
