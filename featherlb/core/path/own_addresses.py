"""The addresses that are this host's own, and so no client's of another host: VIPs, and with frames
the addresses of its links.

Asked for each new flow, so nearly every answer comes from a bitmap.
"""

from collections.abc import Iterable

BITS = 1 << 16
MULTIPLIER = 0x9E3779B97F4A7C15
"""The golden ratio times 2**64: multiplicative hashing (Knuth, TAOCP 3, 6.4)."""
MASK64 = 0xFFFFFFFFFFFFFFFF


class OwnAddresses:
    """A set of addresses, given as two words; `addresses` has them."""

    def __init__(self) -> None:
        self.addresses: frozenset[tuple[int, int]] = frozenset()
        self._seen = memoryview(bytearray(BITS))

    def replace(self, addresses: Iterable[tuple[int, int]]) -> None:
        """These are all."""
        self.addresses = frozenset(addresses)
        self._seen = memoryview(bytearray(BITS))
        for high, low in self.addresses:
            self._seen[place_of(high, low)] = 1

    def has(self, high: int, low: int) -> bool:
        """Whether this is one of them."""
        return self._seen[place_of(high, low)] != 0 and (high, low) in self.addresses


def place_of(high: int, low: int) -> int:
    """The place of an address in the bitmap."""
    return (((high ^ low) * MULTIPLIER & MASK64) >> 48) % BITS
