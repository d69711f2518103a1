"""core/flows/record.py: the layout of both forms, and records that are read with it."""

import sys

import pytest

from featherlb.core.flows.memory import FlowMemory, anonymous
from featherlb.core.flows.record import (
    DIRECTION,
    RECORD,
    RECORD_SIZE,
    Field,
    Flag,
    Records,
    Struct,
    size_of,
)
from featherlb.core.flows.table import FlowTable

FORWARD = (1, 2, 3, 4, 0x1112_2122)
REPLY = (5, 6, 7, 8, 0x3132_4142)


def memory() -> FlowMemory:
    """With one flow, of number 1."""
    memory = anonymous(2)
    table = FlowTable(memory, bytes(16))
    assert table.insert(6, *FORWARD, *REPLY, table.add_queue(0, 1.0), 0) == 1
    return memory


def test_a_record_is_two_cache_lines() -> None:
    assert RECORD_SIZE == RECORD.size == 128


@pytest.mark.parametrize("struct", [DIRECTION, RECORD], ids=lambda struct: struct.name)
def test_every_field_is_aligned_where_it_stands(struct: Struct) -> None:
    """So no compiler leaves a gap in front of it, and both forms agree."""

    def check(struct: Struct, at: int) -> None:
        for field in struct.fields:
            if isinstance(field, Struct):
                check(field, at)
            elif isinstance(field.kind, str):
                assert at % (size_of(field) // field.count) == 0, field.name
            at += 0 if struct.union else size_of(field)

    check(struct, 0)


def test_named_fields_are_those_of_the_directions() -> None:
    both = RECORD.fields[0]
    assert isinstance(both, Struct)
    directions, names = both.fields
    assert isinstance(directions, Field)
    assert isinstance(names, Struct)
    sizes = [size_of(field) for field in DIRECTION.fields]
    assert [size_of(field) for field in names.fields] == sizes * directions.count


def test_each_flag_has_a_bit_of_its_own() -> None:
    (flags,) = (field for field in RECORD.fields if getattr(field, "name", "") == "flags")
    assert all(flag.bit_count() == 1 for flag in Flag)
    assert len(set(map(int, Flag))) == len(Flag)
    assert max(Flag) < 1 << 8 * size_of(flags)


def test_a_key_has_both_directions_and_the_protocol() -> None:
    records = Records(memory().records)
    ports = (0x1112, 0x2122, 0x3132, 0x4142)
    words = [number.to_bytes(8, sys.byteorder) for number in range(1, 9)]
    halves = [port.to_bytes(2, sys.byteorder) for port in ports]
    assert records.key(1) == b"".join((*words[:4], *halves[:2], *words[4:], *halves[2:], b"\x06"))
    assert records.key(0) == bytes(len(records.key(1)))


def test_a_copy_has_the_same_flows() -> None:
    records = Records(memory().records)
    copied = Records(memoryview(bytearray(records.copy(1, 3))))
    assert (records.count, copied.count) == (3, 2)
    assert copied.key(0) == records.key(1)


def test_an_incomplete_record_at_the_end_is_ignored() -> None:
    assert Records(memoryview(bytearray(2 * RECORD_SIZE - 1))).count == 1
    assert Records(memoryview(bytearray())).count == 0
