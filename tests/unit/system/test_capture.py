"""The conversation of a received segment; scapy builds the packets."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from featherlb.model import Endpoint
from featherlb.net.build import probe_reset, syn_probe
from featherlb.system.capture import conversation

V4 = (Endpoint.parse("10.0.1.2:8080"), Endpoint.parse("192.0.2.1:40000"))
V6 = (Endpoint.parse("[2001:db8::2]:8080"), Endpoint.parse("[3fff::1]:40000"))


@pytest.mark.parametrize(
    ("packet", "pair", "needed"),
    [
        (IP(src="10.0.1.2", dst="192.0.2.1") / TCP(sport=8080, dport=40000), V4, 24),
        (
            IP(src="10.0.1.2", dst="192.0.2.1", options=[IPOption_NOP()])
            / TCP(sport=8080, dport=40000, flags="SA"),
            V4,
            28,
        ),
        (IPv6(src="2001:db8::2", dst="3fff::1") / TCP(sport=8080, dport=40000), V6, 44),
        (IP(src="10.0.1.2", dst="192.0.2.1") / UDP(sport=8080, dport=40000), None, 0),
        (IP(src="10.0.1.2", dst="192.0.2.1") / ICMP(), None, 0),
    ],
)
def test_conversation(packet: Packet, pair: object, needed: int) -> None:
    whole = bytes(packet)
    assert conversation(whole) == pair
    for length in range(needed):
        assert conversation(whole[:length]) is None


@pytest.mark.parametrize(("backend", "client"), [V4, V6])
def test_a_syn_probe_and_its_reset(backend: Endpoint, client: Endpoint) -> None:
    """What scapy makes of the same fields, checksums included."""
    for packet, flags, sequence in (
        (syn_probe(client, backend, 0xFFFFFFFF), "S", 0xFFFFFFFF),
        (probe_reset(client, backend, 0xFFFFFFFF), "R", 0),
    ):
        layer = IP if client.address.version == 4 else IPv6
        parsed = layer(packet)
        assert (parsed[TCP].flags, parsed[TCP].seq) == (flags, sequence)
        assert conversation(packet) == (client, backend)
        for part in (parsed, parsed[TCP]):
            for name in ("chksum",):
                if name in part.fields:
                    del part.fields[name]
        assert bytes(layer(bytes(parsed))) == packet
