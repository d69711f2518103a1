"""The record of a flow, and the only place that knows where each field of it stands.

The tables below are the source of both forms, in the machine's byte order. Interpreted, a record is
a `ctypes.Structure` over the flow memory; compiled, it is a C structure, which
`scripts/check_record.py --write` puts into record.pxd. Code is the same for both:
`record.backend_port`, or `direction(record, reply).src_port` where it is to serve either direction.
Neither form checks ranges: what is too large for a field loses its upper bits.

Addresses are 128 bits in two words; an IPv4 address is held in IPv6's mapped form (RFC 4291
section 2.5.5.2), so both families share one layout. Times are in ticks of 0.1 s.
"""

from dataclasses import dataclass
from enum import IntFlag
from typing import Any

import cython


@dataclass(frozen=True, slots=True)
class Field:
    """A field: its C type (of stdint.h, or a structure) and its meaning."""

    name: str
    kind: "str | Struct"
    meaning: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Struct:
    """A structure, or a union of its fields. One without a name is a part of the structure around
    it, under the names of its own fields."""

    name: str
    fields: "tuple[Field | Struct, ...]"
    union: bool = False

    @property
    def size(self) -> int:
        """In bytes. Fields are aligned as they stand: there is no padding between them."""
        sizes = [size_of(field) for field in self.fields]
        return max(sizes) if self.union else sum(sizes)


def size_of(field: Field | Struct) -> int:
    """Bytes that a field takes."""
    if isinstance(field, Struct):
        return field.size
    if isinstance(field.kind, Struct):
        return field.kind.size * field.count
    return int("".join(filter(str.isdigit, field.kind))) // 8 * field.count


DIRECTION = Struct(
    "Direction",
    (
        Field("src_high", "uint64_t", "source address of the packets, as they are met"),
        Field("src_low", "uint64_t", "its lower 64 bits"),
        Field("dst_high", "uint64_t", "destination address"),
        Field("dst_low", "uint64_t", "its lower 64 bits"),
        Field("src_port", "uint16_t", "source port"),
        Field("dst_port", "uint16_t", "destination port"),
        Struct(
            "",
            (
                Field("expected", "uint32_t", "TCP: next sequence number that the sender expects"),
                Field("awaited", "uint32_t", "COUNTED: datagrams that are still to come"),
                Field("kernel_packets", "uint32_t", "OFFLOADED: packets, as last read"),
            ),
            union=True,
        ),
        Field("bytes", "uint64_t", "IP bytes of the packets; OFFLOADED: as last read"),
    ),
)
"""The packets of one direction: client to VIP (0), or backend to what it takes for the client (1).
The first six fields are what `FlowTable.find` finds them by."""

RECORD = Struct(
    "Record",
    (
        Struct(
            "",
            (
                Field("directions", DIRECTION, "forward, reply", 2),
                Struct(
                    "",
                    (
                        Field("client_high", "uint64_t", "the client"),
                        Field("client_low", "uint64_t", ""),
                        Field("vip_high", "uint64_t", "the VIP"),
                        Field("vip_low", "uint64_t", ""),
                        Field("client_port", "uint16_t", ""),
                        Field("vip_port", "uint16_t", ""),
                        Field("client_expects", "uint32_t", "`expected` of the client"),
                        Field("forward_bytes", "uint64_t", ""),
                        Field("backend_high", "uint64_t", "the backend"),
                        Field("backend_low", "uint64_t", ""),
                        Field("source_high", "uint64_t", "the client, as the backend sees it"),
                        Field("source_low", "uint64_t", ""),
                        Field("backend_port", "uint16_t", ""),
                        Field("source_port", "uint16_t", ""),
                        Field("backend_expects", "uint32_t", "`expected` of the backend"),
                        Field("reply_bytes", "uint64_t", ""),
                    ),
                ),
            ),
            union=True,
        ),
        Field("created", "uint32_t", "ticks"),
        Field("seen", "uint32_t", "ticks of the last packet"),
        Field("previous", "uint32_t", "flow before it in its queue"),
        Field("next", "uint32_t", "flow behind it in its queue, or in the list of free records"),
        Field("member_id", "uint16_t", "number of its pool member"),
        Field("flags", "uint16_t", "bits of `Flag`"),
        Field("address_delta", "uint16_t", "checksum delta of the addresses, forward"),
        Field("transport_delta", "uint16_t", "the same of addresses and ports"),
        Field("responses", "uint16_t", "COUNTED: datagrams that answer each datagram"),
        Field("protocol", "uint8_t", "IP protocol; 0 in a record that is free"),
        Field("state", "uint8_t", "a `tcp_state.State`"),
        Field("queue", "uint8_t", "number of the queue that has its timeout"),
        Field("unused", "uint8_t", "", 3),
    ),
)
"""A flow: both directions, by number or by names, and what they have in common."""

