"""Frames: rewritten at once in both directions, routed as a router does."""

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP, defragment, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, defragment6, fragment6

from featherlb.core.flows.memory import anonymous
from featherlb.core.flows.next_hops import NextHops
from featherlb.core.path.export import read_flows
from featherlb.model import (
    Datapath,
    Hook,
    Link,
    NextHop,
    PacketInfo,
    Protocol,
    Service,
    Topology,
    Verdict,
)
from featherlb.model.reason import Reason
from tests.builders import (
    ip,
    parse,
    pseudo_sum,
    readdressed,
    rebuilt,
    split,
    tcp,
    udp,
    with_checksum,
)
from tests.world import CLIENT, ONE, TWO, VIP, Outcome, World, endpoints, service

WIRE = Hook.WIRE
FRONT = Link(3, "front", bytes.fromhex("02000000ff01"), 1500)
BACK = Link(7, "back", bytes.fromhex("02000000ff02"), 1400)
HOST, ROUTER, SERVER = 0x020000000101, 0x020000000102, 0x020000000201
CLIENT6, VIP6, ONE6 = "[2001:db8:1::7]:40000", "[2001:db8::10]:80", "[fd00::1]:8080"
UNFINISHED = PacketInfo.CHECKSUM_NOT_READY | PacketInfo.COMPLETED_LATER

both_modes = pytest.mark.parametrize("nat", ["dnat", "full"])
both_families = pytest.mark.parametrize(
    ("client", "vip", "server", "source"),
    [(CLIENT, VIP, ONE, "10.1.0.254"), (CLIENT6, VIP6, ONE6, "fd00::fe")],
    ids=["IPv4", "IPv6"],
)


def mac(number: int) -> bytes:
    return number.to_bytes(6, "big")


def topology(
    *servers: str,
    known: bool = True,
    routes: Sequence[tuple[str, NextHop]] = (),
    links: tuple[Link, ...] = (FRONT, BACK),
    by_policy: frozenset[int] = frozenset(),
) -> Topology:
    hop = NextHop(BACK.index, mac(SERVER) if known else None)
    return Topology(
        links=links,
        next_hops={ip_address(server.rpartition(":")[0].strip("[]")): hop for server in servers},
        routes=tuple((ip_network(network), hop) for network, hop in routes),
        by_policy=by_policy,
    )


class Wire(World):
    """A world whose packets come as frames."""

    def __init__(self, *services: Service, routed: Topology | None = None) -> None:
        super().__init__(*(replace(one, datapath=Datapath.RAW) for one in services))
        self.balancer.set_topology(routed or topology(ONE, TWO, ONE6))

    def frame(
        self,
        packet: bytes,
        link: Link = FRONT,
        sender: int = HOST,
        info: PacketInfo = PacketInfo.NONE,
        gso_size: int = 0,
    ) -> Outcome:
        next_hops = self.balancer.next_hops
        next_hops.ingress = next_hops.link_ids[link.index] << 48 | sender
        next_hops.gso_size = gso_size
        return self.handle(packet, WIRE, info | (PacketInfo.GSO if gso_size else PacketInfo.NONE))

    @property
    def egress(self) -> tuple[int, int]:
        """The interface index and the MAC address of the next hop of the last frame."""
        egress = self.balancer.next_hops.egress
        by_id = {number: index for index, number in self.balancer.next_hops.link_ids.items()}
        return by_id[egress >> 48], egress & 0xFFFFFFFFFFFF


def unreachable(by: str, about: bytes) -> bytes:
    """A router's error about a packet."""
    return bytes(IP(src=by, dst=parse(about).src) / ICMP(type=3, code=1) / about)


def one_hop_less(packet: bytes) -> bytes:
    """What a router makes of the packet."""
    layers = parse(packet)
    if layers.version == 4:
        layers.ttl -= 1
        del layers.chksum
    else:
        layers.hlim -= 1
    return bytes(layers)


@both_modes
@both_families
def test_both_directions_are_rewritten_on_the_wire(
    nat: str, client: str, vip: str, server: str, source: str
) -> None:
    world = Wire(service(server, vips=vip, nat=nat, sources=[source]))
    sent = tcp(client, vip, "S")
    forward = world.frame(sent)
    assert forward.verdict is Verdict.REWRITTEN
    assert forward.destination == server
    assert forward.packet == one_hop_less(readdressed(sent, forward.source, server))
    assert (forward.source == client) is (nat == "dnat")
    assert world.egress == (BACK.index, SERVER)
    answer = tcp(server, forward.source, "SA")
    reply = world.frame(answer, BACK, SERVER)
    assert reply.packet == one_hop_less(readdressed(answer, vip, client))
    assert world.egress == (FRONT.index, HOST)


