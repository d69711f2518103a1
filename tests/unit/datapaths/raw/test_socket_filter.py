"""Socket filters, run by the kernel: on a socket pair, which anybody may filter."""

import random
import socket
import struct
from array import array
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from featherlb.datapaths.raw.interest import ROOM, Interest
from featherlb.datapaths.raw.socket_filter import build
from featherlb.model import Datapath, Endpoint, Service
from featherlb.model.shard import Shard
from featherlb.net.addresses import words_of
from tests.builders import ip, ipv6_extensions, tcp, udp
from tests.world import ONE, VIP, service

SO_ATTACH_FILTER = 26
CLIENT, STRANGER = "198.51.100.7:40000", "203.0.113.5:443"
CLIENT6, VIP6, ONE6 = "[2001:db8:1::7]:40000", "[2001:db8::10]:80", "[fd00::1]:8080"
SIMILAR6 = "[fd00:1::1]:8080"
"""Ends in the same word as the backend's address."""
WORKERS, SEED = 3, 0xCAFE


def raw(*services: Service) -> list[Service]:
    return [replace(one, datapath=Datapath.RAW) for one in services]


def interest(*services: Service, worker: int = 0, workers: int = 1) -> Interest:
    return Interest(Shard(worker, workers, SEED)).of(raw(*services), frozenset())


