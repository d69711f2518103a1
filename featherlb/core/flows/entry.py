"""The entries of the datapath ebpf: what the program in the kernel knows of the flows it carries.

They lie in an array that the kernel and a worker both have in their memory, so that neither asks
the other. Who writes what, and when, is in docs/ebpf.md. Addresses and ports are in network byte
order, as the program compares them with packets; all other numbers are in the machine's. Entry 0 is
unused.
"""

from typing import TYPE_CHECKING, Any

import cython

from featherlb.core.flows import record
from featherlb.core.flows.record import Field, Struct

ENTRY = Struct(
    "Entry",
    (
        Field("client", "uint64_t", "IPv4 in its mapped form", 2),
        Field("vip", "uint64_t", "", 2),
        Field("backend", "uint64_t", "", 2),
        Field("source", "uint64_t", "the client, as the backend sees it", 2),
        Field("client_port", "uint16_t", ""),
        Field("vip_port", "uint16_t", ""),
        Field("backend_port", "uint16_t", ""),
        Field("source_port", "uint16_t", ""),
        Field("live", "uint8_t", "1: the program carries the flow; 0: it leaves its packets alone"),
        Field("quiet", "uint8_t", "1: a bare ACK of the backend answers our probe"),
        Field("options", "uint8_t", "bits, as below"),
        Field("worker", "uint8_t", "the number of the worker that has it"),
        Field("state", "uint32_t", "a `State`, and bits, as below"),
        Field("expected", "uint32_t", "as in a record: of the client, the backend", 2),
        Field("ends", "uint32_t", "as in a record", 2),
        Field("seen", "uint32_t", "ticks of the last packet"),
        Field("packets", "uint32_t", "forward, reply", 2),
        Field("protocol", "uint8_t", "IP protocol; 0 in a free entry"),
        Field("scales", "uint8_t", "as in a record"),
        Field("member", "uint16_t", "of a flow that the program has opened: its backend"),
        Field("bytes", "uint64_t", "forward, reply", 2),
    ),
)
ENTRY_SIZE = ENTRY.size
"""Bytes of an entry: two cache lines, of which the program changes the second only."""

ADDRESSES = {"client": 0, "vip": 16, "backend": 32, "source": 48}
"""Where the addresses begin."""

if not cython.compiled:
    if TYPE_CHECKING:
        Entry = Any
    else:
        Entry = record.form(ENTRY)
    # Bits of `options`.
    LIFT_SYN_ACK = 1
    IPV6_ENTRY = 2
    # Bits of `state` above the state itself; those above them count doubtful segments.
    STATE_MASK = 0xFF
    ENTRY_CLIENT_SPOKE = 1 << 8
    ENTRY_BACKEND_SPOKE = 1 << 9
    RESET_BY_BACKEND = 1 << 10
    DOUBTFUL_SHIFT = 16

    def swap16(number: int) -> int:
        """A port between network byte order and the machine's."""
        return number >> 8 | (number & 0xFF) << 8

    def swap64(number: int) -> int:
        """Half of an address between network byte order and the machine's."""
        return int.from_bytes(number.to_bytes(8, "little"), "big")

    def fence() -> None:
        """What is written before is visible to the program before what follows is read."""


class Entries:
    """The entries in a block of memory, by index."""

    def __init__(self, memory: memoryview) -> None:
        """`memory` is writable."""
        self.memory = memory
        self.count = len(memory) // ENTRY_SIZE
        if cython.compiled:
            self.first = cython.cast("Entry *", cython.address(self.memory[0]))
        else:
            self.first = (Entry * self.count).from_buffer(memory)

    if not cython.compiled:

        def at(self, index: int) -> "Entry":
            """The entry with this index, which is not checked."""
            return self.first[index]
