"""The parser: whole packets against scapy, and arbitrary bytes."""

from ipaddress import IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IPOption_RR, IPOption_Timestamp

from featherlb.model.reason import Reason
from featherlb.net.packet import Packet
from tests.builders import icmp, ip, ipv6_extensions, parse, rebuilt, tcp, udp

OK = -1
CLIENT, VIP = "198.51.100.7:40000", "192.0.2.10:80"
CLIENT6, VIP6 = "[2001:db8:1::7]:40000", "[2001:db8:ffff:eeee:dddd:cccc:bbbb:10]:80"

WHOLE = {
    "tcp, IPv4": tcp(CLIENT, VIP, "PA", payload=b"hello"),
    "tcp with options": tcp(CLIENT, VIP, "S", options=[("MSS", 1460), ("WScale", 7)]),
    "tcp, IP options": tcp(
        CLIENT, VIP, header=ip(CLIENT, VIP, options=[IPOption_RR(), IPOption_Timestamp()])
    ),
    "tcp, don't fragment": tcp(CLIENT, VIP, header=ip(CLIENT, VIP, flags="DF")),
    "tcp, the reserved bit of RFC 3514": tcp(CLIENT, VIP, header=ip(CLIENT, VIP, flags="evil")),
    "udp, IPv4": udp(CLIENT, VIP, b"question"),
    "udp without payload": udp(CLIENT, VIP),
    "tcp, IPv6": tcp(CLIENT6, VIP6, "PA", payload=b"hello"),
    "udp, IPv6": udp(CLIENT6, VIP6, b"question"),
    "tcp, all extension headers": tcp(
        CLIENT6, VIP6, header=ipv6_extensions(CLIENT6, VIP6, "hop-by-hop", "destination", "routing")
    ),
    "tcp, eight extension headers": tcp(
        CLIENT6, VIP6, header=ipv6_extensions(CLIENT6, VIP6, *["destination"] * 8)
    ),
    "udp, extension header": udp(
        CLIENT6, VIP6, b"x", header=ipv6_extensions(CLIENT6, VIP6, "destination")
    ),
}
every_whole = pytest.mark.parametrize("raw", WHOLE.values(), ids=WHOLE.keys())

FIELDS = [
    "ip",
    "transport",
    "payload",
    "end",
    "version",
    "protocol",
    "flags",
    "ports",
    "src_high",
    "src_low",
    "dst_high",
    "dst_low",
]


def read(raw: bytes, *, before: bytes = b"", after: bytes = b"") -> tuple[int, dict[str, int]]:
    """Parse `raw` between other bytes of the buffer: the answer, and the fields if it is OK.

    The answer must not depend on what stands around the packet, and the buffer must not change.
    """
    packet = Packet()
    buffer = bytearray(before + raw + after)
    packet.attach(buffer)
    answer = packet.parse(len(before), len(raw))
    assert bytes(buffer) == before + raw + after
    if answer != OK:
        return answer, {}
    fields = {name: getattr(packet, name) for name in FIELDS}
    if packet.protocol == 6:
        fields |= {"sequence": packet.sequence, "acknowledgement": packet.acknowledgement}
    return answer, fields


def words(address: str) -> tuple[int, int]:
    """An address as the two words of the core."""
    parsed = ip_address(address)
    value = int(parsed) if isinstance(parsed, IPv6Address) else 0xFFFF << 32 | int(parsed)
    return value >> 64, value & 2**64 - 1


@every_whole
@pytest.mark.parametrize("offset", [0, 1, 52])
@pytest.mark.parametrize("trailing", [0, 1, 18])
def test_a_whole_packet_is_read_as_scapy_reads_it(raw: bytes, offset: int, trailing: int) -> None:
    seen: Any = parse(raw)
    transport = seen["TCP"] if "TCP" in seen else seen["UDP"]
    expected = {
        "ip": offset,
        "transport": offset + len(raw) - len(bytes(transport)),
        "payload": offset + len(raw) - len(bytes(transport.payload)),
        "end": offset + len(raw),
        "version": seen.version,
        "protocol": 6 if "TCP" in seen else 17,
        "flags": int(transport.flags) & 0x17 if "TCP" in seen else 0,
        "ports": transport.sport << 16 | transport.dport,
    }
    expected["src_high"], expected["src_low"] = words(seen.src)
    expected["dst_high"], expected["dst_low"] = words(seen.dst)
    if "TCP" in seen:
        expected |= {"sequence": transport.seq, "acknowledgement": transport.ack}
    # Trailing bytes are part of what was received, but not of the packet.
    padded = raw + b"\xa5" * trailing
    assert read(padded, before=b"\xff" * offset) == (OK, expected)


