"""Translation: every row of nat.py's table, and the reverse translation of any packet."""

import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherlb.model import Hook, PacketInfo, Protocol, Verdict
from tests.builders import (
    ip,
    parse,
    pseudo_sum,
    readdressed,
    rebuilt,
    tcp,
    udp,
    with_checksum,
)
from tests.world import World, endpoints, service

NOT_READY = PacketInfo.CHECKSUM_NOT_READY
GSO = PacketInfo.CHECKSUM_NOT_READY | PacketInfo.GSO

ADDRESSES = {
    4: ("198.51.100.7:40000", "192.0.2.10:80", "10.1.0.1:8080", "10.1.0.254"),
    6: ("[2001:db8:1::7]:40000", "[2001:db8::10]:80", "[fd00::1]:8080", "fd00::fe"),
}
BUILD: dict[Protocol, Callable[..., bytes]] = {Protocol.TCP: tcp, Protocol.UDP: udp}


class Path:
    """A flow that is open in both directions, and the packets that go either way."""

    def __init__(self, protocol: Protocol, version: int, nat: str, local: bool) -> None:
        self.client, self.vip, self.backend, source = ADDRESSES[version]
        self.build = BUILD[protocol]
        self.world = World(
            service(
                self.backend,
                vips=self.vip,
                nat=nat,
                protocol=protocol,
                sources=[source],
                local=local,
            )
        )
        self.there = Hook.OUTPUT if local else Hook.PREROUTING
        self.back = Hook.PREROUTING if nat == "full" else Hook.INPUT if local else Hook.POSTROUTING
        opening = tcp(self.client, self.vip, "S") if protocol is Protocol.TCP else self.packet(0)
        self.source, _ = endpoints(self.world.handle(opening, self.there).packet)

    def packet(self, reply: int, payload: bytes = b"some payload") -> bytes:
        ends = (self.backend, self.source) if reply else (self.client, self.vip)
        return self.build(*ends, payload=payload)

    def expected(self, packet: bytes, reply: int) -> bytes:
        """The packet with the other side's addresses and all checksums right."""
        ends = (self.vip, self.client) if reply else (self.source, self.backend)
        return readdressed(packet, *ends)

    def translate(self, packet: bytes, reply: int, info: PacketInfo = PacketInfo.NONE) -> bytes:
        outcome = self.world.handle(packet, self.back if reply else self.there, info)
        assert outcome.verdict is Verdict.REWRITTEN
        return outcome.packet


def checksum(packet: bytes) -> int:
    layers = parse(packet)
    return int((layers["TCP"] if "TCP" in layers else layers["UDP"]).chksum)


ROWS = [
    # the kernel says, protocol, local: what stands in the field afterwards
    (PacketInfo.NONE, Protocol.TCP, False, "full sum"),
    (PacketInfo.NONE, Protocol.TCP, True, "full sum"),
    (PacketInfo.NONE, Protocol.UDP, False, "full sum"),
    (PacketInfo.NONE, Protocol.UDP, True, "full sum"),
    (NOT_READY, Protocol.TCP, False, "full sum"),
    (NOT_READY, Protocol.TCP, True, "full sum"),
    (NOT_READY, Protocol.UDP, False, "full sum"),
    (NOT_READY, Protocol.UDP, True, "full sum"),
    (GSO, Protocol.TCP, False, "untouched"),
    (GSO, Protocol.TCP, True, "full sum"),
    (GSO, Protocol.UDP, False, "pseudo-header sum"),
    (GSO, Protocol.UDP, True, "pseudo-header sum"),
]


