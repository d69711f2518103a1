"""Checksums against a word-by-word RFC 1071 sum and the examples of the RFCs."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherlb.net.checksum import (
    fold,
    negate,
    sum_bytes,
    update,
    update_partial,
    words,
)
from tests.builders import rfc1071

WORDS = st.integers(0, 0xFFFF)
WORDS64 = st.integers(0, 2**64 - 1)


def delta_of(old: bytes, new: bytes) -> int:
    """RFC 1624: the sum of the complements of the old words and of the new words."""
    return rfc1071(bytes(byte ^ 0xFF for byte in old) + new)


def complement(value: int) -> int:
    return value ^ 0xFFFF


def test_fold_known_answers() -> None:
    # RFC 1071 section 3: 2ddf0 folds to ddf2.
    assert fold(0x2DDF0) == 0xDDF2
    assert fold(0) == 0
    assert fold(0xFFFF) == 0xFFFF
    assert fold(0x10000) == 1
    assert fold(2**64 - 1) == 0xFFFF


@given(WORDS64)
def test_fold_keeps_the_sum_modulo_65535_and_both_zeros(total: int) -> None:
    folded = fold(total)
    assert 0 <= folded <= 0xFFFF
    assert folded % 0xFFFF == total % 0xFFFF
    assert (folded == 0) == (total == 0)


@given(WORDS64, WORDS64)
def test_words_add_up_as_the_bytes_do(high: int, low: int) -> None:
    data = high.to_bytes(8, "big") + low.to_bytes(8, "big")
    assert fold(words(high, low)) == rfc1071(data)


def test_sum_known_answers() -> None:
    # RFC 1071 section 3, the example of the eight bytes.
    data = bytearray.fromhex("0001f203f4f5f6f7")
    assert sum_bytes(data, 0, 8) == 0xDDF2
    # An IPv4 header whose checksum field holds the right value sums to -0 (RFC 1071 section 1).
    header = bytearray.fromhex("45000073000040004011b861c0a80001c0a800c7")
    assert sum_bytes(header, 0, 20) == 0xFFFF


def test_sum_of_nothing_and_of_zeros_is_plus_zero() -> None:
    assert sum_bytes(bytearray(9), 0, 0) == 0
    assert sum_bytes(bytearray(9), 0, 9) == 0


def test_sum_of_ones_is_minus_zero() -> None:
    assert sum_bytes(bytearray(b"\xff" * 8), 0, 8) == 0xFFFF


@pytest.mark.parametrize("wrap", [bytearray, lambda data: memoryview(bytearray(data))])
def test_sum_of_a_whole_super_packet(wrap: Callable[[bytes], bytearray | memoryview]) -> None:
    data = random.Random(1).randbytes(65535)
    assert sum_bytes(wrap(data), 0, 65535) == rfc1071(data)


@given(st.binary(max_size=80), st.integers(0, 80), st.integers(0, 80))
def test_sum_of_any_part_odd_or_even(data: bytes, offset: int, length: int) -> None:
    offset = min(offset, len(data))
    length = min(length, len(data) - offset)
    assert sum_bytes(bytearray(data), offset, length) == rfc1071(data[offset : offset + length])


def test_update_known_answers() -> None:
    # RFC 1624 section 4: the header checksum 0xdd2f, a word changes from 0x5555 to 0x3285.
    assert update(0xDD2F, fold(complement(0x5555) + 0x3285)) == 0x0000


@given(st.binary(min_size=2, max_size=40), st.data())
def test_update_equals_the_sum_of_the_new_data(old: bytes, data: st.DataObject) -> None:
    """With a part exchanged, as a header whose checksum stands elsewhere."""
    old += b"\x45" if len(old) % 2 else b""
    start = data.draw(st.integers(0, len(old) // 2 - 1)) * 2
    part = data.draw(st.binary(min_size=2, max_size=2))
    new = old[:start] + part + old[start + 2 :]
    constant = b"\x00\x06"  # a real header is never all zero
    before = complement(rfc1071(constant + old))
    after = complement(rfc1071(constant + new))
    assert update(before, delta_of(old[start : start + 2], part)) == after


@given(st.integers(0, 0xFFFE), WORDS)
def test_the_negated_delta_brings_the_field_back(check: int, delta: int) -> None:
    """0xFFFF is left out: no sum over a header with a non-zero field has it as complement."""
    assert update(update(check, delta), negate(delta)) == check


@given(WORDS, WORDS)
def test_any_field_comes_back_as_the_same_number(check: int, delta: int) -> None:
    back = update(update(check, delta), negate(delta))
    assert 0 <= back <= 0xFFFF
    assert back % 0xFFFF == check % 0xFFFF


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=8, max_size=8), WORDS)
def test_update_partial_equals_the_new_pseudo_header_sum(
    old: bytes, new: bytes, length: int
) -> None:
    rest = b"\0\x06" + length.to_bytes(2, "big")
    before = rfc1071(old + rest)
    assert update_partial(before, delta_of(old, new)) == rfc1071(new + rest)
