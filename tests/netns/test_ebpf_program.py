"""The program of the datapath ebpf, run on single packets (BPF_PROG_TEST_RUN) in a namespace with
routes. Scapy and the core answer for what it must do: it translates as the core does, and keeps a
connection's state as the core keeps it."""

import mmap
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import IP, IPOption_Timestamp
from scapy.layers.l2 import Dot1Q, Ether

from featherlb.core.flows.record import RECORD, RECORD_SIZE, Field, Flag, Struct, size_of
from featherlb.core.flows.tcp_state import State
from featherlb.lab import Lab, Node
from featherlb.model import Hook, Verdict
from featherlb.system import ebpf
from featherlb.system.ebpf import Map, TestRun
from featherlb.system.elf import MapShape
from featherlb.system.ring import Ring
from tests.builders import icmp, ip, ipv6_extensions, readdressed, split, tcp, udp, with_checksum
from tests.world import CLIENT, ONE, VIP, World, service

pytestmark = [
    pytest.mark.no_packets("one program alone, without a worker"),
    pytest.mark.skipif(not (ebpf.OBJECTS / "flows.o").exists(), reason="was built without clang"),
]

UNSPEC, REDIRECT = 0xFFFFFFFF, 7
CLIENT6, VIP6, ONE6 = "[2001:db8:2::7]:40000", "[2001:db8::10]:80", "[2001:db8:9::1]:8080"
SOURCE, SOURCE6 = "10.1.0.254:50000", "[2001:db8:9::fe]:50000"
REASONS = ("taken", "opening", "unusual", "last hop", "too long", "no route", "no beat")
ENTRY = struct.Struct("=16s16s16s16s2s2s2s2sBBBBI2I2II2IBBH2Q")
FIELDS = (
    "client",
    "vip",
    "backend",
    "source",
    "client_port",
    "vip_port",
    "backend_port",
    "source_port",
    "live",
    "quiet",
    "options",
    "worker",
    "state",
    "client_expects",
    "backend_expects",
    "client_end",
    "backend_end",
    "seen",
    "packets",
    "reply_packets",
    "protocol",
    "scales",
    "member",
    "bytes",
    "reply_bytes",
)
CONTROL = struct.Struct("=QQ")
EVENT = struct.Struct("=IBBHQ")
LIFT_SYN_ACK = 1
CLIENT_SPOKE, BACKEND_SPOKE, RESET_BY_BACKEND, DOUBTFUL = 1 << 8, 1 << 9, 1 << 10, 1 << 16


@dataclass(frozen=True)
class Way:
    """A flow, and its packets before and after translation."""

    protocol: str
    client: str
    vip: str
    backend: str
    source: str

    def packet(self, reply: bool = False, **fields: Any) -> bytes:
        ends = (self.backend, self.source) if reply else (self.client, self.vip)
        return (tcp if self.protocol == "tcp" else udp)(*ends, **fields)

    def translated(self, packet: bytes, reply: bool = False) -> bytes:
        ends = (self.vip, self.client) if reply else (self.source, self.backend)
        return one_hop_on(readdressed(packet, *ends))


DNAT4 = Way("tcp", CLIENT, VIP, ONE, CLIENT)
FULL4 = Way("tcp", CLIENT, VIP, ONE, SOURCE)
DNAT6 = Way("tcp", CLIENT6, VIP6, ONE6, CLIENT6)
FULL6 = Way("tcp", CLIENT6, VIP6, ONE6, SOURCE6)
WAYS = [
    Way(protocol, one.client, one.vip, one.backend, one.source)
    for protocol in ("tcp", "udp")
    for one in (DNAT4, FULL4, DNAT6, FULL6)
]


def one_hop_on(packet: bytes) -> bytes:
    """The packet behind a router: only the IP header changes."""
    if packet[0] >> 4 == 6:
        return packet[:7] + bytes((packet[7] - 1,)) + packet[8:]
    header = IP(packet[:20])
    header.ttl -= 1
    del header.chksum
    return bytes(header) + packet[20:]


def packed(endpoint: str) -> tuple[bytes, bytes]:
    """Address (of IPv4, the mapped form) and port, in network byte order."""
    host, port = split(endpoint)
    address = ip_address(host)
    mapped = address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed
    return mapped, port.to_bytes(2, "big")


