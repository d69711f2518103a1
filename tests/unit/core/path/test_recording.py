"""core/path/recording.py: which packets are recorded, and how many."""

from ipaddress import ip_network

import pytest

from featherlb.core.path.recording import (
    BACKENDS,
    CLIENTS,
    MAX_RECORDS,
    Recorded,
    Wanted,
    pack,
    unpack,
)
from featherlb.model import Endpoint, Protocol
from tests.builders import tcp, udp
from tests.world import VIP, World, backend, client, service

BACKEND = "10.0.1.2:8080"


def recorded(world: World, wanted: Wanted, packet: bytes) -> list[tuple[str, str]]:
    """What is recorded of a packet from a client."""
    recording = world.balancer.recording
    recording.start(wanted)
    buffer = bytearray(packet)
    world.balancer.attach(buffer)
    recording.begin(0, len(packet))
    world.balancer.handle_packet(0, len(packet), 0, 0, world.now)
    recording.end()
    records, missed = recording.take()
    assert not missed
    assert unpack(pack(records)) == records
    for one in records:
        assert one.data == bytes(buffer if one.leaving else packet)[: wanted.length]
        assert one.length == len(packet)
    return [(one.side, one.comment) for one in records]


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        (Wanted(), True),
        (Wanted(length=64), True),
        (Wanted(client=ip_network(f"{client(1).partition(':')[0]}/32")), True),
        (Wanted(client=ip_network("192.0.2.0/24")), False),
        (Wanted(client=ip_network("2001:db8::/32")), False),
        (Wanted(service="web"), True),
        (Wanted(service="other"), False),
        (Wanted(backend=Endpoint.parse(BACKEND)), True),
        (Wanted(backend=Endpoint.parse("10.0.1.3:8080")), False),
        (Wanted(protocol=Protocol.TCP), True),
        (Wanted(protocol=Protocol.UDP), False),
    ],
)
def test_what_is_wanted_is_recorded_on_both_sides(wanted: Wanted, matches: bool) -> None:
    world = World(service(backend(BACKEND)))
    for flags, comment in (("S", "web: new flow to "), ("A", "web: to ")):
        found = recorded(world, wanted, tcp(client(1), VIP, flags=flags, payload=b"x" * 500))
        assert [side for side, _ in found] == [CLIENTS, BACKENDS] * matches
        assert all(text.startswith(comment) for _, text in found[:1])


@pytest.mark.parametrize("cut", [1, 20, 25, 29])
def test_what_is_no_record(cut: int) -> None:
    content = pack([Recorded(1.0, CLIENTS, True, 9, b"data", "text")])
    with pytest.raises(ValueError, match="cut off"):
        unpack(content[:cut])


def test_packets_without_a_flow() -> None:
    world = World(service())
    packet = tcp(client(1), VIP, "S")
    dropped = [(CLIENTS, "web: dropped, no-backend")]
    assert recorded(world, Wanted(service="web"), packet) == dropped
    assert recorded(world, Wanted(backend=Endpoint.parse(BACKEND)), packet) == []
    assert recorded(world, Wanted(service="other"), packet) == []
    # Not ours.
    assert recorded(world, Wanted(), udp(client(1), "192.0.2.9:53")) == []
    malformed = bytearray(packet)
    malformed[2:4] = b"\xff\xff"
    assert recorded(world, Wanted(), bytes(malformed)) == [(CLIENTS, "dropped, malformed")]
    assert recorded(world, Wanted(service="web"), bytes(malformed)) == []


def test_a_worker_records_no_more_than_it_may() -> None:
    world = World(service(backend(BACKEND)))
    recording = world.balancer.recording
    packet = tcp(client(1), VIP, "S")
    recording.start(Wanted())
    for _ in range(MAX_RECORDS):
        world.balancer.attach(bytearray(packet))
        recording.begin(0, len(packet))
        world.balancer.handle_packet(0, len(packet), 0, 0, world.now)
        recording.end()
    records, missed = recording.take()
    assert (len(records), missed) == (MAX_RECORDS, MAX_RECORDS // 2)
    recording.stop()
    assert not recording.active
