"""ICMP errors: what a client or a backend gets must look as if nothing had been translated.

The oracle for an error is the error about the original packet: translate a packet, let somebody
complain about the result, and the complaint that arrives must quote the packet that was sent.
"""

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6, in6_chksum

from featherlb.model import Hook, PacketInfo, Protocol, Timeouts, Verdict
from featherlb.model.reason import Reason
from tests.builders import ip, parse, rfc1071, split, tcp, udp, with_checksum
from tests.world import Outcome, World, endpoints, service

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING, WIRE = Hook
ENDS = {
    4: ("198.51.100.7:40000", "192.0.2.10:80", "10.1.0.1:8080", "10.1.0.254", "10.9.9.9"),
    6: ("[2001:db8:1::7]:40000", "[2001:db8::10]:80", "[fd00::1]:8080", "fd00::fe", "fd00:9::9"),
}
TYPES = {4: [(3, 4), (3, 3), (11, 0), (12, 0)], 6: [(1, 4), (2, 0), (3, 0), (4, 1)]}
REST = (1400).to_bytes(4, "big")
"""What follows the checksum: an MTU, where the error has one."""
QUOTE = {4: 28, 6: 48}
"""IP header and eight bytes: the least that is quoted."""


def message(src: str, dst: str, kind: int, code: int, rest: bytes, data: bytes) -> bytes:
    """An ICMP message of the family of its addresses; `rest` are the bytes after the checksum."""
    body = bytes([kind, code, 0, 0]) + rest + data
    if ip_address(src).version == 4:
        checksum = rfc1071(body) ^ 0xFFFF
        header = IP(src=src, dst=dst, proto=1)
    else:
        header = IPv6(src=src, dst=dst, nh=58)
        checksum = in6_chksum(58, header, body)
    return bytes(header / (body[:2] + checksum.to_bytes(2, "big") + body[4:]))


class Path:
    """A flow between a client and a backend, and the world between them."""

    def __init__(self, version: int, nat: str = "dnat", protocol: Protocol = Protocol.TCP) -> None:
        self.version = version
        self.full = nat == "full"
        self.client, self.vip, self.backend, source, self.router = ENDS[version]
        self.tcp = protocol is Protocol.TCP
        self.world = World(
            service(
                self.backend,
                vips=self.vip,
                nat=nat,
                protocol=protocol,
                sources=[source] if self.full else [],
            )
        )
        if self.tcp:
            self.connection = self.world.connect(self.client, self.vip)
        opened = self.world.handle(self.sent(0))
        self.source = opened.source
        self.late = PREROUTING if self.full else POSTROUTING

    def sent(self, reply: int, payload: bytes = b"some payload") -> bytes:
        """A packet as its sender makes it."""
        ends = (self.backend, self.source) if reply else (self.client, self.vip)
        if not self.tcp:
            return udp(*ends, payload=payload)
        seq, ack = self.connection.sent, self.connection.replied
        if reply:
            seq, ack = ack, seq
        return tcp(*ends, payload=payload, seq=seq, ack=ack)

    def arrives(self, packet: bytes, reply: int) -> bytes:
        """What becomes of it."""
        outcome = self.world.handle(packet, self.late if reply else PREROUTING)
        assert outcome.verdict is Verdict.REWRITTEN
        return outcome.packet

    def error(
        self, about: bytes, kind: int, code: int, rest: bytes = REST, by: str | None = None
    ) -> bytes:
        """An error about a packet, from a router to the packet's sender."""
        return message(by or self.router, parse(about).src, kind, code, rest, about)

    def hook(self, reply: int) -> Hook:
        """Where an error about a reply or a forward packet is rewritten."""
        return PREROUTING if reply else self.late

    def seen_from(self, reply: int) -> str:
        """Where it then seems to come from."""
        if not reply:
            return split(self.vip)[0]
        return split(self.source)[0] if self.full else self.router


versions = pytest.mark.parametrize("version", [4, 6])
modes = pytest.mark.parametrize("nat", ["dnat", "full"])
directions = pytest.mark.parametrize("about_reply", [0, 1], ids=["forward", "reply"])
PATHS = {
    (version, nat, protocol): Path(version, nat, protocol)
    for version in (4, 6)
    for nat in ("dnat", "full")
    for protocol in Protocol
}


