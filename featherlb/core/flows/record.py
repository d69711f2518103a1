"""The record of a flow, and the only place that defines its layout.

The tables below are the source of both forms, in the machine's byte order. Interpreted, a record is
a `ctypes.Structure` over the flow memory; compiled, it is a C structure, which
`scripts/check_record.py --write` writes to record.pxd. It also writes record_types.py, which is
what mypy knows of both. Code is the same for both: `record.backend_port`, or
`direction_of(record, reply).src_port` for either direction. Neither form checks ranges: a value too
large for a field loses its upper bits.

Addresses are 128 bits in two words; an IPv4 address is held in IPv6's mapped form (RFC 4291
section 2.5.5.2), so both families share one layout. Times are in ticks of 0.1 s.
"""

from dataclasses import dataclass
from enum import IntFlag
from functools import cache
from typing import TYPE_CHECKING, Any

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
    """A structure, or a union of its fields. One without a name is anonymous: its fields are
    members of the structure around it."""

    name: str
    fields: "tuple[Field | Struct, ...]"
    union: bool = False

    @property
    def size(self) -> int:
        """In bytes. Fields are in an order that needs no padding."""
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
        Field("src_high", "uint64_t", "source address of the packets, as they arrive"),
        Field("src_low", "uint64_t", "its lower 64 bits"),
        Field("dst_high", "uint64_t", "destination address"),
        Field("dst_low", "uint64_t", "its lower 64 bits"),
        Field("src_port", "uint16_t", "source port"),
        Field("dst_port", "uint16_t", "destination port"),
        Struct(
            "",
            (
                Field("expected", "uint32_t", "TCP: next sequence number that the sender expects"),
                Field("awaited", "uint32_t", "COUNTED: responses still to come"),
                Field("kernel_packets", "uint32_t", "OFFLOADED: packets, as last read"),
            ),
            union=True,
        ),
        Field("bytes", "uint64_t", "IP bytes of the packets; OFFLOADED: as last read"),
    ),
)
"""The packets of one direction: client to VIP (0), or backend to the client as it sees it (1). The
first six fields are their key in `FlowTable`."""

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
                        Struct(
                            "",
                            (
                                Field("reply_bytes", "uint64_t", ""),
                                Field("splice", "uint64_t", "announced, SPLICED: its splice"),
                            ),
                            union=True,
                        ),
                    ),
                ),
            ),
            union=True,
        ),
        Struct(
            "",
            (
                Field("seen", "uint32_t", "ticks of the last packet"),
                Field("idle", "uint32_t", "announced: ticks since the last packet"),
            ),
            union=True,
        ),
        Struct(
            "",
            (
                Field("previous", "uint32_t", "previous flow in its queue"),
                Field("epoch", "uint32_t", "announced: how often the flow has changed its owner"),
            ),
            union=True,
        ),
        Struct(
            "",
            (
                Field("next", "uint32_t", "next flow in its queue, or next free record"),
                Field("owner", "uint32_t", "announced: the node that has the flow"),
            ),
            union=True,
        ),
        Struct(
            "",
            (
                Field("ends", "uint32_t", "TCP: behind what the client, the backend has sent", 2),
                Field("responses", "uint16_t", "COUNTED: responses to each datagram"),
            ),
            union=True,
        ),
        Field("member_id", "uint16_t", "number of its pool member"),
        Field("flags", "uint16_t", "bits of `Flag`"),
        Struct(
            "",
            (
                Struct(
                    "",
                    (
                        Field("address_delta", "uint16_t", "checksum delta of the addresses"),
                        Field("transport_delta", "uint16_t", "that of addresses and ports"),
                    ),
                ),
                Field("age", "uint32_t", "announced: ticks since the flow was opened"),
            ),
            union=True,
        ),
        Field("protocol", "uint8_t", "IP protocol; 0 in a free record"),
        Field("state", "uint8_t", "a `tcp_state.State`"),
        Struct(
            "",
            (
                Field("queue", "uint8_t", "number of its timeout queue"),
                Field("kind", "uint8_t", "announced: an `announcer.Kind`"),
            ),
            union=True,
        ),
        Field("scales", "uint8_t", "TCP: window scales, client << 4 | backend"),
    ),
)
"""A flow: both directions, by index or by names, and the fields they share. Nodes send one another
the same structure, where the fields that are announced are in the places of those that only mean
something to one node. The checksum deltas are forward ones."""

RECORD_SIZE = RECORD.size
"""Bytes of a record: two cache lines."""
KEY_SIZE = sum(map(size_of, DIRECTION.fields[:6]))


