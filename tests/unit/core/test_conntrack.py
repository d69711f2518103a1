"""core/conntrack.py: its messages as pyroute2 reads and writes them."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from featherlb.core.conntrack import Entry
from featherlb.core.stats import Reason
from featherlb.core.tcpstate import State
from featherlb.model import Datapath, Hook, PacketInfo, Protocol, Verdict
from tests.builders import tcp, udp
from tests.world import World, service

CLIENT, VIP, ONE = "198.51.100.7:40001", "192.0.2.10:80", "10.1.0.1:8080"
CLIENT6, VIP6, ONE6 = "[2001:db8::7]:40001", "[2001:db8::10]:53", "[2001:db8:1::2]:8053"
CREATE, DELETE = 0x100, 0x102


def messages(world: World) -> list[Any]:
    """The requests that have gathered, as pyroute2 reads them."""
    data = bytes(world.balancer.requests.take())
    found = []
    while data:
        length = int.from_bytes(data[:4], "little")
        message = nfct_msg(data[:length])
        message.decode()
        found.append(message)
        data = data[length:]
    return found


def ends(message: Any, direction: str) -> tuple[str, int, str, int, int]:
    """Source, destination and protocol of a tuple attribute."""
    attribute = message.get_attr(f"CTA_TUPLE_{direction}")
    addresses, ports = attribute.get_attr("CTA_TUPLE_IP"), attribute.get_attr("CTA_TUPLE_PROTO")
    version = "V6" if addresses.get_attr("CTA_IP_V6_SRC") else "V4"
    return (
        addresses.get_attr(f"CTA_IP_{version}_SRC"),
        ports.get_attr("CTA_PROTO_SRC_PORT"),
        addresses.get_attr(f"CTA_IP_{version}_DST"),
        ports.get_attr("CTA_PROTO_DST_PORT"),
        ports.get_attr("CTA_PROTO_NUM"),
    )


def translation(message: Any, name: str) -> tuple[str, int] | None:
    """Address and port of a NAT attribute, which are the only ones of their range."""
    nat = message.get_attr(f"CTA_NAT_{name}")
    if nat is None:
        return None
    version = "V6" if nat.get_attr("CTA_NAT_V6_MINIP") else "V4"
    low, high = (nat.get_attr(f"CTA_NAT_{version}_{end}IP") for end in ("MIN", "MAX"))
    assert low == high
    ports = nat.get_attr("CTA_NAT_PROTO")
    first, last = (ports.get_attr(f"CTA_PROTONAT_PORT_{end}") for end in ("MIN", "MAX"))
    assert first == last
    return low, first


def test_a_syn_is_let_go_on_once_its_connection_is_entered() -> None:
    world = World(service(ONE, datapath=Datapath.OFFLOAD))
    outcome = world.handle(tcp(CLIENT, VIP, "S"))
    assert (outcome.verdict, outcome.reason) == (Verdict.CARRY, Reason.FORWARD)
    (message,) = messages(world)
    header = message["header"]
    assert (header["type"], header["flags"]) == (CREATE, 0x601)  # REQUEST, CREATE, EXCL
    assert ends(message, "ORIG") == ("198.51.100.7", 40001, "192.0.2.10", 80, 6)
    assert ends(message, "REPLY") == ("192.0.2.10", 80, "198.51.100.7", 40001, 6)
    assert translation(message, "DST") == ("10.1.0.1", 8080)
    assert translation(message, "SRC") is None
    assert message.get_attr("CTA_TIMEOUT") == 30


def test_full_nat_gives_the_source_as_well() -> None:
    world = World(service(ONE, nat="full", datapath=Datapath.OFFLOAD))
    world.handle(tcp(CLIENT, VIP, "S"))
    (message,) = messages(world)
    (flow,) = world.flows()
    assert translation(message, "DST") == ("10.1.0.1", 8080)
    assert translation(message, "SRC") == (str(flow.source.address), flow.source.port)


def test_a_datagram_begins_again_once_its_flow_is_entered() -> None:
    offered = service(ONE6, vips=VIP6, protocol=Protocol.UDP, datapath=Datapath.OFFLOAD)
    world = World(offered)
    datagram = udp(CLIENT6, VIP6, b"question")
    outcome = world.handle(datagram)
    assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.FORWARD)
    assert world.balancer.take_resent() == [datagram]
    (message,) = messages(world)
    assert ends(message, "ORIG") == ("2001:db8::7", 40001, "2001:db8::10", 53, 17)
    assert ends(message, "REPLY") == ("2001:db8::10", 53, "2001:db8::7", 40001, 17)
    assert translation(message, "DST") == ("2001:db8:1::2", 8053)


def test_a_flow_that_ends_here_has_its_entry_deleted() -> None:
    world = World(service(ONE, datapath=Datapath.OFFLOAD))
    world.handle(tcp(CLIENT, VIP, "S"))
    world.balancer.requests.take()
    key = world.balancer.copy_records(1, 1, world.now).records[:73]
    assert world.balancer.end_flow(1, key, False, world.now)
    (message,) = messages(world)
    assert message["header"]["type"] == DELETE
    assert ends(message, "ORIG") == ("198.51.100.7", 40001, "192.0.2.10", 80, 6)


def entry(original: dict[str, Any], back: dict[str, Any], **fields: Any) -> bytes:
    """A message about an entry, as pyroute2 writes it."""

    def direction(given: dict[str, Any]) -> dict[str, Any]:
        version = "V6" if ":" in given["source"] else "V4"
        return {
            "attrs": [
                (
                    "CTA_TUPLE_IP",
                    {
                        "attrs": [
                            (f"CTA_IP_{version}_SRC", given["source"]),
                            (f"CTA_IP_{version}_DST", given["destination"]),
                        ]
                    },
                ),
                (
                    "CTA_TUPLE_PROTO",
                    {
                        "attrs": [
                            ("CTA_PROTO_NUM", given["protocol"]),
                            ("CTA_PROTO_SRC_PORT", given["ports"][0]),
                            ("CTA_PROTO_DST_PORT", given["ports"][1]),
                        ]
                    },
                ),
            ]
        }

    message = nfct_msg()
    message["header"]["type"] = CREATE
    message["header"]["sequence_number"] = 7
    message["header"]["pid"] = 99
    message["nfgen_family"] = 10 if ":" in original["source"] else 2
    message["attrs"] = [
        ("CTA_TUPLE_ORIG", direction(original)),
        ("CTA_TUPLE_REPLY", direction(back)),
        *fields.items(),
    ]
    message.encode()
    return bytes(message.data)


def read(data: bytes) -> Entry:
    """The core's reading of one message, in the middle of a buffer."""
    found = Entry()
    found.attach(bytearray(b"\xff" * 8 + data + b"\xff" * 64))
    assert found.read(8, 8 + len(data)) == 8 + (len(data) + 3) // 4 * 4
    return found