@given(
    st.sampled_from(sorted(PATHS)),
    st.integers(0, 1),
    st.binary(max_size=600),
    st.integers(0, 700),
    st.binary(min_size=4, max_size=4),
    st.integers(0, 3),
    st.binary(max_size=9),
)
def test_an_error_is_the_one_about_the_original(
    path_of: tuple[int, str, Protocol],
    about_reply: int,
    payload: bytes,
    quoted: int,
    rest: bytes,
    kind: int,
    extension: bytes,
) -> None:
    """Whatever is quoted of it, and whatever follows (RFC 4884)."""
    path = PATHS[path_of]
    original = path.sent(about_reply, payload)
    translated = path.arrives(original, about_reply)
    size = QUOTE[path.version] + quoted
    given_error = message(
        path.router,
        parse(translated).src,
        *TYPES[path.version][kind],
        rest,
        translated[:size] + (extension if size >= len(translated) else b""),
    )
    # Half a checksum can't be updated: the byte stays as the router saw it.
    halved = path_of[2] is Protocol.TCP and quoted == 9
    shown = original[: size - 1] + translated[size - 1 : size] if halved else original[:size]
    expected = message(
        path.seen_from(about_reply),
        parse(original).src,
        *TYPES[path.version][kind],
        rest,
        shown + (extension if size >= len(translated) else b""),
    )
    outcome = path.world.handle(given_error, path.hook(about_reply))
    if has_tiny_mtu(path.version, kind, rest):
        assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.FORGED_ERROR)
    else:
        assert outcome.reason is Reason.ICMP_ERROR
        assert outcome.packet == expected


def has_tiny_mtu(version: int, kind: int, rest: bytes) -> bool:
    """Whether it says that a packet is too long for a link that no link is as short as."""
    if version == 4:
        return kind == 0 and 0 < int.from_bytes(rest[2:], "big") < 552
    return kind == 1 and int.from_bytes(rest, "big") < 1280


# What is forged


@versions
@modes
@directions
def test_an_error_quotes_a_segment_in_flight(version: int, nat: str, about_reply: int) -> None:
    """Who doesn't see the connection doesn't know its numbers (RFC 5927 section 4.1)."""
    path = Path(version, nat)
    translated = path.arrives(path.sent(about_reply, bytes(100)), about_reply)
    first = path.connection.replied if about_reply else path.connection.sent
    kind, code = TYPES[version][0]

    def quoting(number: int) -> Reason:
        at = QUOTE[version] - 4
        number &= 0xFFFFFFFF
        about = translated[:at] + number.to_bytes(4, "big") + translated[at + 4 :]
        error = path.error(about, kind, code)
        return path.world.handle(error, path.hook(about_reply)).reason

    for inside in (first - 1, first, first + 50, first + 100):
        assert quoting(inside) is Reason.ICMP_ERROR
    for outside in (first - 2, first + 101, first + (1 << 31), 0x5A5A5A5A):
        assert quoting(outside) is Reason.FORGED_ERROR
    # Once it has arrived, nobody can complain.
    if about_reply:
        path.connection.replied += 100
        path.arrives(path.sent(0, b""), 0)
    else:
        path.connection.sent = (path.connection.sent + 100) & 0xFFFFFFFF
        path.arrives(path.sent(1, b""), 1)
    assert quoting(first + 50) is Reason.FORGED_ERROR


@versions
def test_a_syn_without_an_answer_is_in_flight(version: int) -> None:
    path = Path(version)
    syn = tcp("198.51.100.9:1" if version == 4 else "[2001:db8:1::9]:1", path.vip, "S", seq=5)
    opened = path.world.handle(syn)
    error = path.error(opened.packet, *TYPES[version][2])
    assert path.world.handle(error, POSTROUTING).reason is Reason.ICMP_ERROR


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(
    ("version", "mtu", "real"),
    [
        (4, 0, True),  # a router from before RFC 1191
        (4, 68, False),
        (4, 551, False),
        (4, 552, True),
        (6, 0, False),
        (6, 1279, False),
        (6, 1280, True),
        (6, 1 << 31, True),
    ],
)
def test_an_mtu_is_one_that_links_have(
    version: int, mtu: int, real: bool, protocol: Protocol
) -> None:
    path = Path(version, protocol=protocol)
    kind, code = (3, 4) if version == 4 else (2, 0)
    error = path.error(path.arrives(path.sent(0), 0), kind, code, mtu.to_bytes(4, "big"))
    reason = path.world.handle(error, POSTROUTING).reason
    assert reason is (Reason.ICMP_ERROR if real else Reason.FORGED_ERROR)