@both_families
@pytest.mark.parametrize("protocol", Protocol)
def test_unfinished_checksums_stay_unfinished(
    protocol: Protocol, client: str, vip: str, server: str, source: str
) -> None:
    """The kernel completes them when the frame leaves: the field is the pseudo-header's sum."""
    world = Wire(service(server, vips=vip, protocol=protocol))
    payload = b"x" * 700
    if protocol is Protocol.TCP:
        whole = tcp(client, vip, "S", payload=payload)
    else:
        whole = udp(client, vip, payload)
    sent = with_checksum(whole, pseudo_sum(whole))
    for gso_size in (0, 300):
        outcome = world.frame(sent, info=UNFINISHED, gso_size=gso_size)
        expected = one_hop_less(readdressed(whole, client, server))
        assert outcome.packet == with_checksum(expected, pseudo_sum(expected))


def test_packets_of_no_raw_service_pass() -> None:
    world = Wire(service(ONE))
    assert world.frame(tcp(CLIENT, "192.0.2.10:81", "S")).reason is Reason.NOT_OURS
    assert world.frame(bytes(ip(CLIENT, VIP, proto=47))).reason is Reason.NOT_OURS
    queued = World(service(ONE))
    assert queued.handle(tcp(CLIENT, VIP, "S"), WIRE).reason is Reason.NOT_OURS
    queued.connect()
    assert queued.handle(tcp(CLIENT, VIP), WIRE).reason is Reason.NOT_OURS


@pytest.mark.parametrize("hook", set(Hook) - {WIRE, Hook.OUTPUT})
def test_the_kernels_copies_are_dropped(hook: Hook) -> None:
    world = Wire(service(ONE))
    world.frame(tcp(CLIENT, VIP, "S"))
    assert world.handle(tcp(CLIENT, VIP), hook).reason is Reason.COPY
    assert world.handle(tcp(ONE, CLIENT), hook).reason is Reason.COPY


@both_modes
def test_a_client_on_this_host_keeps_its_address(nat: str) -> None:
    """It is served at the hooks; the frames of its replies are only looked at."""
    world = Wire(service(ONE, nat=nat))
    opened = world.handle(tcp(CLIENT, VIP, "S"), Hook.OUTPUT)
    assert (opened.source, opened.destination) == (CLIENT, ONE)
    answer = tcp(ONE, CLIENT, "SA")
    assert world.frame(answer, BACK, SERVER).reason is Reason.NOT_OURS
    assert endpoints(world.handle(answer, Hook.INPUT).packet) == (VIP, CLIENT)


@both_modes
def test_flows_stay_when_the_datapath_changes(nat: str) -> None:
    queued = service(ONE, nat=nat)
    wired = replace(queued, datapath=Datapath.RAW)
    world = Wire(queued)
    opened = world.frame(tcp(CLIENT, VIP, "S"))
    local = world.handle(tcp("192.0.2.99:40000", VIP, "S"), Hook.OUTPUT)
    world.apply(queued)
    answer = tcp(ONE, opened.source, "SA")
    hook = Hook.PREROUTING if nat == "full" else Hook.POSTROUTING
    assert world.frame(answer, BACK, SERVER).reason is Reason.NOT_OURS
    assert endpoints(world.handle(answer, hook).packet) == (VIP, CLIENT)
    world.apply(wired)
    assert world.handle(tcp(CLIENT, VIP)).reason is Reason.COPY
    assert world.frame(tcp(CLIENT, VIP)).reason is Reason.FORWARD
    assert world.frame(answer, BACK, SERVER).reason is Reason.REPLY
    # A client on this host is served at the hooks, whichever datapath it is.
    assert world.handle(tcp(ONE, local.source, "SA"), Hook.INPUT).reason is Reason.REPLY


def test_the_kernels_copy_opens_no_flow_that_its_frame_opens_after_it() -> None:
    """While the rules are still those of the queue; the flow would never be on the wire."""
    world = Wire(service(ONE))
    opening = tcp(CLIENT, VIP, "S")
    assert world.handle(opening).reason is Reason.COPY
    assert world.frame(opening).reason is Reason.FORWARD
    assert world.handle(opening).reason is Reason.COPY