class Flag(IntFlag):
    """Bits of `flags`. Interpreted, their names are constants of this module."""

    IPV6 = 1 << 0
    FULL = 1 << 1  # `full` NAT: it holds an SNAT port
    LOCAL_BACKEND = 1 << 2  # the backend is on this host
    LOCAL_CLIENT = 1 << 3  # the client is on this host
    REPLY_ONLY = 1 << 4  # only its reply key is in the index (one-packet scheduling)
    COUNTED = 1 << 5  # UDP: it ends after the expected number of responses
    SPLICED = 1 << 5  # TCP: opened with a SYN cookie, sequence numbers differ (`splice.py`)
    WIRED = 1 << 6  # its packets are frames (the raw datapath)
    OFFLOADED = 1 << 7  # the kernel translates its packets
    ABANDONED = 1 << 8  # OFFLOADED, but not in the kernel: not yet (SPLICED), or no longer
    UNSURE = 1 << 9  # TCP: the ends have not confirmed its sequence numbers yet
    CLIENT_SPOKE = 1 << 10  # CLOSED: the client has sent something else since the RST
    BACKEND_SPOKE = 1 << 11  # CLOSED: the backend has
    REDISPATCHED = 1 << 12  # another backend was tried before
    ANSWERED = 1 << 13  # the backend has answered the SYN with a segment that is no SYN-ACK
    WATCHED = 1 << 14  # its packets may meet an injected fault, or tell connection IDs
    CARRIED = 1 << 15  # a program in the kernel carries its packets (the ebpf datapath)


class Records:
    """The records in a block of memory, by number. Record 0 means "none"."""

    def __init__(self, memory: memoryview) -> None:
        """`memory` is writable; bytes after the last whole record are ignored."""
        self.memory = memory
        self.count = len(memory) // RECORD_SIZE
        if cython.compiled:
            self.first = cython.cast("Record *", cython.address(self.memory[0]))
        else:
            self.first = (form(RECORD) * self.count).from_buffer(memory)

    if not cython.compiled:

        def at(self, number: int) -> "Record":
            """The record with this number, which is not checked."""
            record: Record = self.first[number]
            return record

    def copy(self, first: int, end: int) -> bytes:
        """The bytes of the records from `first` up to `end`."""
        return bytes(self.memory[first * RECORD_SIZE : end * RECORD_SIZE])

    def key(self, number: int) -> bytes:
        """The identity of a record's flow: both tuples and the protocol."""
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

    @cache
    def form(struct: Struct) -> Any:
        """The ctypes class of a structure."""
        fields: dict[str, Any] = {}
        for field in struct.fields:
            if isinstance(field, Struct):
                fields[f"_{len(fields)}"] = form(field)
                continue
            if isinstance(field.kind, Struct):
                kind = form(field.kind)
            else:
                kind = getattr(ctypes, f"c_{field.kind.removesuffix('_t')}")
            fields[field.name] = kind if field.count == 1 else kind * field.count
        base: Any = ctypes.Union if struct.union else ctypes.Structure
        anonymous = [name for name in fields if name.startswith("_")]
        body = {"_anonymous_": anonymous, "_fields_": list(fields.items())}
        return type(base)(struct.name, (base,), body)

    if TYPE_CHECKING:
        from featherlb.core.flows.record_types import Direction as Direction
        from featherlb.core.flows.record_types import Record as Record
    else:
        Direction, Record = form(DIRECTION), form(RECORD)
    (
        IPV6,
        FULL,
        LOCAL_BACKEND,
        LOCAL_CLIENT,
        REPLY_ONLY,
        COUNTED,
        SPLICED,
        WIRED,
        OFFLOADED,
        ABANDONED,
        UNSURE,
        CLIENT_SPOKE,
        BACKEND_SPOKE,
        REDISPATCHED,
        ANSWERED,
        WATCHED,
        CARRIED,
    ) = map(int, Flag.__members__.values())

    def direction_of(record: "Record", reply: int) -> "Direction":
        """One direction of a record: 0 is forward, 1 is reply."""
        return record.directions[reply]

    def ports_of(direction: "Direction") -> int:
        """source port << 16 | destination port, as `Packet.ports`."""
        return direction.src_port << 16 | direction.dst_port

    def copy_record(to: Any, record: Any) -> None:
        """Copy a record to another one."""
        ctypes.memmove(ctypes.addressof(to), ctypes.addressof(record), RECORD_SIZE)

    def clear(record: Any) -> None:
        """Fill the record with zeros."""
        ctypes.memset(ctypes.addressof(record), 0, RECORD_SIZE)