def test_quoted_checksums_of_udp() -> None:
    """None stays none; a computed zero is all ones (RFC 768)."""
    path = PATHS[4, "dnat", Protocol.UDP]
    original = with_checksum(path.sent(0), 0)
    outcome = path.world.handle(path.error(path.arrives(original, 0), 3, 3), POSTROUTING)
    assert outcome.packet[28:] == original
    blank = parse(udp(path.client, path.vip, bytes(2)))["UDP"].chksum
    original = udp(path.client, path.vip, blank.to_bytes(2, "big"))
    assert parse(original)["UDP"].chksum == 0xFFFF
    outcome = path.world.handle(path.error(path.arrives(original, 0), 3, 3), POSTROUTING)
    assert outcome.packet[28:] == original


@versions
@modes
@directions
@pytest.mark.parametrize("hook", Hook)
def test_each_error_is_rewritten_at_its_hooks(
    version: int, nat: str, about_reply: int, hook: Hook
) -> None:
    path = Path(version, nat)
    translated = path.arrives(path.sent(about_reply), about_reply)
    outcome = path.world.handle(path.error(translated, *TYPES[version][0]), hook)
    late = nat == "dnat" and not about_reply
    expected = {OUTPUT, INPUT, FORWARD, POSTROUTING} if late else {OUTPUT, PREROUTING}
    assert (outcome.reason is Reason.ICMP_ERROR) is (hook in expected)
    assert outcome.reason in (Reason.ICMP_ERROR, Reason.NOT_OURS)


@versions
@modes
@directions
def test_a_rewritten_error_is_not_rewritten_again(version: int, nat: str, about_reply: int) -> None:
    path = Path(version, nat)
    translated = path.arrives(path.sent(about_reply), about_reply)
    once = path.world.handle(path.error(translated, *TYPES[version][0]), OUTPUT)
    for hook in (POSTROUTING, PREROUTING, INPUT):
        assert path.world.handle(once.packet, hook).reason is Reason.NOT_OURS


@versions
@modes
def test_the_balancer_speaks_for_itself(version: int, nat: str) -> None:
    """An error that its own kernel made about a translated packet keeps its source."""
    path = Path(version, nat)
    own = "10.0.0.1" if version == 4 else "fd00:8::1"
    original = path.sent(0)
    error = path.error(path.arrives(original, 0), *TYPES[version][1], by=own)
    outcome = path.world.handle(error, OUTPUT)
    assert outcome.packet == message(own, parse(original).src, *TYPES[version][1], REST, original)


@versions
@modes
def test_a_backend_on_the_balancer_speaks_for_the_vip(version: int, nat: str) -> None:
    path = Path(version, nat)
    error = path.error(path.arrives(path.sent(0), 0), *TYPES[version][1], by=split(path.backend)[0])
    seen = parse(path.world.handle(error, OUTPUT).packet)
    assert (seen.src, seen.dst) == (split(path.vip)[0], split(path.client)[0])


@versions
@directions
def test_errors_neither_end_nor_prolong_a_flow(version: int, about_reply: int) -> None:
    """RFC 5382 REQ-10."""
    path = Path(version)
    translated = path.arrives(path.sent(about_reply), about_reply)
    (before,) = path.world.flows()
    for _ in range(8):
        path.world.advance(100)
        outcome = path.world.handle(
            path.error(translated, *TYPES[version][1]), path.hook(about_reply)
        )
        assert outcome.reason is Reason.ICMP_ERROR
    (after,) = path.world.flows()
    assert after.idle == pytest.approx(800)
    assert replace(after, age=0.0, idle=0.0) == replace(before, age=0.0, idle=0.0)
    path.world.advance(Timeouts().established - 800)
    assert path.world.flows() == []


