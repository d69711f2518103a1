"""Packets that featherlb originates: RSTs, ICMP errors, echo replies, probes. Not on the fast path.
They are sent through a raw socket with their IP header.
"""

import struct

from featherlb.model import Endpoint
from featherlb.net.checksum import fold, sum_bytes
from featherlb.net.packet import Packet
from featherlb.net.protocols import ACK, FIN, ICMP, ICMPV6, RST, SYN, TCP

_TTL = 64


def tcp_reset(packet: Packet) -> bytes:
    """The RST that answers the parsed segment as its receiver, with IP header.

    Sequence numbers as in RFC 9293 section 3.10.7.1 for a closed connection; the caller ensures
    that the segment is not a RST.
    """
    length = packet.end - packet.payload + bool(packet.flags & SYN) + bool(packet.flags & FIN)
    if packet.flags & ACK:
        sequence, acknowledgement, flags = packet.acknowledgement, 0, RST
    else:
        sequence, flags = 0, RST | ACK
        acknowledgement = (packet.sequence + length) & 0xFFFFFFFF
    source = _wire_address(packet.version, packet.dst_high, packet.dst_low)
    destination = _wire_address(packet.version, packet.src_high, packet.src_low)
    ports = (packet.ports & 0xFFFF) << 16 | packet.ports >> 16
    return _segment(packet.version, source, destination, ports, sequence, acknowledgement, flags)


def flow_reset(
    version: int, source: tuple[int, int], destination: tuple[int, int], ports: int, sequence: int
) -> bytes:
    """A RST in the middle of a connection, with IP header.

    Addresses are two 64-bit words, `ports` is source << 16 | destination, `sequence` is the one
    that the receiver expects next: any other causes a challenge ACK (RFC 5961 section 3.2).
    """
    return flow_segment(version, source, destination, ports, sequence, 0, RST, 0)


def syn_probe(source: Endpoint, destination: Endpoint, sequence: int) -> bytes:
    """A client's SYN, with IP header."""
    return _between(source, destination, sequence, SYN)


def probe_reset(source: Endpoint, destination: Endpoint, sequence: int) -> bytes:
    """The RST that ends the connection of a `syn_probe` with this sequence number."""
    return _between(source, destination, sequence + 1, RST)


def _between(source: Endpoint, destination: Endpoint, sequence: int, flags: int) -> bytes:
    addresses = source.address.packed, destination.address.packed
    ports = source.port << 16 | destination.port
    return _segment(source.address.version, *addresses, ports, sequence & 0xFFFFFFFF, 0, flags)


def flow_probe(
    version: int,
    source: tuple[int, int],
    destination: tuple[int, int],
    ports: int,
    sequence: int = 0,
    acknowledgement: int = 0,
) -> bytes:
    """A segment that makes the receiver send a challenge ACK with its sequence numbers (RFC 5961
    section 4.2), with IP header; arguments as for `flow_reset`. A receiver without this connection
    sends a RST with `acknowledgement` as its sequence number.

    It is a SYN-ACK, which opens no new connection, neither at the receiver nor in conntrack.
    """
    return flow_segment(
        version, source, destination, ports, sequence, acknowledgement, SYN | ACK, 0
    )


def flow_segment(
    version: int,
    source: tuple[int, int],
    destination: tuple[int, int],
    ports: int,
    sequence: int,
    acknowledgement: int,
    flags: int,
    window: int,
    options: bytes = b"",
) -> bytes:
    """A segment without payload in the name of one end, with IP header; arguments as for
    `flow_reset`, `options` of a multiple of four bytes."""
    return _segment(
        version,
        _wire_address(version, *source),
        _wire_address(version, *destination),
        ports,
        sequence,
        acknowledgement,
        flags,
        window,
        options,
    )


def _segment(
    version: int,
    source: bytes,
    destination: bytes,
    ports: int,
    sequence: int,
    acknowledgement: int,
    flags: int,
    window: int = 0,
    options: bytes = b"",
) -> bytes:
    """A TCP segment without payload, with IP header."""
    numbers = ports, sequence, acknowledgement
    length = (5 << 4) + (len(options) << 2)
    header = struct.pack("!IIIBBHHH", *numbers, length, flags, window, 0, 0) + options
    pseudo = source + destination + struct.pack("!II", len(header), TCP)
    segment = bytearray(header)
    struct.pack_into("!H", segment, 16, _checksum(pseudo + header))
    return _ip_header(version, source, destination, len(segment), TCP) + bytes(segment)