RECORD_SIZE = RECORD.size
"""Bytes of a record: two cache lines."""
KEY_SIZE = sum(map(size_of, DIRECTION.fields[:6]))


class Flag(IntFlag):
    """Bits of `flags`. Interpreted, their names are constants of this module."""

    IPV6 = 1 << 0
    FULL = 1 << 1  # `full` NAT: it holds a source port of ours
    LOCAL_BACKEND = 1 << 2  # the backend is on this host
    LOCAL_CLIENT = 1 << 3  # the client is
    REPLY_ONLY = 1 << 4  # the index has the key of its replies only (one-packet scheduling)
    COUNTED = 1 << 5  # it ends after the expected number of responses
    WIRED = 1 << 6  # its packets come and go as frames (the raw datapath)
    OFFLOADED = 1 << 7  # the kernel translates its packets
    ABANDONED = 1 << 8  # OFFLOADED, but the kernel does not have it any more


class Records:
    """The records in a block of memory, by number. Number 0 is no flow's."""

    def __init__(self, memory: memoryview) -> None:
        """`memory` is writable; what is left behind the last whole record is not looked at."""
        self.memory = memory
        self.count = len(memory) // RECORD_SIZE
        if cython.compiled:
            self.first = cython.cast("Record *", cython.address(self.memory[0]))
        else:
            self.first = (Record * self.count).from_buffer(memory)

    if not cython.compiled:

        def at(self, number: int) -> Any:
            """The record of that number, which is not checked."""
            return self.first[number]

    def copy(self, first: int, end: int) -> bytes:
        """The bytes of the records from `first` up to `end`."""
        return bytes(self.memory[first * RECORD_SIZE : end * RECORD_SIZE])

    def key(self, number: int) -> bytes:
        """Which flow the record is of: addresses and ports of both directions, and the protocol."""
        at = number * RECORD_SIZE
        there, back = at, at + DIRECTION.size
        return b"".join(
            (
                self.memory[there : there + KEY_SIZE],
                self.memory[back : back + KEY_SIZE],
                bytes((self.at(number).protocol,)),
            )
        )


if not cython.compiled:
    import ctypes

    def _form(struct: Struct) -> Any:
        """The ctypes class of a structure."""
        fields: dict[str, Any] = {}
        for field in struct.fields:
            if isinstance(field, Struct):
                fields[f"_{len(fields)}"] = _form(field)
                continue
            if isinstance(field.kind, Struct):
                kind = _form(field.kind)
            else:
                kind = getattr(ctypes, f"c_{field.kind.removesuffix('_t')}")
            fields[field.name] = kind if field.count == 1 else kind * field.count
        base: Any = ctypes.Union if struct.union else ctypes.Structure
        anonymous = [name for name in fields if name.startswith("_")]
        body = {"_anonymous_": anonymous, "_fields_": list(fields.items())}
        return type(base)(struct.name, (base,), body)

    Record = _form(RECORD)
    (
        IPV6,
        FULL,
        LOCAL_BACKEND,
        LOCAL_CLIENT,
        REPLY_ONLY,
        COUNTED,
        WIRED,
        OFFLOADED,
        ABANDONED,
    ) = map(int, Flag)

    def direction_of(record: Any, reply: int) -> Any:
        """One direction of a record: 0 is forward, 1 is reply."""
        return record.directions[reply]

    def ports_of(direction: Any) -> int:
        """The ports as a packet has them, source << 16 | destination."""
        ports: int = direction.src_port << 16 | direction.dst_port
        return ports

    def copy_record(to: Any, record: Any) -> None:
        """Copy all of a record into another one."""
        ctypes.memmove(ctypes.addressof(to), ctypes.addressof(record), RECORD_SIZE)

    def clear(record: Any) -> None:
        """Fill the record with zeros."""
        ctypes.memset(ctypes.addressof(record), 0, RECORD_SIZE)
