"""The flight recorder: what was decided last, in memory that outlives the worker.

A ring of records of 64 bytes in the machine's byte order, behind a header of that size: new flows,
their changes of state and their ends, packets that opened none, and changes of backends. It has no
packets of established connections. Whoever holds the memory can read it at any time, also after a
crash in the middle of a record: that is the oldest one, and left out.
"""

from array import array
from dataclasses import dataclass
from enum import IntEnum

import cython

from featherlb.core.flows.tcp_state import State
from featherlb.model import Endpoint, Protocol
from featherlb.model.label import label
from featherlb.model.reason import Reason
from featherlb.net.addresses import address_of, endpoint_of
from featherlb.net.packet import Packet
from featherlb.net.protocols import UDP

if not cython.compiled:
    from featherlb.core.flows.record import Record

MAGIC = 0x666C625F666C7431
"""`flb_flt1`: another layout gets another one."""
RECORD_SIZE = 64
WORDS = 8
"""64-bit words of a record, and of the header. A record: time (seconds, a double); client, VIP and
backend (two words each); then, in 16 bits each, their ports, and in the lowest ones kind and
detail. A change of a backend has its weight in place of the client."""
SIZE_WORD = 1
COUNT_WORD = 2
"""Words of the header: the records that there is room for, and those that were ever written."""
OF_UDP = 0x80
"""Bit of a record's kind."""


class Kind(IntEnum):
    """What has happened. The detail is a flow's `State` or a packet's `Reason`."""

    STARTED = 1
    """A worker."""
    OPENED = 2
    """A flow."""
    CHANGED = 3
    """Its state."""
    MOVED = 4
    """It is to get another backend: this one has refused it, or is silent."""
    ENDED = 5
    """By its packets, or by an operator."""
    EXPIRED = 6
    EVICTED = 7
    """It made room for another one."""
    REFUSED = 8
    """A packet that opens no flow."""
    JOINED = 9
    """A backend."""
    LEFT = 10
    DOWN = 11
    UP = 12
    WEIGHED = 13


STARTED, NEW_FLOW, CHANGED, MOVED, ENDED, EXPIRED, EVICTED, REFUSED = map(int, list(Kind)[:8])
JOINED, LEFT, DOWN, BACK_UP, WEIGHED = map(int, list(Kind)[8:])


def bytes_for(size: int) -> int:
    """Bytes of memory for this many records."""
    return (size + 1) * RECORD_SIZE


class FlightRecorder:
    """Writes records; `now` is the time, which the caller keeps up to date. Without memory it
    writes none."""

    def __init__(self, memory: memoryview | None = None) -> None:
        """`memory` has `bytes_for` bytes: zeros, or the records of a predecessor, which stay."""
        self.now = 0.0
        self.size = 0
        block = memoryview(bytearray(RECORD_SIZE)) if memory is None else memory
        self._words = block.cast("B").cast("Q")
        self._times = block.cast("B").cast("d")
        if memory is not None:
            self.size = len(self._words) // WORDS - 1
            self._words[0] = MAGIC
            self._words[SIZE_WORD] = self.size

    def note(self, kind: int, record: "Record", detail: int) -> None:
        """Something has happened to a flow."""
        if not self.size:
            return
        words = self._words
        at = self.begin()
        words[at + 1] = record.client_high
        words[at + 2] = record.client_low
        words[at + 3] = record.vip_high
        words[at + 4] = record.vip_low
        words[at + 5] = record.backend_high
        words[at + 6] = record.backend_low
        if record.protocol == UDP:
            kind |= OF_UDP
        ports = record.client_port << 16 | record.vip_port
        words[at + 7] = self.pack(ports, record.backend_port, kind, detail)
        words[COUNT_WORD] += 1

    def refuse(self, packet: Packet, reason: int) -> None:
        """The parsed packet opens no flow."""
        if not self.size:
            return
        words = self._words
        at = self.begin()
        words[at + 1] = packet.src_high
        words[at + 2] = packet.src_low
        words[at + 3] = packet.dst_high
        words[at + 4] = packet.dst_low
        words[at + 5] = 0
        words[at + 6] = 0
        kind = REFUSED | OF_UDP if packet.protocol == UDP else REFUSED
        words[at + 7] = self.pack(packet.ports, 0, kind, reason)
        words[COUNT_WORD] += 1

    def note_backend(
        self,
        kind: int,
        vip: tuple[int, int, int],
        backend: tuple[int, int, int],
        udp: bool,
        weight: int,
    ) -> None:
        """Something has happened to a backend of the service with this VIP (two words and port
        each); this is its weight now."""
        if not self.size:
            return
        words = self._words
        at = self.begin()
        words[at + 1] = 0
        words[at + 2] = weight
        words[at + 3], words[at + 4] = vip[0], vip[1]
        words[at + 5], words[at + 6] = backend[0], backend[1]
        if udp:
            kind |= OF_UDP
        words[at + 7] = self.pack(vip[2], backend[2], kind, 0)
        words[COUNT_WORD] += 1

    def start(self, now: float) -> None:
        """A worker begins."""
        self.now = now
        self.note_backend(STARTED, (0, 0, 0), (0, 0, 0), False, 0)

    def begin(self) -> int:
        """The next record's first word, with the time."""
        at = (self._words[COUNT_WORD] % self.size + 1) * WORDS
        self._times[at] = self.now
        return at

    def pack(self, ports: int, backend_port: int, kind: int, detail: int) -> int:
        """A record's last word."""
        return ports << 32 | backend_port << 16 | kind << 8 | detail


