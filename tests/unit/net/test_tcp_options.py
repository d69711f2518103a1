"""MSS clamping: lowered in SYN and SYN-ACK, never raised, everything else unchanged."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import TCP

from featherlb.model import Hook, PacketInfo, Service
from tests.builders import ip, parse, pseudo_sum, readdressed, rebuilt, split, tcp, with_checksum
from tests.world import CLIENT, ONE, VIP, World, service

CLIENT6, VIP6, ONE6 = "[2001:db8:1::7]:40000", "[2001:db8::10]:80", "[fd00::1]:8080"
LIMIT = 1400

families = pytest.mark.parametrize(
    ("client", "vip", "server"),
    [(CLIENT, VIP, ONE), (CLIENT6, VIP6, ONE6)],
    ids=["IPv4", "IPv6"],
)


def limited(server: str = ONE, vip: str = VIP, mss: int | None = LIMIT, **how: Any) -> Service:
    return replace(service(server, vips=vip, **how), mss=mss)


def mss_of(packet: bytes) -> int:
    return int(dict(parse(packet)[TCP].options)["MSS"])


def with_mss(packet: bytes, value: int) -> bytes:
    layers = parse(packet)
    layers[TCP].options = [
        (name, value if name == "MSS" else old) for name, old in layers[TCP].options
    ]
    return rebuilt(bytes(layers))


@families
@pytest.mark.parametrize("nat", ["dnat", "full"])
@pytest.mark.parametrize("announced", [0, 536, 1399, 1400, 1401, 1460, 65535])
def test_both_sides_ask_for_the_limit_at_most(
    client: str, vip: str, server: str, nat: str, announced: int
) -> None:
    source = "fd00::fe" if "[" in vip else "10.1.0.254"
    world = World(limited(server, vip, nat=nat, sources=[source]))
    options = [("MSS", announced), ("SAckOK", b""), ("WScale", 7)]
    opening = tcp(client, vip, "S", options=options)
    there = world.handle(opening)
    assert there.packet == readdressed(
        with_mss(opening, min(announced, LIMIT)), there.source, there.destination
    )
    answer = tcp(there.destination, there.source, "SA", options=options)
    back = world.handle(answer, Hook.PREROUTING if nat == "full" else Hook.POSTROUTING)
    assert back.packet == readdressed(with_mss(answer, min(announced, LIMIT)), vip, client)


def test_nothing_is_limited_unless_configured() -> None:
    world = World(limited(mss=None))
    assert mss_of(world.handle(tcp(CLIENT, VIP, "S", options=[("MSS", 65495)])).packet) == 65495


def test_other_segments_are_ignored() -> None:
    world = World(limited())
    world.connect()
    segment = tcp(CLIENT, VIP, "PA", options=[("MSS", 9000)], payload=b"x")
    assert world.handle(segment).packet == readdressed(segment, CLIENT, ONE)


def test_a_changed_limit_holds_for_retransmissions_too() -> None:
    world = World(limited())
    opening = tcp(CLIENT, VIP, "S", options=[("MSS", 1460)])
    assert mss_of(world.handle(opening).packet) == 1400
    world.apply(limited(mss=1300))
    assert mss_of(world.handle(opening).packet) == 1300


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@given(st.integers(0, 65535), st.integers(88, 65535))
def test_at_any_place_among_the_options(padding: int, announced: int, limit: int) -> None:
    """At an odd offset its two bytes belong to two words of the checksum."""
    world = World(limited(mss=limit))
    options = [("NOP", None)] * padding + [("MSS", announced)]
    opening = tcp(CLIENT, VIP, "S", options=options)
    expected = readdressed(with_mss(opening, min(announced, limit)), CLIENT, ONE)
    assert world.handle(opening).packet == expected


def test_a_checksum_that_is_not_ready() -> None:
    world = World(limited())
    opening = tcp(CLIENT, VIP, "S", options=[("MSS", 1460)])
    partial = with_checksum(opening, pseudo_sum(opening))
    outcome = world.handle(partial, info=PacketInfo.CHECKSUM_NOT_READY)
    assert outcome.packet == readdressed(with_mss(opening, LIMIT), CLIENT, ONE)


def raw_syn(src: str, dst: str, options: bytes, payload: bytes = b"") -> bytes:
    """A SYN whose options are these bytes, whatever they mean."""
    (_, source), (_, destination) = split(src), split(dst)
    header = TCP(sport=source, dport=destination, flags="S", dataofs=5 + len(options) // 4)
    return bytes(ip(src, dst) / header / (options + payload))


@pytest.mark.parametrize(
    "options",
    [
        b"\x01\x01\x01\x02",  # the length is missing
        b"\x01\x01\x02\x04",  # the value is missing
        b"\x01\x02\x04\xff",
        b"\x02\x00\xff\xff",  # impossible lengths
        b"\x02\x01\xff\xff",
        b"\x02\xff\xff\xff",
        b"\x02\x03\xff\xff",  # lengths that are wrong for this option
        b"\x02\x05\xff\xff\xff\x00\x00\x00",
        b"\x00\x02\x04\xff\xff\x00\x00\x00",  # after the end of the options
        b"\x03\x00\x02\x04\xff\xff\x00\x00",  # after a malformed one
        b"",
    ],
)
def test_malformed_options_stay_as_they_are(options: bytes) -> None:
    payload = b"\x02\x04\xff\xff"  # no option, but it would be one if it were read as such
    outcome = World(limited()).handle(raw_syn(CLIENT, VIP, options, payload))
    assert outcome.packet == raw_syn(CLIENT, ONE, options, payload)


@given(st.binary(max_size=40), st.binary(max_size=8))
def test_any_options(options: bytes, payload: bytes) -> None:
    """Never an exception; only a value changes, and the checksum is right."""
    options += bytes(-len(options) % 4)
    outcome = World(limited()).handle(raw_syn(CLIENT, VIP, options, payload))
    after = outcome.packet[40 : 40 + len(options)]
    assert outcome.packet == raw_syn(CLIENT, ONE, after, payload)
    changed = [at for at in range(len(options)) if after[at] != options[at]]
    if changed:
        assert LIMIT.to_bytes(2, "big") in after
        assert changed[-1] - changed[0] <= 1
