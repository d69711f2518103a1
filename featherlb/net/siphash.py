"""SipHash-2-4 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012), of 64-bit words.

For what a stranger must not be able to compute although he sees results: unlike a universal hash,
it stays secret.
"""

import cython

MASK64 = 0xFFFFFFFFFFFFFFFF


class SipHash:
    """`begin`, then `add` each word, then `end`."""

    def __init__(self, key: bytes) -> None:
        """`key` has 16 secret bytes."""
        self.k0 = int.from_bytes(key[:8], "little")
        self.k1 = int.from_bytes(key[8:16], "little")
        self.begin()

    def begin(self) -> None:
        self.v0 = self.k0 ^ 0x736F6D6570736575
        self.v1 = self.k1 ^ 0x646F72616E646F6D
        self.v2 = self.k0 ^ 0x6C7967656E657261
        self.v3 = self.k1 ^ 0x7465646279746573
        self.words = 0

    def add(self, word: int) -> None:
        self.v3 ^= word
        self.mix(2)
        self.v0 ^= word
        self.words += 1

    def end(self) -> int:
        """The hash, of 64 bits."""
        self.add((8 * self.words & 0xFF) << 56)
        self.v2 ^= 0xFF
        self.mix(4)
        return self.v0 ^ self.v1 ^ self.v2 ^ self.v3

    def mix(self, rounds: int) -> None:
        v0, v1, v2, v3 = self.v0, self.v1, self.v2, self.v3
        for _ in range(rounds):
            v0 = (v0 + v1) & MASK64
            v1 = rotated(v1, 13) ^ v0
            v0 = rotated(v0, 32)
            v2 = (v2 + v3) & MASK64
            v3 = rotated(v3, 16) ^ v2
            v0 = (v0 + v3) & MASK64
            v3 = rotated(v3, 21) ^ v0
            v2 = (v2 + v1) & MASK64
            v1 = rotated(v1, 17) ^ v2
            v2 = rotated(v2, 32)
        self.v0, self.v1, self.v2, self.v3 = v0, v1, v2, v3


def rotated(word: int, bits: int) -> int:
    """Rotated to the left."""
    if cython.compiled:
        return word << bits | word >> (64 - bits)
    return (word << bits | word >> (64 - bits)) & MASK64