class Bench:
    """The loaded program with its maps, and a link that packets come from."""

    def __init__(self, node: Node) -> None:
        file = ebpf.read_object("flows")
        self.ring_map = ebpf.create_map(MapShape(ebpf.MapKind.RINGBUF, 0, 0, 4096, 0), "ring")
        self.maps: dict[str, Map] = {
            name: ebpf.create_map(shape, name, self.ring_map if name == "events" else None)
            for name, shape in file.maps.items()
        }
        self.programs = ebpf.load(file, self.maps)
        self.maps["events"].update(bytes(4), struct.pack("=I", self.ring_map.fd))
        self.ring = Ring(self.ring_map)
        self.memory: mmap.mmap = self.maps["entries"].memory()
        self.control: mmap.mmap = self.maps["control"].memory()
        self.node = node
        front = next(iter(node.addresses))
        self.index = node.call(socket.if_nametoindex, front)
        path = f"/sys/class/net/{front}/address"
        self.mac = node.run(["cat", path]).stdout.strip()
        self.link_header = bytes(Ether(dst=self.mac, src="02:00:00:00:00:01", type=0x800))

    def reset(self) -> None:
        self.memory[:] = bytes(len(self.memory))
        self.control[:48] = bytes(48)
        for name in ("flows4", "flows6"):
            keys = list(self.maps[name].keys())
            self.maps[name].delete_batch(b"".join(keys), len(keys))
        for key in range(len(REASONS)):
            self.maps["reasons"].update(struct.pack("=I", key), bytes(8 * ebpf.possible_cpus()))
        self.ring.read()

    def close(self) -> None:
        self.memory.close()
        self.control.close()
        for one in (self.ring_map, *self.maps.values(), *self.programs.values()):
            one.close()

    # What a worker does

    def write(self, index: int, **fields: object) -> None:
        """Write fields of an entry."""
        now = dict(zip(FIELDS, ENTRY.unpack_from(self.memory, index * 128), strict=True))
        values = {**now, **fields}
        ENTRY.pack_into(self.memory, index * 128, *(values[name] for name in FIELDS))

    def read(self, index: int, name: str) -> Any:
        """A field of an entry."""
        values = ENTRY.unpack_from(self.memory, index * 128)
        return values[FIELDS.index(name)]

    def give(self, way: Way, index: int = 1, **fields: object) -> int:
        """Have the program carry a flow: an established connection, unless `fields` differ."""
        (client, client_port), (vip, vip_port) = packed(way.client), packed(way.vip)
        (backend, backend_port), (source, source_port) = packed(way.backend), packed(way.source)
        protocol = 6 if way.protocol == "tcp" else 17
        values: dict[str, object] = {
            "client": client,
            "vip": vip,
            "backend": backend,
            "source": source,
            "client_port": client_port,
            "vip_port": vip_port,
            "backend_port": backend_port,
            "source_port": source_port,
            "live": 1,
            "protocol": protocol,
            "state": State.ESTABLISHED if protocol == 6 else State.UDP_ONE_WAY,
            "client_expects": 5000,
            "backend_end": 5000,
            "backend_expects": 1000,
            "client_end": 1000,
            **fields,
        }
        self.memory[index * 128 : index * 128 + 128] = bytes(128)
        self.write(index, **values)
        name, skip = ("flows4", 12) if way.client[0] != "[" else ("flows6", 0)
        end = bytes((protocol, 0, 0, 0))
        keys = (
            client[skip:] + vip[skip:] + client_port + vip_port + end,
            backend[skip:] + source[skip:] + backend_port + source_port + end,
        )
        references = struct.pack("=II", index << 1, index << 1 | 1)
        assert self.maps[name].update_batch(b"".join(keys), references, 2) == 2
        return index

    # Packets

    def run(self, packet: bytes, *, gso_size: int = 0, header: bytes | None = None) -> TestRun:
        """Run the program on an IP packet that enters by the front link."""
        if header is None:
            kind = 0x86DD if packet[0] >> 4 == 6 else 0x800
            header = self.link_header[:12] + kind.to_bytes(2, "big")
        # struct __sk_buff: the link, and of super-packets the segments' number and size.
        segments = 2 if gso_size else 0
        context = struct.pack("=40xI120xIQI", self.index, segments, 0, gso_size)
        ran = self.programs["ingress"].run(header + packet, context)
        return TestRun(ran.result, ran.packet[len(header) :], ran.duration)

    def reasons(self) -> dict[str, int]:
        """Packets left to the worker, by reason, and forget them."""
        counts = {}
        for key, name in enumerate(REASONS):
            value = self.maps["reasons"].look_up(struct.pack("=I", key))
            assert value is not None
            if total := sum(struct.unpack(f"={len(value) // 8}Q", value)):
                counts[name] = total
            self.maps["reasons"].update(struct.pack("=I", key), bytes(len(value)))
        return counts

    def events(self) -> list[tuple[int, str, str]]:
        """Changes of state since the last call."""
        return [
            (index, State(before).name, State(after).name)
            for index, before, after, _, _ in map(EVENT.unpack, self.ring.read())
        ]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    with Lab(clients=1, backends=1) as lab:
        node = lab.balancer
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            node.sysctl(name, 1)
        front, back = node.addresses
        for network, through, link in (
            ("198.51.0.0/16", lab.client.address, front),
            ("10.1.0.0/24", lab.backends[0].address, back),
            ("2001:db8:2::/64", lab.client.address6, front),
            ("2001:db8:9::/64", lab.backends[0].address6, back),
        ):
            node.run(["ip", "route", "add", network, "via", through, "dev", link])
        node.run(["ip", "link", "set", back, "mtu", "1400"])
        bench = Bench(node)
        yield bench
        bench.close()