def port_unreachable(packet: Packet) -> bytes:
    """The ICMP error that answers the parsed datagram as its receiver, with IP header.

    Type 3 code 3 (RFC 792, RFC 1122 section 4.1.3.1), in ICMPv6 type 1 code 4 (RFC 4443 section
    3.1). It quotes as much of the datagram as every host must be able to receive.
    """
    kind = (3, 3) if packet.version == 4 else (1, 4)
    return _error(packet, (packet.dst_high, packet.dst_low), kind, 0)


def time_exceeded(packet: Packet, source: tuple[int, int]) -> bytes:
    """The ICMP time exceeded for the parsed packet, with IP header.

    Type 11 code 0 (RFC 792), in ICMPv6 type 3 code 0 (RFC 4443 section 3.3). `source` is an
    address as two 64-bit words.
    """
    return _error(packet, source, (11, 0) if packet.version == 4 else (3, 0), 0)


def too_big(packet: Packet, source: tuple[int, int], mtu: int) -> bytes:
    """The ICMP fragmentation needed or packet too big with this `mtu` in bytes, with IP header.

    Type 3 code 4 (RFC 1191 section 4), in ICMPv6 type 2 (RFC 4443 section 3.2). `source` is an
    address as two 64-bit words.
    """
    return _error(packet, source, (3, 4) if packet.version == 4 else (2, 0), mtu)


def echo_reply(packet: Packet) -> bytes:
    """The answer to the parsed ICMP echo request as its receiver, with IP header: the same
    identifier, sequence number and data (RFC 792, RFC 4443 section 4.2)."""
    source = _wire_address(packet.version, packet.dst_high, packet.dst_low)
    destination = _wire_address(packet.version, packet.src_high, packet.src_low)
    whole = packet.quote(packet.end - packet.ip)
    message = bytearray(whole[packet.transport - packet.ip :])
    struct.pack_into("!BBH", message, 0, 0 if packet.version == 4 else 129, 0, 0)
    return icmp(packet.version, source, destination, message)


def _error(packet: Packet, source: tuple[int, int], kind: tuple[int, int], rest: int) -> bytes:
    """The ICMP error of that type and code about the parsed packet, to its sender; `rest` is the
    second half of its header."""
    room = 576 - 20 - 8 if packet.version == 4 else 1280 - 40 - 8
    message = bytearray(struct.pack("!BBHI", *kind, 0, rest) + packet.quote(room))
    destination = _wire_address(packet.version, packet.src_high, packet.src_low)
    return icmp(packet.version, _wire_address(packet.version, *source), destination, message)


def icmp(
    version: int, source: bytes, destination: bytes, message: bytearray, ttl: int = _TTL
) -> bytes:
    """The ICMP message, whose checksum field is zero, with its checksum and IP header. Addresses
    are in network byte order."""
    protocol, pseudo = ICMP, b""
    if version == 6:
        protocol = ICMPV6
        pseudo = source + destination + struct.pack("!II", len(message), protocol)
    struct.pack_into("!H", message, 2, _checksum(pseudo + bytes(message)))
    return _ip_header(version, source, destination, len(message), protocol, ttl) + bytes(message)


def _wire_address(version: int, high: int, low: int) -> bytes:
    if version == 4:
        return struct.pack("!I", low & 0xFFFFFFFF)
    return struct.pack("!QQ", high, low)


def _ip_header(
    version: int, source: bytes, destination: bytes, length: int, protocol: int, ttl: int = _TTL
) -> bytes:
    if version == 6:
        return struct.pack("!IHBB", 6 << 28, length, protocol, ttl) + source + destination
    dont_fragment = 0x4000
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, dont_fragment, ttl, protocol, 0)
    header += source + destination
    return header[:10] + struct.pack("!H", _checksum(header)) + header[12:]


def _checksum(data: bytes) -> int:
    return fold(sum_bytes(bytearray(data), 0, len(data))) ^ 0xFFFF
