"""system/conntrack_messages.py: messages compared with pyroute2's."""

import struct
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from featherlb.core.flows.tcp_state import State
from featherlb.core.path.export import read_flows
from featherlb.model import Datapath, Protocol, Verdict
from featherlb.model.reason import Reason
from featherlb.net.addresses import words_of
from featherlb.system.conntrack_messages import Entry, Requests
from tests.builders import ip, tcp, udp
from tests.ctnetlink import CREATE, DELETE, GET, entry, messages, read
from tests.world import World, service

CLIENT, VIP, ONE = "198.51.100.7:40001", "192.0.2.10:80", "10.1.0.1:8080"
CLIENT6, VIP6, ONE6 = "[2001:db8::7]:40001", "[2001:db8::10]:53", "[2001:db8:1::2]:8053"


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


def test_a_syn_is_accepted_once_its_entry_exists() -> None:
    world = World(service(ONE, datapath=Datapath.OFFLOAD))
    outcome = world.handle(tcp(CLIENT, VIP, "S"))
    assert (outcome.verdict, outcome.reason) == (Verdict.OFFLOAD, Reason.FORWARD)
    (message,) = messages(world)
    header = message["header"]
    assert (header["type"], header["flags"]) == (CREATE, 0x601)  # REQUEST, CREATE, EXCL
    assert ends(message, "ORIG") == ("198.51.100.7", 40001, "192.0.2.10", 80, 6)
    assert ends(message, "REPLY") == ("192.0.2.10", 80, "198.51.100.7", 40001, 6)
    assert translation(message, "DST") == ("10.1.0.1", 8080)
    assert translation(message, "SRC") is None
    assert message.get_attr("CTA_TIMEOUT") == 30


def test_full_nat_sets_the_source_as_well() -> None:
    world = World(service(ONE, nat="full", datapath=Datapath.OFFLOAD))
    world.handle(tcp(CLIENT, VIP, "S"))
    (message,) = messages(world)
    (flow,) = world.flows()
    assert translation(message, "DST") == ("10.1.0.1", 8080)
    assert translation(message, "SRC") == (str(flow.source.address), flow.source.port)


def test_a_datagram_is_sent_again_once_its_entry_exists() -> None:
    offered = service(ONE6, vips=VIP6, protocol=Protocol.UDP, datapath=Datapath.OFFLOAD)
    world = World(offered)
    outcome = world.handle(udp(CLIENT6, VIP6, b"question"))
    assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.FORWARD)
    hop_less = udp(CLIENT6, VIP6, b"question", header=ip(CLIENT6, VIP6, hlim=63))
    assert world.balancer.offload.take_reinjected() == [hop_less]
    (message,) = messages(world)
    assert ends(message, "ORIG") == ("2001:db8::7", 40001, "2001:db8::10", 53, 17)
    assert ends(message, "REPLY") == ("2001:db8::10", 53, "2001:db8::7", 40001, 17)
    assert translation(message, "DST") == ("2001:db8:1::2", 8053)


def test_a_flow_that_ends_here_has_its_entry_deleted() -> None:
    world = World(service(ONE, datapath=Datapath.OFFLOAD))
    world.handle(tcp(CLIENT, VIP, "S"))
    messages(world)
    ((_, key, _),) = read_flows(world.balancer.views.copy_records(1, 1, world.now))
    assert world.balancer.termination.terminate(1, key, False, world.now)
    (message,) = messages(world)
    assert message["header"]["type"] == DELETE
    assert ends(message, "ORIG") == ("198.51.100.7", 40001, "192.0.2.10", 80, 6)


@pytest.mark.parametrize(
    ("client", "backend", "version", "protocol"),
    [("198.51.100.7", "10.1.0.1", 4, 6), ("2001:db8::7", "2001:db8:1::2", 6, 17)],
)
def test_any_tuple_is_looked_up(client: str, backend: str, version: int, protocol: int) -> None:
    requests = Requests()
    words = (*words_of(ip_address(client)), *words_of(ip_address(backend)))
    requests.get_tuple(version, protocol, *words, 40001 << 16 | 8080)
    message = nfct_msg(bytes(requests.take()))
    message.decode()
    assert message["header"]["type"] == GET
    assert ends(message, "ORIG") == (client, 40001, backend, 8080, protocol)


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
    assert (found.version, found.protocol, found.answered, found.translated) == (4, 6, True, True)
    assert found.state == State.ESTABLISHED
    assert (found.src_low, found.dst_low) == (0xFFFF0A000065, 0xFFFF0A00000A)
    assert (found.ports, found.reply_ports) == (40000 << 16 | 80, 8080 << 16 | 5000)
    assert (found.reply_src_low, found.reply_dst_low) == (0xFFFF0A000102, 0xFFFF0A000101)
    assert (found.packets, found.bytes) == (3, 1 << 33)
    assert (found.reply_packets, found.reply_bytes) == (2, 5)


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
    assert (found.version, found.protocol, found.state) == (6, 17, State.UDP_ONE_WAY)
    assert (found.src_high, found.src_low) == (0x20010DB800000000, 0x65)
    assert (found.reply_src_high, found.reply_src_low) == (0x20010DB800010000, 2)


def test_an_error_is_read() -> None:
    data = struct.pack("=IHHIIi", 20, 2, 0, 7, 0, -17) + bytes(16)
    found = Entry()
    found.attach(bytearray(data))
    assert found.read(0, 20) == 20
    assert (found.kind, found.sequence, found.error) == (2, 7, 17)


@pytest.mark.parametrize("length", [0, 3, 15])
def test_parsing_ends_at_an_invalid_message(length: int) -> None:
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
