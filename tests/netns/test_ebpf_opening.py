"""Flows that the program of the datapath ebpf opens itself, from tables that a worker keeps: the
same that the core would have opened for these packets."""

import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from featherlb.core.flows.record import RECORD_SIZE
from featherlb.core.flows.tcp_state import State
from featherlb.core.pools.schedulers import Member, NewFlow, create
from featherlb.core.pools.schedulers.hash_scheduler import HashScheduler
from featherlb.model import Endpoint
from featherlb.model.shard import Shard
from featherlb.net.addresses import words_of
from featherlb.system import ebpf
from tests.builders import ip, tcp, udp
from tests.netns.test_ebpf_program import (
    CLIENT6,
    DNAT4,
    DNAT6,
    ONE6,
    REDIRECT,
    UNSPEC,
    VIP6,
    Bench,
    Seen,
    Way,
    flow_of,
    of_entry,
    of_record,
    one_hop_on,
    packed,
)
from tests.netns.test_ebpf_program import bench as bench
from tests.netns.test_ebpf_program import loaded as loaded
from tests.world import CLIENT, ONE, TWO, VIP, World, backend, service

pytestmark = [
    pytest.mark.no_packets("one program alone, without a worker"),
    pytest.mark.skipif(not (ebpf.OBJECTS / "flows.o").exists(), reason="was built without clang"),
]

SERVICE = struct.Struct("=IIQ32s16x")
MEMBER = struct.Struct("=16s2sHII12x")
OPENING = struct.Struct("=IBBHQ112s")
BY_WORKER, IN_TURN, AT_RANDOM, BY_LOAD, BY_CLIENT, BY_TUPLE = range(6)
TWO6 = "[2001:db8:9::2]:8080"
NUMBER = 3
"""Of the service."""