def test_an_entry_is_read() -> None:
    counted = {"attrs": [("CTA_COUNTERS_PACKETS", 3), ("CTA_COUNTERS_BYTES", 1 << 33)]}
    state = {"attrs": [("CTA_PROTOINFO_TCP", {"attrs": [("CTA_PROTOINFO_TCP_STATE", 3)]})]}
    found = read(
        entry(
            {
                "source": "10.0.0.101",
                "destination": "10.0.0.10",
                "ports": (40000, 80),
                "protocol": 6,
            },
            {
                "source": "10.0.1.2",
                "destination": "10.0.1.1",
                "ports": (8080, 5000),
                "protocol": 6,
            },
            CTA_STATUS=0x1AE,
            CTA_PROTOINFO=state,
            CTA_COUNTERS_ORIG=counted,
            CTA_COUNTERS_REPLY={"attrs": [("CTA_COUNTERS_PACKETS", 2), ("CTA_COUNTERS_BYTES", 5)]},
        )
    )
    assert (found.kind, found.sequence, found.sender) == (CREATE, 7, 99)
    assert (found.family, found.protocol, found.status, found.tcp_state) == (2, 6, 0x1AE, 3)
    assert (found.src_low, found.dst_low) == (0xFFFF0A000065, 0xFFFF0A00000A)
    assert (found.ports, found.back_ports) == (40000 << 16 | 80, 8080 << 16 | 5000)
    assert (found.back_src_low, found.back_dst_low) == (0xFFFF0A000102, 0xFFFF0A000101)
    assert (found.packets, found.bytes) == (3, 1 << 33)
    assert (found.back_packets, found.back_bytes) == (2, 5)


def test_an_entry_of_ipv6_is_read() -> None:
    found = read(
        entry(
            {
                "source": "2001:db8::65",
                "destination": "2001:db8::a",
                "ports": (40000, 53),
                "protocol": 17,
            },
            {
                "source": "2001:db8:1::2",
                "destination": "2001:db8::65",
                "ports": (53, 40000),
                "protocol": 17,
            },
        )
    )
    assert (found.family, found.protocol, found.tcp_state) == (10, 17, -1)
    assert (found.src_high, found.src_low) == (0x20010DB800000000, 0x65)
    assert (found.back_src_high, found.back_src_low) == (0x20010DB800010000, 2)


def test_an_error_is_read() -> None:
    data = struct.pack("=IHHIIi", 20, 2, 0, 7, 0, -17) + bytes(16)
    found = Entry()
    found.attach(bytearray(data))
    assert found.read(0, 20) == 20
    assert (found.kind, found.sequence, found.error) == (2, 7, 17)