def test_a_wildcard_vip_is_the_hosts_own_addresses() -> None:
    routed = replace(topology(ONE), addresses=frozenset({ip_address("192.0.2.10")}))
    world = Wire(service(ONE, vips="0.0.0.0:80"), routed=routed)
    assert world.frame(tcp(CLIENT, VIP, "S")).reason is Reason.FORWARD
    assert world.frame(tcp(CLIENT, "192.0.2.11:80", "S")).reason is Reason.NOT_OURS


@pytest.mark.parametrize("source", ["127.0.0.1:1", "0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1"])
def test_martians_open_no_flow(source: str) -> None:
    world = Wire(service(ONE))
    outcome = world.frame(tcp(source, VIP, "S"))
    assert (outcome.reason, outcome.answers, world.flows()) == (Reason.MARTIAN, (), [])


def test_addresses_of_this_host_open_no_flow() -> None:
    routed = replace(topology(ONE), addresses=frozenset({ip_address("198.51.100.1")}))
    world = Wire(service(ONE), routed=routed)
    assert world.frame(tcp("198.51.100.1:1", VIP, "S")).reason is Reason.MARTIAN
    assert world.frame(tcp("198.51.100.2:1", VIP, "S")).reason is Reason.FORWARD


@both_modes
@pytest.mark.parametrize("kind", ["RST", "ICMP"])
def test_a_refusal_from_the_clients_link_is_none(nat: str, kind: str) -> None:
    """A client knows the number of its SYN, and could refuse it in the backend's name."""
    world = Wire(service(ONE, TWO, nat=nat))
    opened = world.frame(tcp(CLIENT, VIP, "S", seq=7))
    source, server = endpoints(opened.packet)
    refusal = tcp(server, source, "RA", ack=8)
    if kind == "ICMP":
        refusal = unreachable(server.partition(":")[0], opened.packet)
    world.frame(refusal, FRONT)
    assert world.states() == ["SYN_SENT"]
    assert {one.refused for one in world.statistics().backends} == {0}
    # From where the backend is, it moves the flow to the other one.
    assert world.frame(refusal, BACK, SERVER).reason is Reason.REDISPATCHED
    assert sum(one.refused for one in world.statistics().backends) == 1


# Hops used up


@pytest.mark.parametrize("known", [False, True], ids=["new", "known"])
@both_families
def test_the_last_hop(known: bool, client: str, vip: str, server: str, source: str) -> None:
    world = Wire(service(server, vips=vip))
    if known:
        world.frame(tcp(client, vip, "S"))
    field = "hlim" if ":" in source else "ttl"
    sent = tcp(client, vip, "S", header=ip(client, vip, **{field: 1}))
    outcome = world.frame(sent)
    assert outcome.reason is Reason.TTL_EXCEEDED
    (error,) = map(parse, outcome.answers)
    assert (error.src, error.dst) == (parse(sent).dst, parse(sent).src)
    assert bytes(error.payload)[:2] == (b"\x03\0" if ":" in source else b"\x0b\0")
    assert sent in bytes(error)
    assert len(world.flows()) == known


def test_the_last_hop_of_a_reply() -> None:
    world = Wire(service(ONE))
    world.frame(tcp(CLIENT, VIP, "S"))
    sent = tcp(ONE, CLIENT, "SA", header=ip(ONE, CLIENT, ttl=1))
    outcome = world.frame(sent, BACK, SERVER)
    (error,) = map(parse, outcome.answers)
    assert (outcome.reason, error.src, error.dst) == (
        Reason.TTL_EXCEEDED,
        VIP.split(":")[0],
        ONE.split(":")[0],
    )


# Lengths


