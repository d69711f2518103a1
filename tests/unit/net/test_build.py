"""RSTs: every field as in RFC 9293 section 3.10.7.1 for a closed connection."""

from collections.abc import Callable

import pytest

from featherlb.net.build import tcp_reset
from featherlb.net.packet import Packet
from tests.builders import ip, ipv6_extensions, parse, rebuilt, tcp

PAIRS = {
    "IPv4": ("198.51.100.7:40000", "192.0.2.10:80"),
    "IPv6": ("[2001:db8:1::7]:40000", "[2001:db8::10]:80"),
}


def answer(raw: bytes, offset: int = 0) -> bytes:
    packet = Packet()
    packet.attach(bytearray(b"\xff" * offset + raw))
    assert packet.parse(offset, len(raw)) == -1
    return tcp_reset(packet)


@pytest.mark.parametrize(("client", "vip"), PAIRS.values(), ids=PAIRS.keys())
@pytest.mark.parametrize(
    ("flags", "payload", "expected"),
    [
        # "If the ACK bit is off, sequence number zero is used, <SEQ=0><ACK=SEG.SEQ+SEG.LEN>"
        ("S", b"", ("RA", 0, 1001)),
        ("S", b"early", ("RA", 0, 1006)),
        # "If the ACK bit is on, <SEQ=SEG.ACK><CTL=RST>"
        ("A", b"", ("R", 7000, 0)),
        ("PA", b"data", ("R", 7000, 0)),
        ("FA", b"", ("R", 7000, 0)),
        ("SA", b"", ("R", 7000, 0)),
    ],
)
def test_what_it_answers(
    client: str, vip: str, flags: str, payload: bytes, expected: tuple[str, int, int]
) -> None:
    reset = answer(tcp(client, vip, flags, seq=1000, ack=7000, payload=payload), offset=7)
    names, sequence, acknowledgement = expected
    header = ip(vip, client, ttl=64, flags="DF", id=0) if "." in vip else ip(vip, client, hlim=64)
    assert reset == tcp(
        vip, client, names, seq=sequence, ack=acknowledgement, window=0, header=header
    )
    assert reset == rebuilt(reset)


def test_sequence_numbers_wrap_around() -> None:
    client, vip = PAIRS["IPv4"]
    reset = parse(answer(tcp(client, vip, "S", seq=0xFFFFFFFF, payload=b"12")))
    assert (reset.ack, str(reset["TCP"].flags)) == (2, "RA")


@pytest.mark.parametrize(
    "build",
    [
        lambda: tcp(*PAIRS["IPv4"], "S", options=[("MSS", 1460)], seq=1000),
        lambda: tcp(
            *PAIRS["IPv4"], "S", header=ip(*PAIRS["IPv4"], options=b"\x94\x04\0\0"), seq=1000
        ),
        lambda: tcp(*PAIRS["IPv4"], "S", seq=1000) + b"trailer",
        lambda: tcp(
            *PAIRS["IPv6"], "S", header=ipv6_extensions(*PAIRS["IPv6"], "destination"), seq=1000
        ),
    ],
    ids=["TCP options", "IP options", "trailing bytes", "extension header"],
)
def test_only_the_payload_counts_as_length(build: Callable[[], bytes]) -> None:
    assert parse(answer(build()))["TCP"].ack == 1001