@versions
@pytest.mark.parametrize("damaged", [0, 1, 2, 4, 20, -1])
def test_a_damaged_error_is_dropped(version: int, damaged: int) -> None:
    """RFC 5508 REQ-3."""
    path = Path(version)
    error = bytearray(path.error(path.arrives(path.sent(0), 0), *TYPES[version][0]))
    # Not what says that it is an error at all, nor what it quotes.
    at = {0: QUOTE[version] - 8 + 1, 1: QUOTE[version] - 8 + 2, 2: QUOTE[version] - 8 + 5}
    error[at.get(damaged, -abs(damaged))] ^= 0x10
    outcome = path.world.handle(bytes(error), POSTROUTING)
    assert outcome.reason is Reason.BAD_CHECKSUM


@versions
def test_a_checksum_that_is_not_ready_is_completed(version: int) -> None:
    """As of packets that this host has made and left to a device to finish."""
    path = Path(version)
    original = path.sent(0)
    error = bytearray(path.error(path.arrives(original, 0), *TYPES[version][0]))
    at = QUOTE[version] - 8 + 2
    error[at : at + 2] = b"\x12\x34"
    outcome = path.world.handle(bytes(error), OUTPUT, PacketInfo.CHECKSUM_NOT_READY)
    assert outcome.packet == path.error(original, *TYPES[version][0])


def test_a_truncated_error_is_dropped() -> None:
    path = Path(4)
    error = path.error(path.arrives(path.sent(0), 0), 3, 3)
    outcome = path.world.handle(error, POSTROUTING, PacketInfo.TRUNCATED)
    assert outcome.reason is Reason.TRUNCATED


# What passes


def strangers(path: Path) -> dict[str, bytes]:
    """By description."""
    about = path.arrives(path.sent(0), 0)
    least = QUOTE[path.version]
    kind, code = TYPES[path.version][0]
    client = split(path.client)[0]
    elsewhere = "203.0.113.9" if path.version == 4 else "2001:db8:9::9"

    def error(quote: bytes, to: str = client, kind: int = kind) -> bytes:
        return message(path.router, to, kind, code, REST, quote)

    def changed(at: int, value: int) -> bytes:
        return about[:at] + bytes([value]) + about[at + 1 :]

    protocol = 9 if path.version == 4 else 6
    return {
        "of another flow": error(changed(least - 8, 0x11)),
        "to somebody else": error(about, to=elsewhere),
        "of another protocol": error(changed(protocol, 132)),
        "quoting too little": error(about[: least - 1]),
        "quoting nothing": error(b""),
        "quoting another version": error(changed(0, 0x55)),
        "quoting a packet of the other version": error(Path(10 - path.version).sent(0)),
        "about what the client sent to the VIP": error(path.sent(0)),
        "about a packet that goes the other way": error(path.sent(1), split(path.backend)[0]),
    }


@versions
def test_errors_of_others_pass(version: int) -> None:
    path = Path(version)
    for description, error in strangers(path).items():
        for hook in Hook:
            outcome = path.world.handle(error, hook)
            assert outcome.reason is Reason.NOT_OURS, (description, hook)


def test_a_later_fragment_in_the_quote_has_no_ports() -> None:
    path = Path(4)
    about = bytearray(path.arrives(path.sent(0), 0))
    about[6:8] = (0x2001).to_bytes(2, "big")
    assert path.world.handle(path.error(bytes(about), 3, 4), POSTROUTING).reason is Reason.NOT_OURS
    about[6:8] = (0x2000).to_bytes(2, "big")
    assert (
        path.world.handle(path.error(bytes(about), 3, 4), POSTROUTING).reason is Reason.ICMP_ERROR
    )


def test_a_fragment_in_the_quote_of_ipv6() -> None:
    path = Path(6, protocol=Protocol.UDP)
    about = path.arrives(path.sent(0), 0)

    def fragment(offset: int) -> bytes:
        header = bytearray(about[:40])
        header[6] = 44
        header[4:6] = (len(about) - 40 + 8).to_bytes(2, "big")
        return (
            bytes(header)
            + bytes([17, 0])
            + (offset << 3 | 1).to_bytes(2, "big")
            + bytes(4)
            + about[40:]
        )

    error = path.error(fragment(0), 2, 0)
    outcome = path.world.handle(error, POSTROUTING)
    assert outcome.reason is Reason.ICMP_ERROR
    assert outcome.packet[-len(about) + 40 :] == path.sent(0)[40:]
    assert path.world.handle(path.error(fragment(5), 2, 0), POSTROUTING).reason is Reason.NOT_OURS


