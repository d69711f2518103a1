"""The Internet checksum: full sums (RFC 1071) and incremental updates (RFC 1624).

All sums are ones' complement sums of 16-bit big-endian words, kept unfolded in up to 64 bits and
folded on use. A *delta* is the folded sum of the complements of the old words and the new words
(RFC 1624, the sum in equation 3); it is computed once per flow, after which a packet costs one
addition. The delta of the reverse translation is its ones' complement.
"""

import cython

MASK16 = 0xFFFF


def fold(total: int) -> int:
    """Fold a ones' complement sum of up to 64 bits to 16."""
    while total > MASK16:
        total = (total & MASK16) + (total >> 16)
    return total


def words(high: int, low: int) -> int:
    """The sum of the eight 16-bit words of a 128-bit number, not folded."""
    return (
        (high >> 48)
        + (high >> 32 & MASK16)
        + (high >> 16 & MASK16)
        + (high & MASK16)
        + (low >> 48)
        + (low >> 32 & MASK16)
        + (low >> 16 & MASK16)
        + (low & MASK16)
    )


def negate(delta: int) -> int:
    """The delta of the reverse translation."""
    return delta ^ MASK16


def update(check: int, delta: int) -> int:
    """The new checksum field: RFC 1624 equation 3, HC' = ~(~HC + delta)."""
    total = (check ^ MASK16) + delta
    total = (total & MASK16) + (total >> 16)
    return total ^ MASK16


def update_partial(check: int, delta: int) -> int:
    """The new value of a field that holds only the pseudo-header's sum (CHECKSUM_PARTIAL).

    Such a field is not complemented and covers addresses but no ports: the delta must be that
    of the addresses alone (net/netfilter/ipvs/ip_vs_proto_tcp.c, tcp_partial_csum_update).
    """
    total = check + delta
    return (total & MASK16) + (total >> 16)


def sum_bytes(data: bytearray | memoryview, offset: int, length: int) -> int:
    """The folded sum of `length` bytes; an odd last byte is padded with zero (RFC 1071)."""
    if cython.compiled:
        total = 0
        even = length & ~1
        for i in range(offset, offset + even, 2):
            total += (data[i] << 8) | data[i + 1]
        if length & 1:
            total += data[offset + length - 1] << 8
        return fold(total)
    # A big-endian number modulo 65535 is the ones' complement sum of its 16-bit digits. Zero
    # stands for both zeros there; only all-zero data sums to +0, anything else to 0xFFFF.
    number = int.from_bytes(data[offset : offset + length], "big") << (8 * (length & 1))
    return number % MASK16 or (MASK16 if number else 0)