@pytest.fixture
def bench(loaded: Bench) -> Bench:
    loaded.reset()
    return loaded


def in_the_lab(test: Callable[[Bench], None]) -> Callable[[Bench], None]:
    """Run the test in the balancer's namespace: that is where the program looks up routes."""

    def run(bench: Bench) -> None:
        bench.node.call(test, bench)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@in_the_lab
def test_packets_of_known_flows_are_translated(bench: Bench) -> None:
    for way in WAYS:
        for reply in (False, True):
            for payload in (b"", b"odd", b"even", bytes(1300)):
                bench.give(way)
                numbers: Any = {"seq": 5000, "ack": 1000} if reply else {"seq": 1000, "ack": 5000}
                fields = {} if way.protocol == "udp" else numbers
                packet = way.packet(reply, payload=payload, **fields)
                ran = bench.run(packet)
                assert (ran.result, ran.packet) == (REDIRECT, way.translated(packet, reply))
                assert bench.read(1, "reply_packets" if reply else "packets") == 1
                assert bench.read(1, "reply_bytes" if reply else "bytes") == len(packet)
    assert bench.reasons() == {}


@in_the_lab
def test_what_came_again_is_counted_of_its_backend(bench: Bench) -> None:
    counts = bench.maps["members"].memory()
    counts[:] = bytes(len(counts))
    bench.give(DNAT4, member=3)
    numbers: Any = {"seq": 1000, "ack": 5000}
    data = DNAT4.packet(payload=b"data", **numbers)
    for packet in (data, data, DNAT4.packet(**numbers), data):
        assert bench.run(packet).result == REDIRECT
    answer = DNAT4.packet(True, seq=5000, ack=1004, payload=b"answer")
    for _ in range(2):
        assert bench.run(answer).result == REDIRECT
    assert struct.unpack_from("=II", counts, 3 * 40 + 28) == (2, 1)
    counts.close()


@in_the_lab
def test_a_datagram_without_a_checksum_stays_without(bench: Bench) -> None:
    way = Way("udp", CLIENT, VIP, ONE, SOURCE)
    bench.give(way)
    ran = bench.run(with_checksum(way.packet(payload=b"x"), 0))
    assert (ran.result, ran.packet[26:28]) == (REDIRECT, bytes(2))


@in_the_lab
def test_a_sum_of_zero_is_sent_as_its_complement(bench: Bench) -> None:
    """RFC 768: a field of 0 would say that there is no checksum."""
    way = Way("udp", CLIENT, VIP, ONE, SOURCE)
    bench.give(way)
    # As payload, the sum of all else makes the whole sum zero.
    packet = way.packet(payload=way.translated(way.packet(payload=bytes(2)))[26:28])
    assert way.translated(packet)[26:28] == b"\xff\xff"
    assert bench.run(packet).packet == way.translated(packet)