@pytest.mark.parametrize("length", [0, 3, 15])
def test_what_is_no_message_ends_the_reading(length: int) -> None:
    found = Entry()
    found.attach(bytearray(64))
    assert found.read(0, length) == 0
    assert found.read(0, 64) == 0  # says that it has no length


@given(st.binary(min_size=20, max_size=200))
def test_damaged_attributes_are_not_read_beyond_their_end(attributes: bytes) -> None:
    data = struct.pack("=IHHII", 16 + len(attributes), CREATE, 0, 0, 0) + attributes
    found = Entry()
    found.attach(bytearray(data + bytes(-len(data) % 4)))
    assert found.read(0, len(data)) == (len(data) + 3) // 4 * 4


NAT, SEEN_REPLY = 1 << 5, 1 << 1
SYN_SENT, FIN_WAIT, CLOSE = 1, 4, 8  # enum tcp_conntrack


def told(tcp_state: int, status: int = NAT, answers: int = 0, port: int = 40001) -> Entry:
    """Word of the client's connection; `port` is the one that the backend sees."""
    client, vip, one = "198.51.100.7", "192.0.2.10", "10.1.0.1"
    counted = {"attrs": [("CTA_COUNTERS_PACKETS", answers), ("CTA_COUNTERS_BYTES", 40 * answers)]}
    return read(
        entry(
            {"source": client, "destination": vip, "ports": (40001, 80), "protocol": 6},
            {"source": one, "destination": client, "ports": (8080, port), "protocol": 6},
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
    world.balancer.requests.take()
    return world


def failures(world: World) -> tuple[int, int, int]:
    """Connections refused, never answered, and those whose client sent the SYN again."""
    (one,) = world.statistics().backends
    return one.refused, one.syn_timeouts, one.syn_retries


def ticks(world: World) -> int:
    return int(world.now * 10)


def end(world: World, entry: Entry) -> None:
    assert world.balancer.end(entry, True, ticks(world)) == 0


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
def test_how_a_connection_has_begun_is_told_by_its_end(
    last: Entry, expected: tuple[int, int, int]
) -> None:
    world = opening()
    end(world, last)
    assert failures(world) == expected
    assert world.flows() == []


def test_a_syn_that_comes_again_without_an_answer_counts_once() -> None:
    world = opening()
    for _ in range(3):
        buffer = bytearray(tcp(CLIENT, VIP, "S"))
        world.balancer.attach(buffer)
        for expected in (Verdict.ASK, Verdict.CARRY):
            verdict = world.balancer.handle_packet(
                0, len(buffer), Hook.PREROUTING, PacketInfo.NONE, world.now
            )
            assert verdict == expected
            if verdict == Verdict.ASK:
                world.balancer.observe(world.balancer.asked, told(SYN_SENT), ticks(world))
        assert failures(world) == (0, 0, 1)
    end(world, told(SYN_SENT))
    assert failures(world) == (0, 1, 1)


def test_a_connection_that_closes_is_no_load_as_soon_as_conntrack_says_so() -> None:
    world = opening()
    (before,) = world.statistics().backends
    world.balancer.advance(told(FIN_WAIT), ticks(world))
    (after,) = world.statistics().backends
    assert (before.active, after.active) == (1, 0)
    assert [flow.state for flow in world.flows()] == [State.FIN_WAIT]
    # Neither packets nor bytes come with it.
    assert (after.packets_reply, after.bytes_reply) == (0, 0)


def test_an_entry_with_another_port_is_the_flows_where_the_client_kept_its_own() -> None:
    world = opening()
    end(world, told(CLOSE, NAT | SEEN_REPLY, 3, port=39141))
    assert world.flows() == []


def test_an_entry_with_another_port_is_another_flows_where_ports_are_given() -> None:
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
    assert world.balancer.take_resent() == []


def test_the_packet_of_a_flow_that_conntrack_refuses_counts_as_dropped() -> None:
    offered = service(ONE6, vips=VIP6, protocol=Protocol.UDP, datapath=Datapath.OFFLOAD)
    world = World(offered)
    world.handle(udp(CLIENT6, VIP6, b"question"))
    world.balancer.requests.take()
    world.balancer.fail(1)
    statistics = world.statistics()
    assert (statistics.translated, statistics.dropped) == (0, 1)
    assert statistics.reasons[Reason.NO_ENTRY] == 1
    assert world.balancer.take_resent() == []
    assert world.flows() == []
    # Nothing is to be deleted, and the next one is entered.
    assert messages(world) == []
    world.handle(udp(CLIENT6, VIP6, b"question"))
    assert [message["header"]["type"] for message in messages(world)] == [CREATE]
