"""Keys in datagrams, with packets that scapy builds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.radius import Radius, RadiusAttribute

from featherlb.net.payload_keys import (
    dns_name,
    quic_destination,
    quic_ids,
    radius_user,
    sip_call_id,
)
from tests.builders import dns_query

INVITE = (
    b"INVITE sip:bob@example.org SIP/2.0\r\nVia: SIP/2.0/UDP a;branch=z9\r\n%b\r\n"
    b"Content-Length: 12\r\n\r\nCall-ID: no\r\n"
)
INITIAL = bytes([0xC3, 0, 0, 0, 1, 8, *range(8), 4, *b"from", 0])


def test_the_name_of_a_query() -> None:
    assert dns_name(dns_query("www.Example.org")) == b"\3www\7example\3org"
    assert dns_name(dns_query("www.example.org", "AAAA", 7)) == b"\3www\7example\3org"
    assert dns_name(dns_query(".")) == b""
    two = bytes(DNS(qd=[DNSQR(qname="a.org"), DNSQR(qname="b.org")]))
    assert dns_name(two) == b"\1a\3org"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"Call-ID: 843817637684230@998sdasdh09", b"843817637684230@998sdasdh09"),
        (b"CALL-id :  a@b ", b"a@b"),
        (b"i: a@b", b"a@b"),
        (b"X-Call-ID: a@b", None),
    ],
)
def test_the_id_of_a_call(header: bytes, expected: bytes | None) -> None:
    assert sip_call_id(INVITE % header) == expected
    assert sip_call_id(b"SIP/2.0 200 OK\r\n%b\r\n\r\n" % header) == expected


def test_the_user_of_a_request() -> None:
    attributes = [
        RadiusAttribute(type=4, value=bytes(4)),
        RadiusAttribute(type=1, value=b"nemo"),
    ]
    request = bytes(Radius(code=1, id=3, authenticator=bytes(16), attributes=attributes))
    assert radius_user(request) == b"nemo"
    assert radius_user(request + b"padding") == b"nemo"
    nobody = bytes(Radius(code=1, id=3, authenticator=bytes(16), attributes=attributes[:1]))
    assert radius_user(nobody) is None


def test_the_ids_of_a_connection() -> None:
    assert quic_destination(INITIAL) == bytes(range(8))
    assert quic_ids(INITIAL) == (bytes(range(8)), b"from")
    assert quic_ids(bytes([0x43, *INITIAL[1:]])) is None  # a short header
    assert quic_ids(INITIAL[:-2]) is None
    assert quic_ids(bytes([0xC3, 0, 0, 0, 1, 21, *range(30)])) is None


@given(st.binary(max_size=200))
def test_no_payload_breaks_them(payload: bytes) -> None:
    for key in (dns_name, sip_call_id, radius_user, quic_destination):
        found = key(payload)
        assert found is None or isinstance(found, bytes)


@given(st.integers(0, 60), st.binary(max_size=4))
def test_cut_packets_have_no_wrong_keys(length: int, rest: bytes) -> None:
    query = dns_query("www.example.org")
    found = dns_name(query[:length] + rest if length < 12 else query[:length])
    assert found is None or found == b"\3www\7example\3org" or length < 12