@dataclass(frozen=True, slots=True)
class Noted:
    """A record. `time` is on the worker's clock; `client` and `backend` are None where there is
    none, `weight` is that of a backend."""

    time: float
    kind: Kind
    detail: str
    protocol: Protocol
    client: Endpoint | None
    vip: Endpoint | None
    backend: Endpoint | None
    weight: int | None


def read(content: bytes, most: int | None = None) -> list[Noted]:
    """The records in a copy of a recorder's memory, the last ones if there are more than `most`,
    the oldest first; ValueError if it is not one.

    The recorder may have gone on while its memory was copied, from the header on.
    """
    size = len(content) // RECORD_SIZE - 1
    if size < 1 or len(content) % RECORD_SIZE:
        raise ValueError("it is too short")
    words = memoryview(content).cast("Q")
    times = memoryview(content).cast("d")
    if words[0] != MAGIC or words[SIZE_WORD] != size:
        raise ValueError("it is of another version of featherlb")
    count = words[COUNT_WORD]
    found: list[Noted] = []
    # The oldest one may just be overwritten.
    most = size - 1 if most is None else min(most, size - 1)
    for number in range(max(0, count - most), count):
        at = (number % size + 1) * WORDS
        try:
            found.append(_noted(times[at], array("Q", words[at : at + WORDS])))
        except ValueError:  # a crash has left it half written
            continue
    latest = found[len(found) - 1].time if found else 0.0
    while found and found[0].time > latest:
        found.pop(0)
    return found


def _noted(time: float, words: "array[int]") -> Noted:
    last = words[7]
    kind = Kind(last >> 8 & 0x7F)
    backend = endpoint_of(words[5], words[6], last >> 16 & 0xFFFF)
    vip = endpoint_of(words[3], words[4], last >> 32 & 0xFFFF)
    of_flow = NEW_FLOW <= kind <= REFUSED
    if kind == REFUSED:
        detail = Reason(last & 0xFF).label
    elif kind == MOVED:
        detail = "silent" if last & 0xFF else "refused"
    else:
        detail = label(State(last & 0xFF)) if of_flow else ""
    return Noted(
        time=time,
        kind=kind,
        detail=detail,
        protocol=Protocol.UDP if last >> 8 & OF_UDP else Protocol.TCP,
        client=Endpoint(address_of(words[1], words[2]), last >> 48) if of_flow else None,
        vip=None if kind == STARTED else vip,
        backend=None if kind in (STARTED, REFUSED) else backend,
        weight=words[2] if kind > REFUSED else None,
    )