@in_the_lab
def test_what_it_does_not_carry_is_left_unchanged(bench: Bench) -> None:
    bench.give(DNAT4)
    bench.give(DNAT6, index=2)
    bench.give(Way("udp", *ends(DNAT4)), index=3)
    numbers: Any = {"seq": 1000, "ack": 5000}
    other = "198.51.100.251:40000"
    options = ip(CLIENT, VIP, options=[IPOption_Timestamp()])
    silently = {
        "another flow": tcp(other, VIP, **numbers),
        "another VIP": tcp(CLIENT, "192.0.2.11:80", **numbers),
        "ICMP": icmp("198.51.100.250", "192.0.2.10"),
        "IP options": tcp(CLIENT, VIP, header=options, **numbers),
        "a first fragment": tcp(CLIENT, VIP, header=ip(CLIENT, VIP, flags="MF"), **numbers),
        "a later fragment": tcp(CLIENT, VIP, header=ip(CLIENT, VIP, frag=3), **numbers),
        "a total length that can't be": tcp(CLIENT, VIP, header=ip(CLIENT, VIP, len=2000)),
        "a TCP header that is too short": tcp(CLIENT, VIP, dataofs=4, **numbers),
        "a TCP header that is too long": tcp(CLIENT, VIP, dataofs=15, **numbers),
        "a UDP length that can't be": udp(CLIENT, VIP, len=300),
        "half a header": tcp(CLIENT, VIP, **numbers)[:30],
    }
    for name in ("hop-by-hop", "destination", "routing", "fragment"):
        header = ipv6_extensions(CLIENT6, VIP6, name)
        silently[name] = tcp(CLIENT6, VIP6, header=header, **numbers)
    for what, packet in silently.items():
        ran = bench.run(packet)
        assert (ran.result, ran.packet, what) == (UNSPEC, packet, what)
        assert bench.reasons() == {}, what
    counted = {
        "a SYN": (DNAT4.packet(flags="S", seq=999), "opening"),
        "a client's SYN-ACK": (DNAT4.packet(flags="SA", **numbers), "opening"),
        "no flags": (DNAT4.packet(flags="", **numbers), "unusual"),
        "FIN without ACK": (DNAT4.packet(flags="F", **numbers), "unusual"),
        "RST and FIN": (DNAT4.packet(flags="RF", **numbers), "unusual"),
        "RST with data": (DNAT4.packet(flags="R", payload=b"x", **numbers), "unusual"),
        "the last hop": (tcp(CLIENT, VIP, header=ip(CLIENT, VIP, ttl=1), **numbers), "last hop"),
        "IPv6's last hop": (
            tcp(CLIENT6, VIP6, header=ip(CLIENT6, VIP6, hlim=1), **numbers),
            "last hop",
        ),
        "too long": (DNAT4.packet(payload=bytes(1361), **numbers), "too long"),
        "too long in IPv6": (DNAT6.packet(payload=bytes(1341), **numbers), "too long"),
    }
    for what, (packet, reason) in counted.items():
        ran = bench.run(packet)
        assert (ran.result, ran.packet, what) == (UNSPEC, packet, what)
        assert bench.reasons() == {reason: 1}, what
    # None of it has left a trace.
    assert [bench.read(index, "packets") for index in (1, 2, 3)] == [0, 0, 0]
    assert bench.events() == []


def ends(way: Way) -> tuple[str, str, str, str]:
    return way.client, way.vip, way.backend, way.source


@in_the_lab
def test_frames_of_others(bench: Bench) -> None:
    """To another machine's address, as a bridge sees them, or in a VLAN."""
    bench.give(DNAT4)
    packet = DNAT4.packet(seq=1000, ack=5000)
    foreign = bytes(Ether(dst="02:00:00:00:00:99", src="02:00:00:00:00:01", type=0x800))
    tagged = bytes(Ether(dst=bench.mac, src="02:00:00:00:00:01") / Dot1Q(vlan=5, type=0x800))
    for header in (foreign, tagged):
        assert bench.run(packet, header=header).result == UNSPEC
    padded = packet + bytes(6)
    ran = bench.run(padded)
    assert (ran.result, ran.packet) == (REDIRECT, DNAT4.translated(packet) + bytes(6))
    assert bench.read(1, "bytes") == 40