def lets_in(wanted: Interest, packet: bytes) -> bool:
    """Whether a socket with the filter gets the frame that carries the packet."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        code = array("B", build(6 if packet[0] >> 4 == 6 else 4, wanted))
        program = struct.pack("HxxxxxxP", len(code) // 8, code.buffer_info()[0])
        receiver.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
        frame = bytes(14) + packet
        sender.send(frame)
        try:
            got = receiver.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        assert got == frame
        return True


def who_gets(packet: bytes, *services: Service) -> list[int]:
    """Which of several workers."""
    return [
        worker
        for worker in range(WORKERS)
        if lets_in(interest(*services, worker=worker, workers=WORKERS), packet)
    ]


BOTH = (service(ONE), service(ONE6, vips=VIP6, name="six"))
FULL = (
    service(ONE, nat="full"),
    service(ONE6, vips=VIP6, name="six", nat="full", sources=["fd00::fe"]),
)


@pytest.mark.parametrize(
    ("packet", "wanted"),
    [
        (tcp(CLIENT, VIP, "S"), True),
        (tcp(ONE, CLIENT), True),
        (udp(CLIENT, VIP), True),
        (tcp(CLIENT, STRANGER), False),
        (tcp(STRANGER, CLIENT), False),
        (tcp(CLIENT6, VIP6, "S"), True),
        (tcp(ONE6, CLIENT6), True),
        (tcp(SIMILAR6, CLIENT6), False),
        (tcp(CLIENT6, SIMILAR6), False),
    ],
)
def test_only_packets_of_services_pass_the_filter(packet: bytes, wanted: bool) -> None:
    assert lets_in(interest(*BOTH), packet) is wanted


def test_nothing_without_a_service_of_frames() -> None:
    assert not lets_in(interest().of([service(ONE)], frozenset()), tcp(CLIENT, VIP, "S"))


@pytest.mark.parametrize(("kind", "wanted"), [(3, True), (11, True), (12, True), (8, False)])
def test_icmp_errors_of_anybody_get_in(kind: int, wanted: bool) -> None:
    packet = bytes(ip(STRANGER, CLIENT, proto=1)) + bytes([kind]) + bytes(40)
    assert lets_in(interest(*BOTH), packet) is wanted
    assert len(who_gets(packet, *BOTH)) == (WORKERS if wanted else 0)


@pytest.mark.parametrize(("kind", "wanted"), [(1, True), (4, True), (128, False), (135, False)])
def test_icmpv6_errors_too(kind: int, wanted: bool) -> None:
    packet = bytes(ip(STRANGER6, CLIENT6, nh=58, plen=41)) + bytes([kind]) + bytes(40)
    assert lets_in(interest(*BOTH), packet) is wanted


STRANGER6 = "[2001:db8:9::9]:1"


def test_a_wildcard_stands_for_the_hosts_addresses() -> None:
    everywhere = raw(service(ONE, vips="0.0.0.0:80"))
    wanted = interest().of(everywhere, frozenset({ip_address("192.0.2.10")}))
    assert lets_in(wanted, tcp(CLIENT, VIP, "S"))
    assert not lets_in(wanted, tcp(CLIENT, STRANGER, "S"))


def test_earlier_interests_stay() -> None:
    """Flows of removed backends continue."""
    later = interest(service(ONE)).extended([], frozenset())
    assert lets_in(later, tcp(ONE, CLIENT))


def many(count: int, six: bool) -> list[str]:
    """Addresses without ports."""
    draw = random.Random(count)
    bits = 128 if six else 32
    numbers = {draw.getrandbits(bits - 4) | 2 << bits - 4 for _ in range(count)}
    return [f"[{IPv6Address(one)}]" if six else str(IPv4Address(one)) for one in sorted(numbers)]


@pytest.mark.parametrize("six", [False, True], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("count", [1, 8, 9, 100, ROOM - 1])
def test_each_of_many_addresses_is_found(count: int, six: bool) -> None:
    addresses = many(count, six)
    client, vip = (CLIENT6, VIP6) if six else (CLIENT, VIP)
    backends = interest(service(*(f"{one}:80" for one in addresses), vips=vip))
    vips = interest(service(client, vips=[f"{one}:80" for one in addresses]))
    for one in {*addresses[:9], *addresses[-9:], *addresses[:: max(1, count // 20)]}:
        assert lets_in(backends, tcp(f"{one}:80", client))
        assert lets_in(vips, tcp(client, f"{one}:80", "S"))
    for one in many(20, six):
        if one not in addresses:
            assert not lets_in(backends, tcp(f"{one}:80", client))


def test_more_backends_than_there_is_room_for() -> None:
    """Whatever comes is looked at."""
    backends = service(*(f"{one}:80" for one in many(ROOM, six=False)))
    assert not interest(backends).fits_whole
    assert lets_in(interest(backends), tcp(STRANGER, CLIENT))
    (owner,) = who_gets(tcp(CLIENT, VIP, "S"), backends)
    assert who_gets(tcp(STRANGER, CLIENT), backends) == [owner]


def test_more_vips_than_there_is_room_for() -> None:
    """Those from before are kept, if the new ones with them, or alone, are too many."""
    before = interest(service(ONE))
    vips = [f"{one}:80" for one in many(ROOM + 1, six=False)]
    assert not interest(service(ONE, vips=vips)).fits
    assert before.extended(raw(service(ONE, vips=vips)), frozenset()) == before
    assert before.extended(raw(service(ONE, vips=vips[1:])), frozenset()).fits


def test_the_ports_of_vips_need_room_where_ports_say_whose_a_packet_is() -> None:
    ranges = [f"10.9.0.{i}:{1024 + i * 250}-{1024 + i * 250 + 249}" for i in range(1, 10)]
    at_source = service(ONE, nat="full", vips=ranges)
    assert interest(at_source).fits
    assert not interest(at_source, workers=WORKERS).fits
    assert (
        len(who_gets(tcp(CLIENT, "10.9.0.1:1300", "S"), service(ONE, nat="full", vips=ranges[:7])))
        == 1
    )


def clients(six: bool) -> list[str]:
    draw = random.Random(1)
    return [
        f"[2001:db8:{i}::{i * 7}]:{draw.randrange(1024, 65536)}"
        if six
        else f"198.51.{i}.{i * 3 % 250 + 1}:{draw.randrange(1024, 65536)}"
        for i in range(40)
    ]


@pytest.mark.parametrize(
    ("vip", "backend", "six"), [(VIP, ONE, False), (VIP6, ONE6, True)], ids=["IPv4", "IPv6"]
)
def test_both_directions_meet_the_same_worker(vip: str, backend: str, six: bool) -> None:
    owners = set()
    for client in clients(six):
        (owner,) = who_gets(tcp(client, vip, "S"), *BOTH)
        assert who_gets(tcp(backend, client), *BOTH) == [owner]
        endpoint = Endpoint.parse(client)
        assert Shard(owner, WORKERS, SEED).has(*words_of(endpoint.address), endpoint.port)
        owners.add(owner)
    assert owners == set(range(WORKERS))


@pytest.mark.parametrize(
    ("vip", "backend", "network", "prefixes"),
    [
        (VIP, ONE, "198.51.{}.{}:40000", (24, 0)),
        (VIP6, ONE6, "[2001:db8:{:x}:1{:x}::7]:40000", (0, 48)),
        (VIP6, ONE6, "[2001:db8:{:x}:1{:x}::7]:40000", (8, 52)),
    ],
)
def test_a_network_meets_one_worker(
    vip: str, backend: str, network: str, prefixes: tuple[int, int]
) -> None:
    everyone = set()
    for number in range(8):
        owners = set()
        for host in (1, 77, 254):
            client = network.format(number, host)
            endpoint = Endpoint.parse(client)
            for worker in range(WORKERS):
                shard = Shard(worker, WORKERS, SEED, *prefixes)
                wanted = Interest(shard).of(raw(*BOTH), frozenset())
                has = shard.has(*words_of(endpoint.address), endpoint.port)
                assert lets_in(wanted, tcp(client, vip, "S")) == has
                assert lets_in(wanted, tcp(backend, client)) == has
                owners |= {worker} if has else set()
        assert len(owners) == 1
        everyone |= owners
    assert everyone == set(range(WORKERS))


@pytest.mark.parametrize(
    ("source", "backend"), [("10.1.0.254", ONE), ("[fd00::fe]", ONE6)], ids=["IPv4", "IPv6"]
)
def test_in_full_mode_the_port_says_whose_reply_it_is(source: str, backend: str) -> None:
    for worker in range(WORKERS):
        for ports in Shard(worker, WORKERS, SEED).all_ports:
            for port in (ports.start, ports.stop - 1):
                assert who_gets(tcp(backend, f"{source}:{port}"), *FULL) == [worker]


def test_a_vip_at_the_source_address_is_no_reply() -> None:
    """Its port can't be given to a packet (PortAllocator.exclude)."""
    at_source = service(ONE, nat="full", vips="10.1.0.254:8000")
    client, backend = clients(False)[0], ONE
    (owner,) = who_gets(tcp(client, "10.1.0.254:8000", "S"), at_source)
    assert who_gets(tcp(client, "10.1.0.254:8000", "A"), at_source) == [owner]
    assert len(who_gets(tcp(backend, "10.1.0.254:8000", "S"), at_source)) == 1


def test_first_fragments_have_an_owner_and_later_ones_go_to_all() -> None:
    (owner,) = who_gets(udp(CLIENT, VIP), *BOTH)
    assert who_gets(udp(CLIENT, VIP, header=ip(CLIENT, VIP, flags="MF")), *BOTH) == [owner]
    assert who_gets(udp(CLIENT, VIP, header=ip(CLIENT, VIP, frag=185)), *BOTH) == [0, 1, 2]
    (owner,) = who_gets(udp(CLIENT6, VIP6), *BOTH)
    first = udp(CLIENT6, VIP6, header=ipv6_extensions(CLIENT6, VIP6, "fragment"))
    assert who_gets(first, *BOTH) == [owner]
    later = bytearray(first)
    later[42:44] = (185 << 3).to_bytes(2, "big")
    assert who_gets(bytes(later), *BOTH) == [0, 1, 2]