@pytest.mark.parametrize(
    ("gso_size", "payload"), [(0, 1361), (1361, 5000)], ids=["packet", "segments"]
)
@both_families
def test_too_long_for_the_next_link(
    gso_size: int, payload: int, client: str, vip: str, server: str, source: str
) -> None:
    """The backend's link takes 1400 bytes."""
    world = Wire(service(server, vips=vip))
    six = ":" in source
    flags = {} if six else {"flags": "DF"}
    world.frame(tcp(client, vip, "S"))
    header = 60 if six else 40
    fits = min(payload, 1400 - header) if not gso_size else payload
    sent = tcp(client, vip, payload=bytes(fits), header=ip(client, vip, **flags))
    assert world.frame(sent, gso_size=1400 - header if gso_size else 0).reason is Reason.FORWARD
    sent = tcp(client, vip, payload=bytes(payload), header=ip(client, vip, **flags))
    outcome = world.frame(sent, gso_size=gso_size)
    assert outcome.reason is Reason.TOO_BIG
    (error,) = map(parse, outcome.answers)
    assert (error.src, error.dst) == (parse(sent).dst, parse(sent).src)
    message = bytes(error.payload)
    assert message[:2] == (b"\x02\0" if six else b"\x03\x04")
    assert int.from_bytes(message[4:8], "big") == 1400
    assert message[8:] == sent[: len(message) - 8]


def test_packets_that_may_be_fragmented_are_forwarded() -> None:
    world = Wire(service(ONE, protocol=Protocol.UDP))
    assert world.frame(udp(CLIENT, VIP, bytes(1450))).reason is Reason.FORWARD


# Where to


def test_replies_follow_the_client() -> None:
    world = Wire(service(ONE))
    world.frame(tcp(CLIENT, VIP, "S"))
    world.frame(tcp(CLIENT, VIP), sender=ROUTER)
    world.frame(tcp(ONE, CLIENT), BACK, SERVER)
    assert world.egress == (FRONT.index, ROUTER)
    world.frame(tcp(CLIENT, VIP), BACK, HOST)
    world.frame(tcp(ONE, CLIENT), BACK, SERVER)
    assert world.egress == (BACK.index, HOST)


def test_a_route_through_another_link_decides() -> None:
    back = NextHop(BACK.index, mac(ROUTER))
    routed = topology(ONE, routes=[("198.51.100.0/24", back), ("0.0.0.0/0", NextHop(3, mac(1)))])
    world = Wire(service(ONE), routed=routed)
    for _ in range(2):
        world.frame(tcp(CLIENT, VIP, "S"))
        world.frame(tcp(ONE, CLIENT, "SA"), BACK, SERVER)
        assert world.egress == (BACK.index, ROUTER)
    # The way back from elsewhere is the default route, and that is where it came from.
    world.frame(tcp("203.0.113.9:7", VIP, "S"))
    world.frame(tcp(ONE, "203.0.113.9:7", "SA"), BACK, SERVER)
    assert world.egress == (FRONT.index, HOST)


UPLINK = Link(9, "up2", bytes.fromhex("02000000ff03"), 1500)


@pytest.mark.parametrize(
    ("client", "vip", "server", "version", "network"),
    [(CLIENT, VIP, ONE, 4, "198.51.100.0/24"), (CLIENT6, VIP6, ONE6, 6, "2001:db8:1::/64")],
    ids=["IPv4", "IPv6"],
)
def test_with_routing_rules_replies_leave_by_the_clients_link(
    client: str, vip: str, server: str, version: int, network: str
) -> None:
    routes = [(network, NextHop(FRONT.index, mac(ROUTER)))]
    links = (FRONT, BACK, UPLINK)
    world = Wire(service(server, vips=vip))

    def replies_to() -> tuple[int, int]:
        world.frame(tcp(server, client, "A"), BACK, SERVER)
        return world.egress

    def rule(*versions: int, present: tuple[Link, ...] = links) -> None:
        world.balancer.set_topology(
            topology(server, routes=routes, links=present, by_policy=frozenset(versions))
        )

    rule(version)
    world.frame(tcp(client, vip, "S"), UPLINK)
    assert replies_to() == (UPLINK.index, HOST)
    rule(10 - version)
    assert replies_to() == (FRONT.index, ROUTER)
    rule(version)
    # Where its packets come in is known again with the next one.
    world.frame(tcp(client, vip, "A"), UPLINK)
    assert replies_to() == (UPLINK.index, HOST)
    rule(version, present=(FRONT, BACK))
    assert replies_to() == (FRONT.index, ROUTER)
    world.frame(tcp(client, vip, "A"), FRONT, SERVER)
    assert replies_to() == (FRONT.index, SERVER)
    rule(version)
    world.frame(tcp(client, vip, "A"), UPLINK)
    assert replies_to() == (UPLINK.index, HOST)


