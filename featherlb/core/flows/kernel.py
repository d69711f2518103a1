"""The interface to flows that the kernel forwards: commands go out, events come in.

The core decides, an engine (`datapaths/offload/`) executes. The core queues commands: insert,
delete or look up a flow in the kernel. The engine takes them (`Commands.take`), executes them in
order, and reports the results as events, the methods of `core/path/offloaded.py` that take a
`KernelFlow`: a flow's counters and state, a clash, its removal. Neither side knows the other's
formats.
"""

from array import array
from enum import IntEnum

import cython

from featherlb.core.flows.record import RECORD_SIZE, Records
from featherlb.core.flows.table import FlowTable
from featherlb.net.protocols import TCP

if not cython.compiled:
    from featherlb.core.flows.record import SPLICED, copy_record
    from featherlb.net.packet import MASK32


class Command(IntEnum):
    """What the engine does with a flow."""

    INSERT = 1
    """Have the kernel translate both directions. Events on failure: `exists`, `refused`."""
    DELETE = 2
    """Remove it from the kernel. No event."""
    LOOK_UP = 3
    """Events: `counters`, or `gone`."""


INSERT = int(Command.INSERT)
DELETE = int(Command.DELETE)
LOOK_UP = int(Command.LOOK_UP)

UNKNOWN = -1
"""The state of a `KernelFlow` whose state is not known."""
UNKNOWN_SCALE = -2
"""The window scale of a backend that has not told it yet."""


class Commands:
    """A queue of `count` commands.

    Each has a kind (a `Command`), the flow's number, and a copy of the flow's record, as the number
    may be reused before the engine executes the command. `attempts` counts the inserts of this
    flow that have failed before. `offset` is what the kernel adds to the sequence numbers of its
    replies.
    """

    def __init__(self) -> None:
        self.count = 0
        self.size = 64
        self.records = Records(memoryview(bytearray(self.size * RECORD_SIZE)))
        # Triples: flow; kind and attempts; offset.
        self.fields = memoryview(array("I", bytes(self.size * 12)))

    def grow(self) -> None:
        """Double the capacity."""
        self.size *= 2
        records = bytearray(self.size * RECORD_SIZE)
        records[: self.count * RECORD_SIZE] = self.records.copy(0, self.count)
        fields = array("I", bytes(self.size * 12))
        fields[: self.count * 3] = array("I", self.fields[: self.count * 3])
        self.records = Records(memoryview(records))
        self.fields = memoryview(fields)

    def insert(self, table: FlowTable, flow: int, attempts: int = 0) -> None:
        """Queue the insertion of a flow."""
        self.add(INSERT, table, flow, attempts)

    def delete(self, table: FlowTable, flow: int) -> None:
        """Queue the deletion of a flow."""
        self.add(DELETE, table, flow, 0)

    def look_up(self, table: FlowTable, flow: int) -> None:
        """Queue a look-up of a flow."""
        self.add(LOOK_UP, table, flow, 0)

    def add(self, kind: int, table: FlowTable, flow: int, attempts: int) -> None:
        """Queue a command."""
        if self.count == self.size:
            self.grow()
        at = self.count
        record = table.at(flow)
        spliced = record.protocol == TCP and record.flags & SPLICED
        self.fields[3 * at] = flow
        self.fields[3 * at + 1] = kind << 16 | attempts
        self.fields[3 * at + 2] = table.splices[flow] & MASK32 if spliced else 0
        copy_record(self.records.at(at), record)
        self.count = at + 1

    def kind(self, at: int) -> int:
        """The `Command` at position `at`, from 0."""
        return self.fields[3 * at + 1] >> 16

    def flow(self, at: int) -> int:
        """Its flow."""
        return self.fields[3 * at]

    def attempts(self, at: int) -> int:
        """Inserts of its flow that have failed before."""
        return self.fields[3 * at + 1] & 0xFFFF

    def offset(self, at: int) -> int:
        """What is added to the sequence numbers of its flow's replies, modulo 2^32."""
        return self.fields[3 * at + 2]

    def take(self, batch: "Commands") -> None:
        """Move all commands to the engine's `batch`, whose previous ones have been executed."""
        self.fields, batch.fields = batch.fields, self.fields
        self.records, batch.records = batch.records, self.records
        self.size, batch.size = batch.size, self.size
        batch.count = self.count
        self.count = 0


class KernelFlow:
    """A flow in the kernel, in the core's terms; the argument of events.

    Addresses are 128 bits in two words, IPv4 in its mapped form; ports are source << 16 |
    destination. `reply_*` are those of the reply tuple, the packets that the backend sends. `state`
    is a `tcp_state.State` or `UNKNOWN`. `answered` means that a valid reply was seen, `translated`
    that the kernel translates the destination. `offset` is what the kernel adds to the sequence
    numbers of replies, `scale` the backend's window scale (-1 if it doesn't scale, `UNKNOWN_SCALE`
    if the kernel hasn't seen). Packets and bytes count from the flow's creation in the kernel.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Reset all fields."""
        self.version = 0
        self.protocol = 0
        self.state = UNKNOWN
        self.answered = False
        self.translated = False
        self.offset = 0
        self.scale = UNKNOWN_SCALE
        self.ports = 0
        self.reply_ports = 0
        self.src_high = 0
        self.src_low = 0
        self.dst_high = 0
        self.dst_low = 0
        self.reply_src_high = 0
        self.reply_src_low = 0
        self.reply_dst_high = 0
        self.reply_dst_low = 0
        self.packets = 0
        self.bytes = 0
        self.reply_packets = 0
        self.reply_bytes = 0

    def copy(self) -> "KernelFlow":
        """An independent copy."""
        other = KernelFlow()
        other.version = self.version
        other.protocol = self.protocol
        other.state = self.state
        other.answered = self.answered
        other.translated = self.translated
        other.offset, other.scale = self.offset, self.scale
        other.ports = self.ports
        other.reply_ports = self.reply_ports
        other.src_high, other.src_low = self.src_high, self.src_low
        other.dst_high, other.dst_low = self.dst_high, self.dst_low
        other.reply_src_high, other.reply_src_low = self.reply_src_high, self.reply_src_low
        other.reply_dst_high, other.reply_dst_low = self.reply_dst_high, self.reply_dst_low
        other.packets, other.bytes = self.packets, self.bytes
        other.reply_packets, other.reply_bytes = self.reply_packets, self.reply_bytes
        return other