@versions
def test_messages_that_are_no_errors_pass(version: int) -> None:
    path = Path(version)
    about = path.arrives(path.sent(0), 0)
    errors = {kind for kind, _ in TYPES[version]}
    for kind in set(range(256)) - errors:
        packet = message(path.router, split(path.client)[0], kind, 0, bytes(4), about)
        for hook in Hook:
            assert path.world.handle(packet, hook).reason is Reason.NOT_OURS


@versions
@given(st.data())
def test_no_error_is_read_beyond_its_end(version: int, data: st.DataObject) -> None:
    """Any bytes for a quote, of any length: never an exception, never a byte outside touched
    (which `World.handle` looks for)."""
    path = PATHS[version, "dnat", Protocol.TCP]
    about = bytearray(path.arrives(path.sent(0), 0))
    for _ in range(data.draw(st.integers(0, 4))):
        about[data.draw(st.integers(0, len(about) - 1))] = data.draw(st.integers(0, 255))
    error = path.error(path.arrives(path.sent(0), 0), *TYPES[version][0])
    start = len(error) - len(about)
    size = data.draw(st.integers(0, len(about)))
    outcome = path.world.handle(
        message(
            path.router,
            split(path.client)[0],
            *TYPES[version][0],
            error[start - 4 : start],
            bytes(about[:size]),
        ),
        POSTROUTING,
    )
    assert outcome.reason in (Reason.ICMP_ERROR, Reason.NOT_OURS, Reason.FORGED_ERROR)


# Echo


@versions
@pytest.mark.parametrize("size", [0, 1, 56, 1400])
def test_an_echo_request_to_the_vip_is_answered(version: int, size: int) -> None:
    path = Path(version)
    asked, answered = (8, 0) if version == 4 else (128, 129)
    client, vip = split(path.client)[0], split(path.vip)[0]
    data = bytes(range(256)) * 6
    outcome = path.world.handle(message(client, vip, asked, 0, b"iden", data[:size]))
    assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.ECHO)
    (answer,) = outcome.answers
    expected = message(vip, client, answered, 0, b"iden", data[:size])
    assert answer[QUOTE[version] - 8 :] == expected[QUOTE[version] - 8 :]
    seen = parse(answer)
    assert (seen.src, seen.dst) == (vip, client)
    if version == 4:
        del seen.chksum
        assert bytes(seen) == answer


@versions
def test_other_echo_requests(version: int) -> None:
    path = Path(version)
    kind = 8 if version == 4 else 128
    client, vip = split(path.client)[0], split(path.vip)[0]
    request = message(client, vip, kind, 0, b"iden", b"data")

    def fate(packet: bytes, **how: object) -> Outcome:
        return path.world.handle(packet, **how)  # type: ignore[arg-type]

    assert fate(message(client, path.router, kind, 0, b"iden", b"")).reason is Reason.NOT_OURS
    for hook in set(Hook) - {PREROUTING}:
        assert fate(request, hook=hook).reason is Reason.NOT_OURS
    damaged = request[:-1] + b"?"
    assert (fate(damaged).reason, fate(damaged).answers) == (Reason.BAD_CHECKSUM, ())
    assert fate(request, info=PacketInfo.TRUNCATED).reason is Reason.TRUNCATED
    cut = bytes(ip(path.client, path.vip, **({"proto": 1} if version == 4 else {"nh": 58})))
    assert fate(cut + bytes([kind, 0, 0, 0])[:4]).reason in (Reason.NOT_OURS, Reason.MALFORMED)


def test_ends_of_errors_are_those_of_their_flow() -> None:
    """Of several flows, the right one."""
    world = World(service("10.1.0.1:8080", "10.1.0.2:8080"))
    for number in (1, 2):
        who = f"198.51.100.{number}:40000"
        outcome = world.handle(tcp(who, "192.0.2.10:80", "S"))
        error = message(
            split(endpoints(outcome.packet)[1])[0], split(who)[0], 11, 0, bytes(4), outcome.packet
        )
        result = world.handle(error, POSTROUTING)
        assert parse(result.packet).src == "192.0.2.10"
        assert result.packet[28:] == tcp(who, "192.0.2.10:80", "S")