def test_flows_follow_the_routes_when_they_change() -> None:
    world = Wire(service(ONE))
    world.frame(tcp(CLIENT, VIP, "S"))
    back = NextHop(BACK.index, mac(ROUTER))
    for _ in range(300):  # more often than there are numbers for it
        world.balancer.set_topology(topology(ONE, routes=[("0.0.0.0/0", back)]))
        world.frame(tcp(ONE, CLIENT, "SA"), BACK, SERVER)
        assert world.egress == (BACK.index, ROUTER)
        world.balancer.set_topology(topology(ONE))
        world.frame(tcp(CLIENT, VIP))
        world.frame(tcp(ONE, CLIENT, "SA"), BACK, SERVER)
        assert world.egress == (FRONT.index, HOST)


def test_a_route_without_an_address_does_not_count() -> None:
    routed = topology(ONE, routes=[("0.0.0.0/0", NextHop(BACK.index, None))])
    world = Wire(service(ONE), routed=routed)
    world.frame(tcp(CLIENT, VIP, "S"))
    world.frame(tcp(ONE, CLIENT, "SA"), BACK, SERVER)
    assert world.egress == (FRONT.index, HOST)


def test_the_longest_prefix_counts() -> None:
    """Of many routes, and also where its address isn't known."""
    back = NextHop(BACK.index, mac(ROUTER))
    many = [(f"10.{i >> 8}.{i & 255}.0/24", back) for i in range(5000)]
    on_link = ("198.51.100.0/28", NextHop(BACK.index, None))
    rest = [("198.51.100.0/24", back), ("0.0.0.0/0", NextHop(FRONT.index, mac(ROUTER)))]
    world = Wire(service(ONE), routed=topology(ONE, routes=[on_link, *many, *rest]))
    for client, wanted in (
        ("198.51.100.7:5", (FRONT.index, HOST)),
        ("198.51.100.99:5", (BACK.index, ROUTER)),
        ("10.19.135.1:5", (BACK.index, ROUTER)),
        ("10.19.136.1:5", (FRONT.index, HOST)),
    ):
        world.frame(tcp(client, VIP, "S"))
        world.frame(tcp(ONE, client, "SA"), BACK, SERVER)
        assert world.egress == wanted, client


def test_a_backend_that_moves() -> None:
    world = Wire(service(ONE), routed=topology(ONE, known=False))
    world.frame(tcp(CLIENT, VIP, "S"))
    assert world.egress == (BACK.index, 0)
    world.balancer.set_topology(topology(ONE))
    world.frame(tcp(CLIENT, VIP))
    assert world.egress == (BACK.index, SERVER)
    # What has left the topology has its last flows.
    world.balancer.set_topology(topology())
    world.frame(tcp(CLIENT, VIP))
    assert world.egress == (BACK.index, SERVER)


def test_a_new_member_has_no_other_ones_hop() -> None:
    world = Wire(service(ONE), routed=topology(ONE))
    world.apply(replace(service(TWO), datapath=Datapath.RAW))
    world.frame(tcp(CLIENT, VIP, "S"))
    assert world.balancer.next_hops.egress == 0


def test_a_restored_connection_follows_the_routes() -> None:
    web = replace(service(ONE, scheduler="maglev"), datapath=Datapath.RAW)
    for routes in ((), [("0.0.0.0/0", NextHop(FRONT.index, mac(ROUTER)))]):
        world = World(web, adopt_until=2000.0)
        world.balancer.set_topology(topology(ONE, routes=routes))
        outcome = Wire.frame(world, tcp(ONE, CLIENT), BACK, SERVER)  # type: ignore[arg-type]
        assert outcome.reason is (Reason.REPLY if routes else Reason.NO_NEXT_HOP)


def test_links_that_come_and_go() -> None:
    next_hops = NextHops(anonymous(1), 1)
    for index in range(1, 1000):
        next_hops.set_topology(Topology(links=(FRONT, replace(BACK, index=1000 + index))))
        assert 0 < next_hops.link_ids[FRONT.index] != next_hops.link_ids[1000 + index] > 0
        assert max(next_hops.link_ids.values()) < 256