@every_whole
def test_a_packet_truncated_anywhere_is_malformed(raw: bytes) -> None:
    for length in range(len(raw)):
        # The rest still stands in the buffer: the length alone must decide.
        assert read(raw[:length], after=raw[length:]) == (Reason.MALFORMED, {}), length
        assert read(raw[:length]) == (Reason.MALFORMED, {}), length


@every_whole
def test_a_packet_whose_ip_length_ends_within_its_headers_is_malformed(raw: bytes) -> None:
    _, fields = read(raw)
    size = 20 if fields["protocol"] == 6 else 8
    at, base = (2, 0) if fields["version"] == 4 else (4, 40)
    for length in range(fields["transport"] + size - base):
        short = bytearray(raw)
        short[at : at + 2] = length.to_bytes(2, "big")
        assert read(bytes(short)) == (Reason.MALFORMED, {}), length


@every_whole
def test_a_packet_whose_ip_length_exceeds_what_came_is_malformed(raw: bytes) -> None:
    at, base = (2, 0) if raw[0] >> 4 == 4 else (4, 40)
    for length in (len(raw) + 1, len(raw) + 2, 65535):
        long = bytearray(raw)
        long[at : at + 2] = (min(length - base, 65535)).to_bytes(2, "big")
        assert read(bytes(long), after=bytes(65535)) == (Reason.MALFORMED, {}), length


@pytest.mark.parametrize("version", [v for v in range(16) if v not in (4, 6)])
def test_other_versions_are_malformed(version: int) -> None:
    raw = bytearray(WHOLE["tcp, IPv4"])
    raw[0] = version << 4 | 5
    assert read(bytes(raw)) == (Reason.MALFORMED, {})


@pytest.mark.parametrize("version", [4, 6])
def test_a_packet_under_the_header_of_the_other_family_is_malformed(version: int) -> None:
    raw = bytearray(WHOLE["tcp, IPv6" if version == 4 else "tcp, IPv4"])
    raw[0] = version << 4 | 5
    assert read(bytes(raw)) == (Reason.MALFORMED, {})


@pytest.mark.parametrize("words32", range(5))
def test_an_ip_header_shorter_than_20_bytes_is_malformed(words32: int) -> None:
    raw = bytearray(WHOLE["tcp, IPv4"])
    raw[0] = 0x40 | words32
    assert read(bytes(raw)) == (Reason.MALFORMED, {})


@pytest.mark.parametrize("words32", range(16))
def test_every_tcp_data_offset(words32: int) -> None:
    raw = bytearray(tcp(CLIENT, VIP, payload=b"0123456789ab"))  # room for 8 words
    raw[32] = words32 << 4
    answer, fields = read(bytes(raw), after=bytes(64))
    if 5 <= words32 <= 8:
        assert (answer, fields["payload"]) == (OK, 20 + 4 * words32)
    else:
        assert answer == Reason.MALFORMED


@pytest.mark.parametrize("length", [*range(20), 65535])
def test_every_udp_length(length: int) -> None:
    """A datagram may end before its IP packet does (RFC 768, RFC 9868); never behind it."""
    raw = bytearray(udp(CLIENT, VIP, b"0123456789"))
    raw[24:26] = length.to_bytes(2, "big")
    answer, fields = read(bytes(raw), after=bytes(65535))
    if 8 <= length <= 18:
        assert (answer, fields["end"]) == (OK, 20 + length)
    else:
        assert answer == Reason.MALFORMED


ALLOWED = {"S", "SA", "A", "FA", "R", "RA"}


@pytest.mark.parametrize("bits", range(256))
@pytest.mark.parametrize("endpoints", [(CLIENT, VIP), (CLIENT6, VIP6)], ids=["IPv4", "IPv6"])
def test_every_combination_of_tcp_flags(bits: int, endpoints: tuple[str, str]) -> None:
    """The allowed ones as Linux's conntrack lists them; PSH, URG, ECE and CWR are free."""
    raw = bytearray(tcp(*endpoints))
    raw[-7] = bits
    names = "".join(name for bit, name in enumerate("FSR A") if bits >> bit & 1).replace(" ", "")
    answer, fields = read(bytes(raw))
    assert answer == (OK if names in ALLOWED else Reason.BAD_FLAGS)
    if answer == OK:
        assert fields["flags"] == bits & 0x17


