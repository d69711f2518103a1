"""The flight recorder: what is noted of flows and backends, and what is left of it later."""

import pytest

from featherlb.core.flows.flight_recorder import FlightRecorder, Kind, Noted, bytes_for, read
from featherlb.model import Protocol, Service
from tests.builders import tcp, udp
from tests.world import CLIENT, ONE, TWO, VIP, Connection, World, backend, client, service


class Recorded(World):
    """A world with a flight recorder."""

    def __init__(self, *services: Service, size: int = 100, capacity: int = 64) -> None:
        self.ring = bytearray(bytes_for(size))
        recorder = FlightRecorder(memoryview(self.ring))
        super().__init__(*services, capacity=capacity, recorder=recorder)

    @property
    def records(self) -> list[Noted]:
        return read(bytes(self.ring))

    @property
    def story(self) -> list[str]:
        """The records about flows and packets."""
        return [f"{one.kind.name} {one.detail}" for one in self.records if one.client]


def test_the_life_of_a_connection() -> None:
    world = Recorded(service(ONE))
    connection = world.connect()
    connection.send("A", b"no packet of an established connection is noted")
    connection.reply("A", b"nor this one")
    connection.send("FA")
    connection.reply("FA")
    connection.send("A")
    world.advance(60)
    assert world.story == [
        "OPENED new",
        "CHANGED syn-received",
        "CHANGED established",
        "CHANGED fin-wait",
        "CHANGED closing",
        "EXPIRED closing",
    ]
    opened = next(one for one in world.records if one.kind is Kind.OPENED)
    assert opened.time == 1000.0
    assert (str(opened.client), str(opened.vip), str(opened.backend)) == (CLIENT, VIP, ONE)
    assert (opened.protocol, opened.weight) == (Protocol.TCP, None)


def test_refusals_moves_and_evictions() -> None:
    world = Recorded(service(ONE, TWO), capacity=2)
    connection = Connection(world)
    connection.send("S")
    refusal = tcp(ONE, connection.source, "RA", seq=0, ack=connection.sent)
    world.handle(refusal, connection.reply_hook)
    assert world.story == ["OPENED new", "MOVED refused", "ENDED syn-sent"]
    for number in range(3):
        world.connect(client(number))
    assert "EVICTED established" in world.story
    world.apply(service())
    Connection(world, client(9)).lose("S")
    last = world.records[-1]
    assert (last.kind, last.detail, last.backend) == (Kind.REFUSED, "no-backend", None)


def test_datagrams_and_ipv6() -> None:
    vip = "[2001:db8::10]:53"
    world = Recorded(service("[2001:db8:1::1]:53", vips=vip, protocol=Protocol.UDP))
    world.handle(udp("[2001:db8::7]:999", vip))
    last = world.records[-1]
    assert (last.protocol, str(last.client), str(last.vip)) == (
        Protocol.UDP,
        "[2001:db8::7]:999",
        vip,
    )
    assert str(last.backend) == "[2001:db8:1::1]:53"


def test_changes_of_backends() -> None:
    world = Recorded(service(backend(ONE, 3)))
    for one in (backend(ONE, 0), backend(ONE, 0, down=True), backend(ONE, 2)):
        world.apply(service(one))
    world.apply(service(TWO))
    noted = [(one.kind, str(one.backend), one.weight) for one in world.records]
    assert noted == [
        (Kind.JOINED, ONE, 3),
        (Kind.WEIGHED, ONE, 0),
        (Kind.DOWN, ONE, 0),
        (Kind.UP, ONE, 2),
        (Kind.WEIGHED, ONE, 2),
        (Kind.JOINED, TWO, 1),
        (Kind.LEFT, ONE, 2),
    ]
    assert {str(one.vip) for one in world.records} == {VIP}


def test_the_last_records_stay_and_a_successor_continues() -> None:
    world = Recorded(service(ONE), size=8)
    for number in range(20):
        world.now += 1
        Connection(world, client(number)).send("S")
    # The oldest one may just be overwritten.
    assert [one.time for one in world.records] == [1014 + number for number in range(7)]
    successor = FlightRecorder(memoryview(world.ring))
    successor.start(2000.0)
    started = world.records[-1]
    assert (started.kind, started.time, started.vip) == (Kind.STARTED, 2000.0, None)
    assert len(world.records) == 7


def test_a_copy_that_was_made_while_the_recorder_went_on() -> None:
    world = Recorded(service(ONE), size=8)
    for number in range(20):
        world.now += 1
        Connection(world, client(number)).send("S")
    header = bytes(world.ring[:64])
    world.now += 1
    for number in range(30, 33):
        Connection(world, client(number)).send("S")
    found = read(header + bytes(world.ring[64:]))
    assert [one.time for one in found] == [1016, 1017, 1018, 1019, 1020]


def test_a_record_that_a_crash_left_half_written() -> None:
    world = Recorded(service(ONE))
    world.connect()
    before = world.records
    world.ring[64 * 3 + 57] = 0x7F  # its kind
    left = world.records
    assert len(left) == len(before) - 1
    assert set(map(str, left)) < set(map(str, before))


@pytest.mark.parametrize("content", [b"", bytes(64), bytes(100), bytes(640)])
def test_what_is_no_recording(content: bytes) -> None:
    with pytest.raises(ValueError, match="it is"):
        read(content)


def test_without_memory_nothing_is_noted() -> None:
    recorder = FlightRecorder()
    recorder.start(1.0)
    assert recorder.size == 0