class Tables:
    """What a worker writes for the program to open flows by."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        names = ("services", "rows", "members", "spare", "queue")
        self.memory = {name: bench.maps[name].memory() for name in names}
        self.serve(IN_TURN, ONE, TWO)
        self.spare(range(10, 20))

    def serve(
        self,
        how: int,
        *backends: str,
        active: tuple[int, ...] = (),
        first: int = 5,
        slots: Sequence[int] = (),
        hash_state: bytes = b"",
        **member: int,
    ) -> None:
        """`slots` have the numbers of the backends, from 1 on; by default each has one."""
        for number, text in enumerate(backends, start=1):
            address, port = packed(text)
            values = {"usable": 1, "active": (*active, 0, 0)[number - 1], "weight": 1, **member}
            MEMBER.pack_into(
                self.memory["members"], number * MEMBER.size, address, port, *values.values()
            )
        slots = slots or range(1, len(backends) + 1)
        for at, number in enumerate(slots):
            # In the table 0 is no member.
            value = number + 1 if number else 0
            struct.pack_into("=H", self.memory["rows"], first * 8 + at * 2, value)
        SERVICE.pack_into(
            self.memory["services"], NUMBER * 64, how, 0, first << 32 | len(slots), hash_state
        )

    def vip(self, text: str, protocol: int = 6, number: int = NUMBER, worker: int = 0) -> None:
        address, port = packed(text)
        key = address + port + bytes((protocol, worker))
        self.bench.maps["places"].update(key, struct.pack("=I", number))

    def spare(self, indexes: range) -> None:
        for at, index in enumerate(indexes):
            struct.pack_into("=Q", self.memory["spare"], at * 8, index)
        struct.pack_into("=II", self.memory["queue"], 0, len(indexes), 0)

    def active(self, number: int) -> int:
        return int(MEMBER.unpack_from(self.memory["members"], number * MEMBER.size)[3])

    def close(self) -> None:
        for name in ("places", "direct"):
            keys = list(self.bench.maps[name].keys())
            self.bench.maps[name].delete_batch(b"".join(keys), len(keys))
        self.spare(range(0))
        for memory in self.memory.values():
            memory.close()


@pytest.fixture
def tables(bench: Bench) -> Iterator[Tables]:
    tables = Tables(bench)
    yield tables
    tables.close()


def openings(bench: Bench) -> list[tuple[int, int, int, bytes]]:
    """Entry, states and headers of the flows opened since the last call."""
    return [
        (index, before, after, headers[:length])
        for index, before, after, length, _, headers in map(OPENING.unpack, bench.ring.read())
    ]


def opened(bench: Bench, packet: bytes) -> str:
    """The backend of the flow that this packet opens; empty if it opens none."""
    ran = bench.node.call(bench.run, packet)
    if ran.result == UNSPEC:
        assert ran.packet == packet
        return ""
    assert ran.result == REDIRECT
    return {ONE.split(":")[0]: ONE, TWO.split(":")[0]: TWO}[".".join(map(str, ran.packet[16:20]))]


@pytest.mark.parametrize("way", [DNAT4, DNAT6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("options", [[], [("MSS", 1460), ("NOP", None), ("WScale", 9)]])
def test_a_flow_is_the_one_that_the_core_opens(
    bench: Bench, tables: Tables, way: Way, options: list[Any]
) -> None:
    tables.serve(IN_TURN, way.backend)
    tables.vip(way.vip)
    syn = way.packet(flags="S", seq=0xFFFFFFF0, options=options)
    world = World(service(way.backend, vips=way.vip))
    outcome = world.handle(syn)
    ran = bench.node.call(bench.run, syn)
    assert ran.result == REDIRECT
    assert ran.packet == one_hop_on(outcome.packet)
    assert openings(bench) == [(10, 0, State.SYN_SENT, syn)]
    assert tables.active(1) == 1
    record = Seen(world.memory.records[flow_of(world, way) * RECORD_SIZE :])
    copy = bytes(bench.memory[1280:1408])
    bench.memory[128:256] = copy
    assert of_entry(bench) == of_record(record)
    assert (bench.read(1, "live"), bench.read(1, "packets"), bench.read(1, "bytes")) == (
        1,
        1,
        len(syn),
    )
    # It goes on as a flow that the worker has given.
    answer = way.packet(True, flags="SA", seq=7, ack=0xFFFFFFF1, options=options)
    assert bench.node.call(bench.run, answer).result == REDIRECT
    assert bench.events() == [(10, "SYN_SENT", "SYN_RECEIVED")]
    # The client's SYN again is for the worker.
    assert bench.node.call(bench.run, syn).result == UNSPEC


def test_datagrams(bench: Bench, tables: Tables) -> None:
    tables.vip(VIP, 17)
    way = replace(DNAT4, protocol="udp")
    first = way.packet(payload=b"one")
    ran = bench.node.call(bench.run, first)
    assert (ran.result, ran.packet) == (REDIRECT, way.translated(first))
    assert openings(bench) == [(10, 0, State.UDP_ONE_WAY, first[:28])]
    assert bench.node.call(bench.run, way.packet(payload=b"two")).result == REDIRECT
    assert bench.read(10, "packets") == 2
    assert openings(bench) == []


def syns(count: int) -> list[bytes]:
    return [tcp(f"198.51.100.9:{20000 + number}", VIP, "S") for number in range(count)]


def opened_by(bench: Bench, count: int) -> "Counter[str]":
    """How many flows each backend gets."""
    counts: Counter[str] = Counter()
    for syn in syns(count):
        counts[opened(bench, syn)] += 1
        openings(bench)
    return counts


def test_members_in_turn(bench: Bench, tables: Tables) -> None:
    tables.vip(VIP)
    assert [opened(bench, syn) for syn in syns(4)] == [ONE, TWO, ONE, TWO]
    # Another table, at once.
    tables.serve(IN_TURN, TWO, first=9)
    assert [opened(bench, syn) for syn in syns(6)[4:]] == [TWO, TWO]


def test_members_at_random(bench: Bench, tables: Tables) -> None:
    tables.vip(VIP)
    tables.spare(range(10, 110))
    tables.serve(AT_RANDOM, ONE, TWO)
    counts = opened_by(bench, 100)
    assert counts.keys() == {ONE, TWO}
    assert min(counts.values()) > 20


def test_members_by_load(bench: Bench, tables: Tables) -> None:
    """Of two slots, which may be the same one, the less loaded; it counts what it opens."""
    tables.vip(VIP)
    tables.spare(range(10, 110))
    tables.serve(BY_LOAD, ONE, TWO, active=(1000, 0))
    counts = opened_by(bench, 100)
    assert counts[TWO] > 55
    assert tables.active(2) == counts[TWO]
    assert tables.active(1) == 1000 + counts[ONE]


SCHEDULERS = {
    "maglev": BY_TUPLE,
    "source-hash": BY_CLIENT,
    "five-tuple-hash": BY_TUPLE,
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_members_by_hash(bench: Bench, tables: Tables, name: str, family: int) -> None:
    """The same ones that the core picks."""
    backends, vip = ((ONE, TWO), VIP) if family == 4 else ((ONE6, TWO6), VIP6)
    scheduler = create(name, seed=1, key=b"key")
    assert isinstance(scheduler, HashScheduler)
    members = [Member(backend(one), number) for number, one in enumerate(backends, start=1)]
    scheduler.update(members)
    if name != "maglev":
        while scheduler.find_owners(1 << 16):
            pass
    table = scheduler.table()
    tables.serve(
        SCHEDULERS[name],
        *backends,
        slots=[0 if one is None else one.index for one in table],
        hash_state=scheduler.hash.after_key(),
    )
    tables.vip(vip)
    tables.spare(range(10, 60))
    picked = set()
    for number in range(20):
        client = f"198.51.100.{number}:{20000 + number}"
        if family == 6:
            client = f"[2001:db8:2::{number:x}]:{20000 + number}"
        chosen = scheduler.pick(NewFlow.between(6, Endpoint.parse(client), Endpoint.parse(vip)))
        assert chosen is not None
        ran = bench.node.call(bench.run, tcp(client, vip, "S"))
        assert ran.result == REDIRECT
        (index, *_), *_ = openings(bench)
        assert bench.read(index, "member") == chosen.index
        picked.add(chosen.index)
    assert picked == {1, 2}
    # The owner isn't known.
    tables.serve(SCHEDULERS[name], *backends, slots=[0] * len(table))
    assert bench.node.call(bench.run, tcp(CLIENT if family == 4 else CLIENT6, vip, "S")).result == (
        UNSPEC
    )


@pytest.mark.parametrize(("prefix4", "prefix6"), [(0, 0), (24, 112)])
def test_the_worker_that_has_the_client(
    bench: Bench, tables: Tables, prefix4: int, prefix6: int
) -> None:
    """Each worker tells of places for its own flows; here, only number 2 of 3 has told of any."""
    shards = [Shard(number, 3, 0xCAFE, prefix4, prefix6) for number in range(3)]
    masks = [
        ((1 << prefix) - 1 << bits - prefix).to_bytes(bits // 8, "big")
        for prefix, bits in ((prefix4, 32), (prefix6, 128))
    ]
    bench.control[16:44] = struct.pack("=II4s16s", 3, shards[0].start, *masks)
    tables.spare(range(10, 200))
    counts: Counter[bool] = Counter()
    for vip, client_of in (
        (VIP, "198.51.{0}.7:{1}".format),
        (VIP6, "[2001:db8:2::{0}:7]:{1}".format),
    ):
        tables.serve(IN_TURN, ONE if vip == VIP else ONE6)
        tables.vip(vip, worker=2)
        for number in range(30):
            client = client_of(number, 20000 + number)
            endpoint = Endpoint.parse(client)
            ours = shards[2].has(*words_of(endpoint.address), endpoint.port)
            ran = bench.node.call(bench.run, tcp(client, vip, "S"))
            assert (ran.result, client) == (REDIRECT if ours else UNSPEC, client)
            bench.ring.read()
            counts[ours] += 1
    assert counts[True] > 5 < counts[False]


def test_what_is_left_to_the_worker(bench: Bench, tables: Tables) -> None:
    tables.vip(VIP)
    tables.vip("192.0.2.99:0", protocol=0, number=0)
    (syn,) = syns(1)
    for what, packet in {
        "no VIP": tcp(CLIENT, "192.0.2.11:80", "S"),
        "another port": tcp(CLIENT, "192.0.2.10:81", "S"),
        "another protocol": udp(CLIENT, VIP),
        "the middle of a connection": tcp(CLIENT, VIP, "A"),
        "a SYN with data": tcp(CLIENT, VIP, "S", payload=b"x"),
        "a loopback address": tcp("127.0.0.1:5000", VIP, "S"),
        "a multicast address": tcp("224.0.0.1:5000", VIP, "S"),
        "no address": tcp("0.0.0.0:5000", VIP, "S"),
        "the VIP itself": tcp("192.0.2.10:5000", VIP, "S"),
        "another address of this host": tcp("192.0.2.99:5000", VIP, "S"),
        "a damaged header": tcp(CLIENT, VIP, "S", header=ip(CLIENT, VIP, chksum=0xDEAD)),
        "no way back": tcp("203.0.113.1:5000", VIP, "S"),
    }.items():
        assert (opened(bench, packet), what) == ("", what)
    tables.serve(IN_TURN, ONE, usable=0)
    assert opened(bench, syn) == ""
    tables.serve(BY_WORKER, ONE)
    assert opened(bench, syn) == ""
    tables.serve(IN_TURN)
    assert opened(bench, syn) == ""
    tables.serve(IN_TURN, ONE)
    tables.spare(range(0))
    assert opened(bench, syn) == ""
    assert openings(bench) == []
    assert list(bench.maps["flows4"].keys()) == []
    tables.spare(range(10, 11))
    assert opened(bench, syn) == ONE


def test_martians_of_ipv6(bench: Bench, tables: Tables) -> None:
    tables.serve(IN_TURN, ONE6)
    tables.vip(VIP6)
    for source in ("[::]:9", "[::1]:9", "[ff02::1]:9", "[::ffff:10.0.0.1]:9", VIP6):
        assert bench.node.call(bench.run, tcp(source, VIP6, "S")).result == UNSPEC
    assert bench.node.call(bench.run, tcp(CLIENT6, VIP6, "S")).result == REDIRECT


def test_a_tuple_in_use(bench: Bench, tables: Tables) -> None:
    """The backend has a connection from this port of the client already, by another VIP: the
    worker decides, and gets the entry back."""
    tables.serve(IN_TURN, ONE)
    tables.vip(VIP)
    bench.give(replace(DNAT4, vip="192.0.2.99:80"))
    before = sorted(bench.maps["flows4"].items())
    syn = DNAT4.packet(flags="S")
    assert opened(bench, syn) == ""
    assert openings(bench) == [(10, 0, 0, syn)]
    assert bench.read(10, "live") == 0
    assert sorted(bench.maps["flows4"].items()) == before


@pytest.mark.parametrize("way", [DNAT4, DNAT6], ids=["IPv4", "IPv6"])
def test_a_client_that_talks_to_the_backend_itself(bench: Bench, tables: Tables, way: Way) -> None:
    """From the port that it has for the VIP: the worker decides who gets the backend's answers."""
    tables.serve(IN_TURN, way.backend)
    tables.vip(way.vip)
    tables.vip(way.backend, number=0)
    itself = tcp(way.client, way.backend, "S")
    assert bench.node.call(bench.run, itself).result == UNSPEC
    assert bench.node.call(bench.run, way.packet(flags="S")).result == UNSPEC
    assert [after for _, _, after, _ in openings(bench)] == [0]
    host, port = way.client.rsplit(":", 1)
    other = replace(way, client=f"{host}:{int(port) + 1}", source=f"{host}:{int(port) + 1}")
    assert bench.node.call(bench.run, other.packet(flags="S")).result == REDIRECT


def test_a_full_ring(bench: Bench, tables: Tables) -> None:
    """A flow that the worker wouldn't hear of is not opened."""
    tables.vip(VIP)
    tables.spare(range(10, 200))
    results = [opened(bench, syn) for syn in syns(40)]
    assert 20 < len(list(filter(None, results))) < 31  # 4096 bytes, 136 each
    assert results[-1] == ""
    assert len(openings(bench)) == len(list(filter(None, results)))