@pytest.mark.parametrize("reply", [0, 1], ids=["forward", "reply"])
@pytest.mark.parametrize("nat", ["dnat", "full"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("info", "protocol", "local", "field"),
    ROWS,
    ids=[f"{info!r}, {proto}, {'local' if local else 'away'}" for info, proto, local, _ in ROWS],
)
def test_the_table(
    info: PacketInfo,
    protocol: Protocol,
    local: bool,
    field: str,
    version: int,
    nat: str,
    reply: int,
) -> None:
    """Both ends are local or both are away, so the row holds for both directions."""
    path = Path(protocol, version, nat, local)
    for payload in (b"", b"\0" * 3, b"odd", b"even", bytes(range(256)) * 200):
        packet = path.packet(reply, payload)
        if info & NOT_READY:
            packet = with_checksum(packet, pseudo_sum(packet))
        whole = path.expected(packet, reply)
        expected = {
            "full sum": whole,
            "untouched": with_checksum(whole, checksum(packet)),
            "pseudo-header sum": with_checksum(whole, pseudo_sum(whole)),
        }[field]
        assert path.translate(packet, reply, info) == expected


@pytest.mark.parametrize(
    ("client_is_local", "backend_is_local"), list(itertools.product([False, True], repeat=2))
)
@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_gso_packets_to_this_host_are_summed(
    client_is_local: bool, backend_is_local: bool, nat: str
) -> None:
    """Forward the backend's place counts, for replies the client's."""
    client, vip, backend, _ = ADDRESSES[4]
    world = World(service(backend, nat=nat, local=backend_is_local))
    hook = Hook.OUTPUT if client_is_local else Hook.PREROUTING
    source = world.handle(tcp(client, vip, "S"), hook).source
    packet = with_checksum(tcp(client, vip, payload=b"x" * 3000), 0xDEAD)
    there = world.handle(packet, hook, GSO).packet
    assert (rebuilt(there) == there) is backend_is_local
    assert (checksum(there) == 0xDEAD) is not backend_is_local
    late = Hook.INPUT if client_is_local else Hook.POSTROUTING
    packet = with_checksum(tcp(backend, source, payload=b"x" * 3000), 0xDEAD)
    back = world.handle(packet, Hook.PREROUTING if nat == "full" else late, GSO).packet
    assert (rebuilt(back) == back) is client_is_local
    assert (checksum(back) == 0xDEAD) is not client_is_local


@pytest.mark.parametrize("reply", [0, 1])
@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_udp_without_a_checksum_stays_without(nat: str, reply: int) -> None:
    path = Path(Protocol.UDP, 4, nat, False)
    packet = with_checksum(path.packet(reply), 0)
    assert path.translate(packet, reply) == with_checksum(path.expected(packet, reply), 0)


@pytest.mark.parametrize("info", [PacketInfo.NONE, NOT_READY])
@pytest.mark.parametrize("version", [4, 6])
def test_a_udp_checksum_of_zero_is_sent_as_ones(version: int, info: PacketInfo) -> None:
    """Zero would mean that there is none (RFC 768)."""
    path = Path(Protocol.UDP, version, "dnat", False)
    sum_of_zeros = checksum(path.expected(path.packet(0, b"\0\0"), 0))
    packet = path.packet(0, sum_of_zeros.to_bytes(2, "big"))
    if info:
        packet = with_checksum(packet, pseudo_sum(packet))
    translated = path.translate(packet, 0, info)
    assert checksum(translated) == 0xFFFF
    assert translated == path.expected(packet, 0)


def test_a_tcp_checksum_of_zero_is_sent_as_zero() -> None:
    path = Path(Protocol.TCP, 4, "dnat", False)
    sum_of_zeros = checksum(path.expected(path.packet(0, b"\0\0"), 0))
    packet = path.packet(0, sum_of_zeros.to_bytes(2, "big"))
    for info in (PacketInfo.NONE, NOT_READY):
        translated = path.translate(packet, 0, info)
        assert checksum(translated) == 0
        assert translated == path.expected(packet, 0)


@pytest.mark.parametrize("version", [4, 6])
def test_bytes_after_a_udp_datagram_are_not_summed(version: int) -> None:
    """The packet is longer than the datagram in it (RFC 9868)."""
    path = Path(Protocol.UDP, version, "dnat", False)
    packet = udp(path.client, path.vip, b"0123456789", len=8 + 4)
    datagram = path.packet(0, b"0123")
    expected = checksum(path.expected(datagram, 0))
    translated = path.translate(packet, 0, NOT_READY)
    assert checksum(translated) == expected
    assert translated[-6:] == b"456789"


@pytest.mark.parametrize("reply", [0, 1])
def test_ip_options_and_trailing_bytes_are_kept(reply: int) -> None:
    path = Path(Protocol.TCP, 4, "full", False)
    ends = (path.backend, path.source) if reply else (path.client, path.vip)
    packet = tcp(*ends, payload=b"abc", header=ip(*ends, options=b"\x94\x04\0\0", ttl=3, tos=0x2E))
    for info in (PacketInfo.NONE, NOT_READY):
        translated = path.translate(packet + b"trailer", reply, info)
        assert translated == path.expected(packet, reply) + b"trailer"


def test_a_wrong_checksum_stays_wrong() -> None:
    """A packet damaged on its way must not reach the receiver as a good one (RFC 3022 4.1)."""
    path = Path(Protocol.TCP, 4, "full", False)
    packet = bytearray(path.packet(0))
    packet[-1] ^= 0x10
    translated = path.translate(bytes(packet), 0)
    assert checksum(translated) != checksum(rebuilt(translated))
    header = bytearray(path.packet(0))
    header[8] ^= 1  # the TTL
    translated = path.translate(bytes(header), 0)
    assert translated[10:12] != rebuilt(translated)[10:12]


def swapped(packet: bytes) -> bytes:
    """The packet that goes the other way: no checksum changes by it."""
    version, at = packet[0] >> 4, (12 if packet[0] >> 4 == 4 else 8)
    size = 4 if version == 4 else 16
    transport = (packet[0] & 15) * 4 if version == 4 else 40
    return (
        packet[:at]
        + packet[at + size : at + 2 * size]
        + packet[at : at + size]
        + packet[at + 2 * size : transport]
        + packet[transport + 2 : transport + 4]
        + packet[transport : transport + 2]
        + packet[transport + 4 :]
    )


PATHS = {
    (protocol, version, nat): Path(protocol, version, nat, False)
    for protocol in Protocol
    for version in (4, 6)
    for nat in ("dnat", "full")
}


@given(
    key=st.sampled_from(sorted(PATHS)),
    payload=st.binary(max_size=60),
    tos=st.integers(0, 255),
    ttl=st.integers(0, 255),
    # 0xFFFF stands for 0, which a correct sender never writes in TCP; 0 is "none" in UDP.
    field=st.none() | st.integers(1, 0xFFFE),
)
def test_translation_and_its_reverse_give_the_identical_packet(
    key: tuple[Protocol, int, str], payload: bytes, tos: int, ttl: int, field: int | None
) -> None:
    """Whatever else stands in the packet, a wrong checksum included."""
    path = PATHS[key]
    _, version, _ = key
    header = (
        ip(path.client, path.vip, tos=tos, ttl=ttl)
        if version == 4
        else ip(path.client, path.vip, tc=tos, hlim=ttl)
    )
    packet = path.build(path.client, path.vip, payload=payload, header=header)
    if field is not None:
        packet = with_checksum(packet, field)
    there = path.translate(packet, 0)
    if field is None:
        assert there == path.expected(packet, 0)
    assert swapped(path.translate(swapped(there), 1)) == packet