@pytest.mark.parametrize("about_reply", [0, 1])
@both_modes
def test_icmp_errors_take_the_next_hop_of_their_flow(nat: str, about_reply: int) -> None:
    world = Wire(service(ONE, nat=nat))
    opened = world.frame(tcp(CLIENT, VIP, "S"))
    if about_reply:
        about = world.frame(tcp(ONE, opened.source, "SA"), BACK, SERVER).packet
    else:
        about = opened.packet
    error = unreachable("203.0.113.1", about)
    outcome = world.frame(error, FRONT if about_reply else BACK, ROUTER)
    assert outcome.reason is Reason.ICMP_ERROR
    assert parse(outcome.packet).ttl == 63
    assert world.egress == ((BACK.index, SERVER) if about_reply else (FRONT.index, HOST))
    assert world.handle(error, Hook.PREROUTING).reason is Reason.COPY
    assert world.handle(error, Hook.OUTPUT).reason is Reason.NOT_OURS


# Fragments


def fragments(packet: bytes, size: int) -> list[bytes]:
    """The packet as its sender's host cuts it."""
    layers = parse(packet)
    if layers.version == 6:
        header = IPv6(src=layers.src, dst=layers.dst) / IPv6ExtHdrFragment(id=7)
        pieces = fragment6(header / layers.payload, size)
    else:
        pieces = fragment(layers, size)
    return [bytes(type(layers)(bytes(piece))) for piece in pieces]


@both_modes
@both_families
def test_fragments_follow_the_first(
    nat: str, client: str, vip: str, server: str, source: str
) -> None:
    world = Wire(service(server, vips=vip, nat=nat, protocol=Protocol.UDP, sources=[source]))
    data = bytes(range(250)) * 16
    for _ in range(2):
        arrived = []
        for piece in fragments(udp(client, vip, data, header=ip(client, vip)), 1200):
            outcome = world.frame(piece)
            assert outcome.reason is Reason.FORWARD
            assert world.egress == (BACK.index, SERVER)
            arrived.append(parse(outcome.packet))
        together = defragment6(arrived) if ":" in source else defragment(arrived)[0]
        seen = bytes(together)
        given = source if nat == "full" else split(client)[0]
        assert (parse(seen).src, parse(seen).dst) == (given, split(server)[0])
        datagram = parse(seen)[UDP]
        assert bytes(datagram.payload) == data
        assert bytes(parse(rebuilt(seen))[UDP]) == bytes(datagram)
    replies = fragments(udp(server, f"[{given}]:{datagram.sport}", data), 1200)
    reasons = {world.frame(piece, BACK, SERVER).reason for piece in replies}
    assert reasons == {Reason.REPLY}


def test_fragments_without_a_flow_and_those_before_the_first() -> None:
    world = Wire(service(ONE, protocol=Protocol.UDP))
    first, *later = fragments(udp(CLIENT, VIP, bytes(4000), header=ip(CLIENT, VIP, id=9)), 1200)
    assert {world.frame(piece).reason for piece in later} == {Reason.FRAGMENT}
    assert world.frame(first).reason is Reason.FORWARD
    assert world.frame(later[0]).reason is Reason.FORWARD
    world.advance(6.0)
    assert world.frame(later[1]).reason is Reason.FRAGMENT
    other = udp(CLIENT, "192.0.2.10:81", bytes(4000), header=ip(CLIENT, VIP, id=8))
    assert [world.frame(piece).reason for piece in fragments(other, 1200)[:2]] == [
        Reason.NOT_OURS,
        Reason.FRAGMENT,
    ]


def test_a_fragment_of_a_flow_that_has_ended() -> None:
    world = Wire(service(ONE, protocol=Protocol.UDP))
    first, later, *_ = fragments(udp(CLIENT, VIP, bytes(4000), header=ip(CLIENT, VIP, id=9)), 1200)
    world.frame(first)
    for record, key, _ in read_flows(world.balancer.views.copy_records(1, 9, world.now)):
        world.balancer.termination.terminate(record, key, False, world.now)
    assert world.frame(later).reason is Reason.FRAGMENT


@given(
    packet=st.binary(min_size=20, max_size=120).map(lambda b: bytes([0x45 | b[0] & 1]) + b[1:])
    | st.binary(min_size=40, max_size=120).map(lambda b: b"\x60" + b[1:6] + b"\x2c" + b[7:]),
    changes=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3),
)
def test_no_fragment_raises(packet: bytes, changes: list[tuple[int, int]]) -> None:
    changed = bytearray(packet)
    for at, byte in changes:
        if at < len(changed):
            changed[at] = byte
    HOSTILE.frame(bytes(changed))


HOSTILE = Wire(service(ONE), service(ONE6, vips=VIP6, name="six", protocol=Protocol.UDP))