@in_the_lab
def test_of_a_super_packet_the_segments_must_fit(bench: Bench) -> None:
    bench.give(DNAT4)
    packet = DNAT4.packet(seq=1000, ack=5000, payload=bytes(2400))
    assert bench.run(packet, gso_size=1360).result == REDIRECT
    assert bench.read(1, "bytes") == 2440
    assert bench.run(packet, gso_size=1361).result == UNSPEC
    assert bench.reasons() == {"too long": 1}


@in_the_lab
def test_where_the_kernel_would_not_forward(bench: Bench) -> None:
    here = f"{bench.node.address}:8080"
    nowhere = "203.0.113.9:8080"
    for backend in (here, nowhere):
        way = Way("tcp", CLIENT, VIP, backend, CLIENT)
        bench.give(way)
        assert bench.run(way.packet(seq=1000, ack=5000)).result == UNSPEC
        assert bench.reasons() == {"no route": 1}


@in_the_lab
def test_routing_rules_hold_as_for_packets_that_come_through_the_queue(bench: Bench) -> None:
    """In `dnat` mode a reply is routed before its source becomes the VIP."""
    rule = ["from", "192.0.2.10", "lookup", "99"]
    bench.node.run(["ip", "route", "add", "blackhole", "default", "table", "99"])
    bench.node.run(["ip", "rule", "add", *rule])
    try:
        for way, result in ((DNAT4, REDIRECT), (FULL4, UNSPEC)):
            bench.give(way)
            assert bench.run(way.packet(True, seq=5000, ack=1000)).result == result
            assert bench.run(way.packet(seq=1000, ack=5000)).result == REDIRECT
    finally:
        bench.node.run(["ip", "rule", "del", *rule])


@in_the_lab
def test_an_entry_that_is_not_the_packets(bench: Bench) -> None:
    """Keys may be older or newer than entries."""
    bench.give(DNAT4)
    packet = DNAT4.packet(seq=1000, ack=5000)
    changes: Any = (
        ("live", 0),
        ("client", packed("198.51.100.9:1")[0]),
        ("vip_port", b"\0\1"),
        ("protocol", 17),
    )
    for field, value in changes:
        bench.give(DNAT4, **{field: value})
        assert bench.run(packet).result == UNSPEC
        assert bench.reasons() == {"taken": 1}
    bench.give(DNAT4)
    bench.maps["flows4"].update(next(iter(bench.maps["flows4"].keys())), struct.pack("=I", 1 << 30))
    bench.run(packet)
    bench.run(DNAT4.packet(True, seq=5000, ack=1000))
    assert bench.reasons() == {"taken": 1}


@in_the_lab
def test_it_carries_no_longer_than_the_heart_beats(bench: Bench) -> None:
    bench.give(DNAT4)
    packet = DNAT4.packet(seq=1000, ack=5000)
    CONTROL.pack_into(bench.control, 0, 0, 1_000_000_000)
    assert bench.run(packet).result == UNSPEC
    assert bench.reasons() == {"no beat": 1}
    # A beat that the coarse clock hasn't reached yet counts.
    CONTROL.pack_into(bench.control, 0, 1 << 62, 1_000_000_000)
    assert bench.run(packet).result == REDIRECT
    CONTROL.pack_into(bench.control, 0, 0, 0)
    assert bench.run(packet).result == REDIRECT


@in_the_lab
def test_the_answer_to_a_probe_is_no_activity(bench: Bench) -> None:
    bench.give(DNAT4, quiet=1)
    for packet in (
        DNAT4.packet(True, seq=5000, ack=1000),
        DNAT4.packet(True, seq=5000, ack=1000, flags="A"),
    ):
        assert bench.run(packet).result == REDIRECT
        assert (bench.read(1, "seen"), bench.read(1, "quiet")) == (0, 1)
    assert bench.run(DNAT4.packet(True, seq=5000, ack=1000, payload=b"x")).result == REDIRECT
    assert bench.read(1, "quiet") == 0
    assert bench.read(1, "seen") > 0


