"""SipHash-2-4, by the vectors of its authors' reference implementation."""

import struct

import pytest

from featherlb.net.siphash import SipHash

VECTORS = {0: 0x726FDB47DD0E0E31, 1: 0x93F5F5799A932462, 2: 0x3F2ACC7F57C29BDB}
"""By the number of words: the hashes of the bytes 0, 1, 2, ... with the key 0, 1, ..., 15."""


@pytest.mark.parametrize("count", VECTORS)
def test_vectors(count: int) -> None:
    hashing = SipHash(bytes(range(16)))
    for _ in range(2):  # it can be used again
        hashing.begin()
        for word in struct.unpack(f"<{count}Q", bytes(range(8 * count))):
            hashing.add(word)
        assert hashing.end() == VECTORS[count]
