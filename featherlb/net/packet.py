"""An IP packet in a buffer: parsed by offsets, rewritten in place. No copies, no objects.

One `Packet` serves all packets of a buffer: `attach` it once, `parse` each packet. Every length is
checked before the bytes are read. Addresses are 128 bits in two words, IPv4 in IPv6's mapped form,
so callers need not know the family. All values are in host order; the buffer is in network order.
"""

import cython

from featherlb.model.reason import Reason
from featherlb.net.protocols import (
    ACK,
    DESTINATION_OPTIONS,
    FIN,
    FRAGMENT_HEADER,
    HOP_BY_HOP,
    MAPPED,
    ROUTING,
    RST,
    SYN,
    TCP,
    UDP,
)

if not cython.compiled:
    from featherlb.net.checksum import MASK16, fold, sum_bytes, update, words

MASK32 = 0xFFFFFFFF

STATE_FLAGS = FIN | SYN | RST | ACK

OK = -1
MALFORMED = int(Reason.MALFORMED)
BAD_FLAGS = int(Reason.BAD_FLAGS)
FRAGMENT = int(Reason.FRAGMENT)
UNSUPPORTED = int(Reason.UNSUPPORTED)

MAX_EXTENSION_HEADERS = 8


class Packet:
    """The packet that was parsed last; see the module's docstring.

    `ip` and `transport` are offsets of the headers in the buffer, `end` is the offset after the
    transport, by the length in its header or else in the IP header. `ports` is source << 16 |
    destination. `sequence`, `acknowledgement` and `flags` are for TCP, `identification` is for
    fragments.
    """

    def attach(self, buffer: bytearray) -> None:
        """Use this buffer from now on."""
        self.data = memoryview(buffer)

    def parse(self, offset: int, length: int) -> int:
        """Read the headers of the packet at `offset`; OK (-1) or the reason for a failure."""
        if length < 20:
            return MALFORMED
        self.ip = offset
        version = self.data[offset] >> 4
        if version == 4:
            reason = self.parse_ipv4(offset, length)
        elif version == 6:
            reason = self.parse_ipv6(offset, length)
        else:
            reason = MALFORMED
        if reason != OK:
            return reason
        if self.protocol == TCP:
            return self.parse_tcp()
        if self.protocol == UDP:
            return self.parse_udp()
        return UNSUPPORTED

    def parse_ipv4(self, offset: int, length: int) -> int:
        """RFC 791 section 3.1. Options are ignored."""
        header = (self.data[offset] & 15) * 4
        total = self.read16(offset + 2)
        if header < 20 or total < header or total > length:
            return MALFORMED
        if self.read16(offset + 6) & 0x3FFF:  # more fragments, or an offset
            return FRAGMENT
        self.version = 4
        self.protocol = self.data[offset + 9]
        self.src_high = 0
        self.dst_high = 0
        self.src_low = MAPPED | self.read32(offset + 12)
        self.dst_low = MAPPED | self.read32(offset + 16)
        self.transport = offset + header
        self.end = offset + total
        return OK

    def parse_ipv6(self, offset: int, length: int) -> int:
        """RFC 8200 section 3; extension headers are skipped, fragments refused."""
        if length < 40:
            return MALFORMED
        end = offset + 40 + self.read16(offset + 4)
        if end > offset + length:
            return MALFORMED
        reason = self.skip_extensions(offset, end, False)
        if reason != OK:
            return reason
        self.end = end
        return self.read_addresses(offset)

    def skip_extensions(self, offset: int, end: int, first_fragment: bool) -> int:
        """Find the transport header after the extension headers of the IPv6 packet, which may be a
        first fragment only if `first_fragment`."""
        following = self.data[offset + 6]
        at = offset + 40
        for _ in range(MAX_EXTENSION_HEADERS):
            if following == FRAGMENT_HEADER:
                if not first_fragment or at + 8 > end or self.read16(at + 2) & 0xFFF8:
                    return FRAGMENT
                following = self.data[at]
                at += 8
                continue
            if following not in (HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS):
                break
            if at + 8 > end:
                return MALFORMED
            following = self.data[at]
            at += (self.data[at + 1] + 1) * 8
        if at > end:
            return MALFORMED
        self.version = 6
        self.protocol = following
        self.transport = at
        return OK

    def read_addresses(self, offset: int) -> int:
        """Read the addresses of the IPv6 header at `offset`."""
        self.src_high = self.read32(offset + 8) << 32 | self.read32(offset + 12)
        self.src_low = self.read32(offset + 16) << 32 | self.read32(offset + 20)
        self.dst_high = self.read32(offset + 24) << 32 | self.read32(offset + 28)
        self.dst_low = self.read32(offset + 32) << 32 | self.read32(offset + 36)
        # Mapped addresses mean IPv4 here; none may be on the wire (RFC 4942 section 2.2).
        if not self.src_high and self.src_low >> 32 == MASK16:
            return MALFORMED
        if not self.dst_high and self.dst_low >> 32 == MASK16:
            return MALFORMED
        return OK

    def parse_fragment(self, offset: int) -> int:
        """Read the headers of a packet for which `parse` returned FRAGMENT.

        OK for a first fragment, which has ports (its `end` is not that of the transport), FRAGMENT
        for a later one, or the reason for a failure. All fragments of a packet have the same
        `identification`.
        """
        if self.data[offset] >> 4 == 4:
            self.version = 4
            self.protocol = self.data[offset + 9]
            self.identification = self.read16(offset + 4)
            self.src_high = 0
            self.dst_high = 0
            self.src_low = MAPPED | self.read32(offset + 12)
            self.dst_low = MAPPED | self.read32(offset + 16)
            self.transport = offset + (self.data[offset] & 15) * 4
            self.end = offset + self.read16(offset + 2)
            later = self.read16(offset + 6) & 0x1FFF
        else:
            at = offset + 40
            following = self.data[offset + 6]
            end = offset + 40 + self.read16(offset + 4)
            while following != FRAGMENT_HEADER:  # `parse` has checked it
                following = self.data[at]
                at += (self.data[at + 1] + 1) * 8
            if at + 8 > end:
                return MALFORMED
            self.version = 6
            self.protocol = self.data[at]
            self.identification = self.read32(at + 4)
            self.transport = at + 8
            self.end = end
            if self.read_addresses(offset) != OK:
                return MALFORMED
            later = self.read16(at + 2) & 0xFFF8
        if self.protocol not in (TCP, UDP):
            return UNSUPPORTED
        if later:
            return FRAGMENT
        if self.protocol == TCP:
            return self.parse_tcp()
        if self.end - self.transport < 8:
            return MALFORMED
        self.ports = self.read32(self.transport)
        self.payload = self.transport + 8
        self.flags = 0
        return OK

    def parse_tcp(self) -> int:
        """RFC 9293 section 3.1."""
        at = self.transport
        if self.end - at < 20:
            return MALFORMED
        header = (self.data[at + 12] >> 4) * 4
        if header < 20 or at + header > self.end:
            return MALFORMED
        self.ports = self.read32(at)
        self.sequence = self.read32(at + 4)
        self.acknowledgement = self.read32(at + 8)
        self.payload = at + header
        self.flags = flags = self.data[at + 13] & STATE_FLAGS
        # All but an opening SYN and a RST have ACK set; SYN, FIN and RST exclude each other
        # (net/netfilter/nf_conntrack_proto_tcp.c, tcp_valid_flags).
        if flags in (ACK, SYN, SYN | ACK, FIN | ACK, RST, RST | ACK):
            return OK
        return BAD_FLAGS

    def parse_udp(self) -> int:
        """RFC 768."""
        at = self.transport
        if self.end - at < 8:
            return MALFORMED
        size = self.read16(at + 4)
        if size < 8 or at + size > self.end:
            return MALFORMED
        self.ports = self.read32(at)
        self.payload = at + 8
        self.end = at + size  # what the checksum covers; the packet may be longer (RFC 9868)
        self.flags = 0
        return OK

    def parse_quoted(self, version: int, offset: int, end: int) -> bool:
        """Read the headers of a packet that an ICMP error quotes from `offset` on, before `end`.

        The quote may be truncated: eight bytes of transport are enough. True if it is TCP or UDP
        with ports, which a first fragment has as well; `sequence` and later fields are not read.
        """
        self.ip = offset
        if end - offset < 20 or self.data[offset] >> 4 != version:
            return False
        if version == 4:
            self.version = 4
            self.protocol = self.data[offset + 9]
            self.src_high = 0
            self.dst_high = 0
            self.src_low = MAPPED | self.read32(offset + 12)
            self.dst_low = MAPPED | self.read32(offset + 16)
            header = (self.data[offset] & 15) * 4
            if header < 20 or self.read16(offset + 6) & 0x1FFF:
                return False
            self.transport = offset + header
            self.end = min(end, offset + self.read16(offset + 2))
        else:
            if end - offset < 40:
                return False
            self.end = min(end, offset + 40 + self.read16(offset + 4))
            if (
                self.skip_extensions(offset, self.end, True) != OK
                or self.read_addresses(offset) != OK
            ):
                return False
        if self.protocol not in (TCP, UDP) or self.end - self.transport < 8:
            return False
        self.ports = self.read32(self.transport)
        return True

    def complete_checksum(self) -> None:
        """Replace the partial checksum (the pseudo-header sum) in the transport header by the full
        one."""
        field = self.transport + (16 if self.protocol == TCP else 6)
        self.write16(field, 0)
        check = self.transport_checksum(self.src_high, self.src_low, self.dst_high, self.dst_low)
        if self.protocol == UDP and check == 0:
            check = 0xFFFF  # zero would mean "none" (RFC 768)
        self.write16(field, check)

    # Fields

    def number(self, high: int, low: int) -> int:
        """An address of the packet's family as one number, from its two words."""
        return low & MASK32 if self.version == 4 else high << 64 | low

    def quote(self, limit: int) -> bytes:
        """A copy of the packet from its IP header on, of at most `limit` bytes."""
        return bytes(self.data[self.ip : min(self.end, self.ip + limit)])

    def read16(self, offset: int) -> int:
        """Two bytes, big-endian."""
        value = self.data[offset]
        return value << 8 | self.data[offset + 1]

    def read32(self, offset: int) -> int:
        """Four bytes, big-endian."""
        value = self.data[offset]
        value = value << 8 | self.data[offset + 1]
        value = value << 8 | self.data[offset + 2]
        return value << 8 | self.data[offset + 3]

    def write16(self, offset: int, value: int) -> None:
        """Two bytes, big-endian."""
        self.data[offset] = value >> 8
        self.data[offset + 1] = value & 0xFF

    def write32(self, offset: int, value: int) -> None:
        """Four bytes, big-endian."""
        self.data[offset] = value >> 24
        self.data[offset + 1] = value >> 16 & 0xFF
        self.data[offset + 2] = value >> 8 & 0xFF
        self.data[offset + 3] = value & 0xFF

    def write_source(self, high: int, low: int) -> None:
        """Replace the source address in the IP header; the caller updates checksums."""
        if self.version == 4:
            self.write32(self.ip + 12, low & MASK32)
        else:
            self.write_address(self.ip + 8, high, low)

    def write_destination(self, high: int, low: int) -> None:
        """Replace the destination address in the IP header; the caller updates checksums."""
        if self.version == 4:
            self.write32(self.ip + 16, low & MASK32)
        else:
            self.write_address(self.ip + 24, high, low)

    def write_address(self, offset: int, high: int, low: int) -> None:
        """The 16 bytes of an IPv6 address."""
        self.write32(offset, high >> 32)
        self.write32(offset + 4, high & MASK32)
        self.write32(offset + 8, low >> 32)
        self.write32(offset + 12, low & MASK32)

    def has_unicast_source(self) -> bool:
        """Whether the source is a single host, which may be answered (RFC 1122 section 3.2.2,
        RFC 4443 section 2.4 e)."""
        if self.version == 4:
            return 0 < (self.src_low >> 24 & 0xFF) < 224
        return self.src_high >> 56 != 0xFF and (self.src_high != 0 or self.src_low != 0)

    def is_header_intact(self) -> bool:
        """Whether the header checksum of a packet that was parsed is right, which IPv6 doesn't have
        (RFC 1812 section 5.2.2)."""
        first = self.data[self.ip]
        if first >> 4 != 4:
            return True
        return sum_bytes(self.data, self.ip, (first & 15) * 4) == MASK16

    def is_martian(self) -> bool:
        """Whether its source can't be on a wire: it isn't unicast, is a loopback address (RFC 1122
        section 3.2.1.3 g, RFC 4291 section 2.5.3), or the destination itself (RFC 1812 section
        5.3.7)."""
        if not self.has_unicast_source():
            return True
        if self.src_low == self.dst_low and self.src_high == self.dst_high:
            return True
        if self.version == 4:
            return self.src_low >> 24 & 0xFF == 127
        return self.src_high == 0 and self.src_low == 1

    def ttl(self) -> int:
        """The time to live, or hop limit."""
        return self.data[self.ip + (8 if self.version == 4 else 7)]

    def decrement_ttl(self) -> None:
        """Decrement TTL or hop limit (RFC 1812 section 5.3.1, RFC 8200 section 3)."""
        if self.version == 4:
            self.data[self.ip + 8] -= 1
            # The TTL is the high byte of its word.
            self.write16(self.ip + 10, update(self.read16(self.ip + 10), MASK16 - 0x0100))
        else:
            self.data[self.ip + 7] -= 1

    def may_be_fragmented(self) -> bool:
        """Whether a router may fragment it (RFC 791 section 2.3, RFC 8200 section 5)."""
        return self.version == 4 and not self.data[self.ip + 6] & 0x40

    def transport_checksum(self, src_high: int, src_low: int, dst_high: int, dst_low: int) -> int:
        """The checksum over the pseudo-header with these addresses and the transport in the buffer,
        whose checksum field must be zero (RFC 9293 section 3.1, RFC 8200 section 8.1)."""
        length = self.end - self.transport
        if self.version == 4:  # without the mapping prefix
            src_low &= MASK32
            dst_low &= MASK32
        total = words(src_high, src_low) + words(dst_high, dst_low) + self.protocol + length
        return fold(total + sum_bytes(self.data, self.transport, length)) ^ MASK16