@in_the_lab
def test_datagrams(bench: Bench) -> None:
    way = Way("udp", *ends(FULL4))
    bench.give(way)
    bench.run(way.packet())
    assert bench.events() == []
    bench.run(way.packet(True))
    bench.run(way.packet(True))
    assert bench.events() == [(1, "UDP_ONE_WAY", "UDP_TWO_WAY")]
    assert bench.read(1, "state") == State.UDP_TWO_WAY


@in_the_lab
def test_a_service_that_lowers_the_segment_size_gets_its_syn_acks(bench: Bench) -> None:
    fields: Any = {"state": State.SYN_SENT, "client_end": 1000, "backend_expects": 1000}
    answer = DNAT4.packet(True, flags="SA", seq=4999, ack=1000)
    bench.give(DNAT4, options=LIFT_SYN_ACK, **fields)
    assert bench.run(answer).result == UNSPEC
    bench.give(DNAT4, **fields)
    assert bench.run(answer).result == REDIRECT
    assert bench.events() == [(1, "SYN_SENT", "SYN_RECEIVED")]


@in_the_lab
def test_two_ends_that_close_at_once(bench: Bench) -> None:
    """On two CPUs: neither FIN may be missed or counted twice."""
    fins = (
        DNAT4.packet(flags="FA", seq=1000, ack=5000),
        DNAT4.packet(True, flags="FA", seq=5000, ack=1000),
    )
    for _ in range(100):
        bench.give(DNAT4)
        start = threading.Barrier(2)

        def close(fin: bytes, start: threading.Barrier = start) -> None:
            start.wait()
            bench.run(fin)

        threads = [threading.Thread(target=bench.node.call, args=(close, fin)) for fin in fins]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (_, _, first), second = bench.events()
        assert first in ("FIN_WAIT", "CLOSE_WAIT")
        assert second == (1, first, "CLOSING")
        assert bench.read(1, "state") == State.CLOSING


FLAGS = ("A", "A", "A", "A", "A", "A", "A", "PA", "PA", "FA", "FA", "R", "RA", "SA", "S", "F")


@in_the_lab
def test_it_follows_connections_as_the_core_does(bench: Bench) -> None:
    """Segments with right and wrong numbers, in any order. Where the program leaves one to the
    worker, the core decides, and the program continues with what it has decided."""
    followed: Counter[str] = Counter()
    for seed in range(80):
        followed += follow(bench, random.Random(seed), FULL4 if seed % 3 == 0 else DNAT4)
    assert {
        f"{before} -> {after}"
        for before, after in (
            ("SYN_SENT", "SYN_RECEIVED"),
            ("SYN_RECEIVED", "ESTABLISHED"),
            ("SYN_RECEIVED", "CLOSE_WAIT"),
            ("ESTABLISHED", "FIN_WAIT"),
            ("ESTABLISHED", "CLOSE_WAIT"),
            ("ESTABLISHED", "CLOSED"),
            ("FIN_WAIT", "CLOSING"),
            ("CLOSE_WAIT", "CLOSING"),
            ("CLOSED", "ESTABLISHED"),
            ("CLOSED", "CLOSED"),
            ("ESTABLISHED", "ESTABLISHED"),
        )
    } <= followed.keys(), followed


