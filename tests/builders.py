"""Packets for tests, built and checked by scapy. Imports nothing of featherlb.

Scapy is the independent oracle: it computes lengths and checksums from the fields, and `rebuilt`
does so again for a packet that featherlb has made. Endpoints are written `10.0.0.1:80` or
`[2001:db8::1]:80`; the family follows from the first one.
"""

from typing import Any

from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)


def split(endpoint: str) -> tuple[str, int]:
    """The address and the port of an endpoint."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def ip(src: str, dst: str, **fields: Any) -> Any:
    """The IP header between two endpoints, as a scapy layer."""
    (source, _), (destination, _) = split(src), split(dst)
    kind = IPv6 if ":" in source else IP
    return kind(src=source, dst=destination, **fields)


def tcp(
    src: str,
    dst: str,
    flags: str = "A",
    *,
    seq: int = 1000,
    ack: int = 0,
    payload: bytes = b"",
    header: Any = None,
    **fields: Any,
) -> bytes:
    """A TCP segment; `header` replaces the plain IP header, `fields` are scapy's."""
    base = ip(src, dst) if header is None else header
    segment = TCP(sport=split(src)[1], dport=split(dst)[1], flags=flags, seq=seq, ack=ack, **fields)
    return bytes(base / segment / payload)


def udp(src: str, dst: str, payload: bytes = b"", *, header: Any = None, **fields: Any) -> bytes:
    """A UDP datagram, likewise."""
    base = ip(src, dst) if header is None else header
    datagram = UDP(sport=split(src)[1], dport=split(dst)[1], **fields)
    return bytes(base / datagram / payload)


def icmp(src: str, dst: str) -> bytes:
    """An echo request: a protocol that is not balanced."""
    return bytes(ip(f"{src}:0", f"{dst}:0") / ICMP())


def ipv6_extensions(src: str, dst: str, *names: str) -> Any:
    """An IPv6 header with extension headers, in the order of their names."""
    kinds = {
        "hop-by-hop": IPv6ExtHdrHopByHop,
        "destination": IPv6ExtHdrDestOpt,
        "routing": IPv6ExtHdrRouting,
        "fragment": IPv6ExtHdrFragment,
    }
    header = ip(src, dst)
    for name in names:
        header = header / kinds[name]()
    return header


def parse(packet: bytes | bytearray) -> Any:
    """A packet as scapy sees it."""
    return (IPv6 if packet[0] >> 4 == 6 else IP)(bytes(packet))


def rebuilt(packet: bytes | bytearray) -> bytes:
    """The same packet with all checksums computed by scapy from nothing."""
    layers = parse(packet)
    for kind in (IP, TCP, UDP):
        if kind in layers:
            del layers[kind].chksum
    return bytes(layers)


def readdressed(packet: bytes, src: str, dst: str) -> bytes:
    """What becomes of a packet when its addresses and ports are replaced: all else is kept."""
    layers = parse(packet)
    layers.src, layers.dst = split(src)[0], split(dst)[0]
    transport = layers[TCP] if TCP in layers else layers[UDP]
    transport.sport, transport.dport = split(src)[1], split(dst)[1]
    return rebuilt(bytes(layers))


def pseudo_sum(packet: bytes) -> int:
    """The ones' complement sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1):
    what the kernel leaves in the checksum field of a packet that it has not summed yet."""
    layers = parse(packet)
    transport = layers[TCP] if TCP in layers else layers[UDP]
    length = len(bytes(transport))
    addresses = packet[8:40] if packet[0] >> 4 == 6 else packet[12:20]
    number = 6 if TCP in layers else 17
    return rfc1071(addresses + length.to_bytes(4, "big") + number.to_bytes(4, "big"))


def rfc1071(data: bytes) -> int:
    """RFC 1071 section 4.1 word by word: the sum, not complemented."""
    if len(data) % 2:
        data += b"\0"
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | data[at + 1]
        total = (total & 0xFFFF) + (total >> 16)
    return total


def with_checksum(packet: bytes, value: int) -> bytes:
    """The packet with another value in its transport checksum field."""
    layers = parse(packet)
    (layers[TCP] if TCP in layers else layers[UDP]).chksum = value
    return bytes(layers)


def dns_query(name: str, kind: str = "A", number: int = 0) -> bytes:
    """A query for the records of a kind."""
    return bytes(DNS(id=number, qd=DNSQR(qname=name, qtype=kind)))