@pytest.mark.parametrize(
    "header",
    [
        ip(CLIENT, VIP, flags="MF"),
        ip(CLIENT, VIP, frag=1),
        ip(CLIENT, VIP, frag=8191),
        ip(CLIENT, VIP, flags="MF", frag=185),
        ip(CLIENT, VIP, flags="DF", frag=185),
        ipv6_extensions(CLIENT6, VIP6, "fragment"),
        ipv6_extensions(CLIENT6, VIP6, "hop-by-hop", "routing", "fragment"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("build", [tcp, udp])
def test_fragments(header: Any, build: Any) -> None:
    version6 = header.version == 6
    raw = build(CLIENT6 if version6 else CLIENT, VIP6 if version6 else VIP, header=header)
    assert read(raw) == (Reason.FRAGMENT, {})


@pytest.mark.parametrize(
    "raw",
    [
        icmp("198.51.100.7", "192.0.2.10"),
        icmp("2001:db8::7", "2001:db8::10"),
        bytes(ip(CLIENT, VIP, proto=132) / bytes(40)),  # SCTP
        bytes(ip(CLIENT6, VIP6, nh=59)),  # no next header
        bytes(ip(CLIENT6, VIP6, nh=51) / bytes(40)),  # authentication header
        tcp(CLIENT6, VIP6, header=ipv6_extensions(CLIENT6, VIP6, *["destination"] * 9)),
    ],
    ids=["icmp", "icmp in IPv6", "sctp", "nothing", "authentication", "nine extension headers"],
)
def test_protocols_that_are_not_balanced(raw: bytes) -> None:
    assert read(raw) == (Reason.UNSUPPORTED, {})


def test_an_extension_header_beyond_the_packet_is_malformed() -> None:
    raw = bytearray(WHOLE["udp, extension header"])
    for length in range(256):
        raw[41] = length
        answer, _ = read(bytes(raw), after=bytes(3000))
        # 0 is right; with 1 the 8 bytes of the UDP header count as option, and nothing is left.
        assert answer == (OK if length == 0 else Reason.MALFORMED), length


@pytest.mark.parametrize(
    ("src", "dst"),
    [
        ("[::ffff:198.51.100.7]:40000", VIP6),
        (CLIENT6, "[::ffff:192.0.2.10]:80"),
        ("[::ffff:198.51.100.7]:40000", "[::ffff:192.0.2.10]:80"),
    ],
)
def test_mapped_addresses_in_an_ipv6_header_are_malformed(src: str, dst: str) -> None:
    """In the core they stand for IPv4; on the wire nobody may send them (RFC 4942 section 2.2)."""
    assert read(tcp(src, dst)) == (Reason.MALFORMED, {})


@every_whole
def test_the_transport_checksum_is_scapys(raw: bytes) -> None:
    packet = Packet()
    buffer = bytearray(raw)
    packet.attach(buffer)
    assert packet.parse(0, len(raw)) == OK
    at = packet.transport + (16 if packet.protocol == 6 else 6)
    expected = int.from_bytes(rebuilt(raw)[at : at + 2], "big")
    buffer[at : at + 2] = b"\0\0"
    addresses = packet.src_high, packet.src_low, packet.dst_high, packet.dst_low
    assert packet.transport_checksum(*addresses) == expected


def check_any(raw: bytes) -> None:
    """Nothing raises, and the answer depends on the packet's own bytes alone."""
    alone = read(raw)
    packet = Packet()
    for fill in (b"\x00", b"\xff", b"\x45"):
        buffer = bytearray(fill * 64 + raw + fill * 64)
        packet.attach(buffer)
        assert packet.parse(64, len(raw)) == alone[0]
        if alone[0] == OK:
            assert 64 <= packet.transport <= packet.payload <= packet.end <= 64 + len(raw)
            for name, value in alone[1].items():
                shift = 64 if name in ("ip", "transport", "payload", "end") else 0
                assert getattr(packet, name) == value + shift


@given(st.binary(max_size=120))
def test_arbitrary_bytes(raw: bytes) -> None:
    check_any(raw)


@given(st.sampled_from(sorted(WHOLE.values())), st.data())
def test_real_packets_with_bytes_changed_and_truncated(raw: bytes, data: st.DataObject) -> None:
    changed = bytearray(raw)
    for at, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=4)
    ):
        changed[at] = byte
    check_any(bytes(changed[: data.draw(st.integers(0, len(raw)))]))