def follow(bench: Bench, chance: random.Random, way: Way) -> "Counter[str]":
    """One connection; the states before and after each segment that the program carried."""
    nat = "dnat" if way.source == way.client else "full"
    world = World(service(ONE, nat=nat))
    isn, answered = chance.randrange(1 << 32), chance.randrange(1 << 32)
    scales = chance.choice(([], [("WScale", 7)], [("NOP", None), ("WScale", 14), ("MSS", 1400)]))
    opening = way.packet(flags="S", seq=isn, options=scales)
    outcome = world.handle(opening)
    source = outcome.source
    way = Way("tcp", way.client, way.vip, outcome.destination, source)
    sent, replied = isn + 1, answered + 1
    carried: Counter[str] = Counter()
    for _ in range(20):
        flow = flow_of(world, way)
        record = Seen(world.memory.records[flow * RECORD_SIZE :])
        # A SYN may have opened another flow, from another source port.
        if not flow or not may_give(record) or record.source_port != split(source)[1]:
            break
        give_record(bench, way, record)
        reply = chance.random() < 0.5
        flags = chance.choice(FLAGS)
        if record.state in (State.SYN_SENT, State.SYN_RETRIED) and chance.random() < 0.8:
            reply, flags = True, "SA"
        elif record.state == State.SYN_RECEIVED and chance.random() < 0.6:
            reply, flags = False, "A"
        mine, theirs = (replied, sent) if reply else (sent, replied)
        if "S" in flags:
            mine -= 1
        wrong = chance.choice(
            (0, 0, 0, 0, 1, -1, 70000, -70000, 1 << 31, chance.randrange(1 << 32))
        )
        late = chance.choice((0, 0, 0, 0, 1, -1, -1000, 70000, chance.randrange(1 << 32)))
        payload = bytes(chance.choice((0, 0, 1, 700)))
        options = chance.choice(([], [("WScale", 3)], [("SAckOK", b""), ("WScale", 15)]))
        packet = way.packet(
            reply,
            flags=flags,
            seq=mine + wrong & 0xFFFFFFFF,
            ack=theirs + late & 0xFFFFFFFF if "A" in flags else 0,
            payload=b"" if "S" in flags else payload,
            options=options if "S" in flags else [],
        )
        if chance.random() < 0.05:
            packet = with_checksum(packet, chance.randrange(1 << 16))
        if not wrong and not late:
            grown = len(payload) * ("S" not in flags) + ("F" in flags)
            sent, replied = (sent, replied + grown) if reply else (sent + grown, replied)
        doubtful = world.statistics().backends[0].doubtful
        before = bench.read(1, "state")
        late_hook = Hook.PREROUTING if nat == "full" else Hook.POSTROUTING
        outcome = world.handle(packet, late_hook if reply else Hook.PREROUTING)
        ran = bench.run(packet)
        if ran.result == UNSPEC:
            assert ran.packet == packet
            assert bench.read(1, "state") == before
            continue
        assert ran.result == REDIRECT
        assert outcome.verdict is Verdict.REWRITTEN
        assert ran.packet == one_hop_on(outcome.packet)
        doubtful = world.statistics().backends[0].doubtful - doubtful
        assert of_entry(bench) == of_record(record), (flags, reply)
        after = bench.read(1, "state")
        assert (after >> 16) - (before >> 16) == doubtful
        carried[f"{State(before & 0xFF).name} -> {State(after & 0xFF).name}"] += 1
    return carried


class Seen:
    """A flow's record, by the table of its layout."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory

    def __getattr__(self, name: str) -> Any:
        offset, field = FIELDS_OF_RECORD[name]
        code = {1: "B", 2: "H", 4: "I", 8: "Q"}[size_of(field) // field.count]
        values = struct.unpack_from(f"={field.count}{code}", self._memory, offset)
        return values[0] if field.count == 1 else values


def offsets(struct: Struct, at: int = 0) -> Iterator[tuple[str, tuple[int, Field]]]:
    for field in struct.fields:
        if isinstance(field, Struct):
            yield from offsets(field, at)
        else:
            yield field.name, (at, field)
        at += 0 if struct.union else size_of(field)


FIELDS_OF_RECORD = dict(offsets(RECORD))


def flow_of(world: World, way: Way) -> int:
    (client, client_port), (vip, vip_port) = packed(way.client), packed(way.vip)
    words = struct.unpack("!QQQQ", client + vip)
    ports = int.from_bytes(client_port + vip_port, "big")
    find: Any = world.balancer.flows.find
    return int(find(*words, ports, 6)) >> 1


def may_give(record: Any) -> bool:
    sure = not record.flags & Flag.UNSURE
    return sure and record.state not in (State.NEW, State.ADOPTED, State.REPLACED)


def give_record(bench: Bench, way: Way, record: Any) -> None:
    state = record.state
    if record.flags & Flag.CLIENT_SPOKE:
        state |= CLIENT_SPOKE
    if record.flags & Flag.BACKEND_SPOKE:
        state |= BACKEND_SPOKE
    bench.give(
        way,
        state=state,
        client_expects=record.client_expects,
        backend_expects=record.backend_expects,
        client_end=record.ends[0],
        backend_end=record.ends[1],
        scales=record.scales,
    )


def of_record(record: Any) -> tuple[object, ...]:
    spoke = record.flags & (Flag.CLIENT_SPOKE | Flag.BACKEND_SPOKE) if record.state == 7 else 0
    return (
        State(record.state).name,
        spoke,
        record.client_expects,
        record.backend_expects,
        record.ends[0],
        record.ends[1],
        record.scales,
    )


def of_entry(bench: Bench) -> tuple[object, ...]:
    word = bench.read(1, "state")
    state = State(word & 0xFF)
    spoke = 0
    if state is State.CLOSED:
        spoke |= Flag.CLIENT_SPOKE if word & CLIENT_SPOKE else 0
        spoke |= Flag.BACKEND_SPOKE if word & BACKEND_SPOKE else 0
    names = ("client_expects", "backend_expects", "client_end", "backend_end", "scales")
    return (state.name, spoke, *(bench.read(1, name) for name in names))


def test_whose_reset_it_was(bench: Bench) -> None:
    for reply, bit in ((False, 0), (True, RESET_BY_BACKEND)):
        bench.give(DNAT4)
        numbers: Any = {"seq": 5000, "ack": 1000} if reply else {"seq": 1000, "ack": 5000}
        assert bench.node.call(bench.run, DNAT4.packet(reply, flags="RA", **numbers)).result == 7
        assert bench.read(1, "state") == State.CLOSED | bit
    assert bench.events() == [(1, "ESTABLISHED", "CLOSED")] * 2


def test_what_a_connection_leaves_in_the_maps(bench: Bench) -> None:
    bench.give(FULL4, state=State.SYN_SENT, client_expects=0, backend_end=0, scales=0x71)
    script: Any = (
        (True, "SA", 4999, 1000, b"", [("WScale", 9)]),
        (False, "A", 1000, 5000, b"", []),
        (False, "PA", 1000, 5000, b"GET /", []),
        (True, "PA", 5000, 1005, b"200 OK", []),
        (True, "FA", 5006, 1005, b"", []),
        (False, "FA", 1005, 5007, b"", []),
        (True, "A", 5007, 1006, b"", []),
    )
    for reply, flags, seq, ack, payload, options in script:
        fields = {"flags": flags, "seq": seq, "ack": ack, "payload": payload, "options": options}
        assert bench.node.call(bench.run, FULL4.packet(reply, **fields)).result == REDIRECT
    assert [f"{before} -> {after}" for _, before, after in bench.events()] == [
        "SYN_SENT -> SYN_RECEIVED",
        "SYN_RECEIVED -> ESTABLISHED",
        "ESTABLISHED -> CLOSE_WAIT",
        "CLOSE_WAIT -> CLOSING",
    ]
    keys = {key.hex(): value.hex() for key, value in bench.maps["flows4"].items()}
    assert keys == {
        "c63364fac000020a9c40005006000000": "02000000",
        "0a0100010a0100fe1f90c35006000000": "03000000",
    }
    bench.write(1, seen=0)
    values = ENTRY.unpack_from(bench.memory, 128)
    text = [
        f"{name} {value.hex() if isinstance(value, bytes) else value}"
        for name, value in zip(FIELDS, values, strict=True)
    ]
    assert text == [
        "client 00000000000000000000ffffc63364fa",
        "vip 00000000000000000000ffffc000020a",
        "backend 00000000000000000000ffff0a010001",
        "source 00000000000000000000ffff0a0100fe",
        "client_port 9c40",
        "vip_port 0050",
        "backend_port 1f90",
        "source_port c350",
        "live 1",
        "quiet 0",
        "options 0",
        "worker 0",
        f"state {int(State.CLOSING)}",
        "client_expects 5007",
        "backend_expects 1006",
        "client_end 1006",
        "backend_end 5007",
        "seen 0",
        "packets 3",
        "reply_packets 4",
        "protocol 6",
        f"scales {0x79}",
        "member 0",
        "bytes 125",
        "reply_bytes 170",
    ]
