"""Announces the flows of this node to other nodes, which keep replicas of them.

A flow is announced when it is established or 0.1 s old, again when it was used and a third of its
timeout has passed since, and when it ends. What is sent is its record, in which some fields have
another meaning (`record.py`). Each flow has an owner, the node that got the client's last packet,
and an epoch, which counts the changes of owners. Of two nodes that disagree, the one with the
higher (epoch, owner) is right.

Announcements wait in a block of memory until the worker sends them. If they come faster than that,
some are lost (`lost`), and a copy of the whole table makes up for them (`begin_copy`). So no packet
ever waits for another node. While `node` is 0, nothing is announced.
"""

from array import array
from enum import IntEnum

import cython

from featherlb.core.flows.record import RECORD_SIZE, Records
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.model import Sync
from featherlb.model.ticks import TICKS_PER_SECOND
from featherlb.net.protocols import TCP, UDP

if not cython.compiled:
    from featherlb.core.flows.record import (
        CARRIED,
        COUNTED,
        LOCAL_BACKEND,
        LOCAL_CLIENT,
        OFFLOADED,
        REPLY_ONLY,
        SPLICED,
        copy_record,
    )


class Kind(IntEnum):
    """What an announcement says of a flow."""

    OPENED = 1
    """It exists, or has another owner."""
    USED = 2
    """It still exists."""
    CLOSED = 3
    """It has ended."""


CAPACITY = 8192
"""Announcements that wait."""
MAX_YOUNG = 1 << 16
"""Flows that are remembered until they are 0.1 s old; beyond that, they are announced earlier."""
SWEEP = 10 * TICKS_PER_SECOND
"""Ticks in which every flow is looked at once: a third of the shortest timeout by default."""
COPIED_AT_ONCE = 1024
"""Records that one call of `copy` looks at: some 0.1 ms."""

OPENED = int(Kind.OPENED)
USED = int(Kind.USED)
CLOSED_KIND = int(Kind.CLOSED)
OFF = tuple(Sync).index(Sync.OFF)
IMMEDIATE = tuple(Sync).index(Sync.IMMEDIATE)
CLOSING = int(State.CLOSING)
CLOSED = int(State.CLOSED)
REPLACED = int(State.REPLACED)
REPLICA = int(State.REPLICA)


class Announcer:
    """By flow: `owners`, `epochs`; `announced`, the ticks of its last announcement, 0 if there is
    none; `syncs`, when it is to be announced (`model.Sync`); `states`, the state that a replica has
    at its owner."""

    def __init__(self, flows: FlowTable) -> None:
        self._flows = flows
        self.node = 0
        self.lost = False
        self.count = 0
        self._ticks = 0
        self._use(0, 0)

    def start(self, node: int, ticks: int, capacity: int = CAPACITY) -> None:
        """Announce flows from now on, as this node (not 0). The time isn't 0 either. `capacity` is
        how many announcements may wait."""
        self.node = node
        self._ticks = ticks
        self._use(self._flows.capacity + 1, capacity)

    def _use(self, flows: int, announcements: int) -> None:
        self.owners = memoryview(array("I", bytes(4 * max(flows, 1))))
        self.epochs = memoryview(array("I", bytes(4 * max(flows, 1))))
        self.announced = memoryview(array("I", bytes(4 * max(flows, 1))))
        self.syncs = memoryview(bytearray(max(flows, 1)))
        self.states = memoryview(bytearray(max(flows, 1)))
        self._block = memoryview(bytearray(max(announcements, 1) * RECORD_SIZE))
        self._waiting = Records(self._block)
        self._young = memoryview(array("I", bytes(4 * MAX_YOUNG if flows else 4)))
        self._opened = memoryview(array("I", bytes(4 * MAX_YOUNG if flows else 4)))
        self._first_young = self._young_count = 0
        self._swept = 1
        self._copied = 0

    # What happens to flows

    def open(self, flow: int, sync: int) -> None:
        """Note a new flow of this node."""
        self.owners[flow] = self.node
        self.epochs[flow] = 1
        self.announced[flow] = 0
        self.syncs[flow] = sync
        if sync == IMMEDIATE:
            self.announce(flow, OPENED)
        elif sync != OFF:
            if self._young_count == MAX_YOUNG:
                self.announce_young()
            at = (self._first_young + self._young_count) % MAX_YOUNG
            self._young[at] = flow
            self._opened[at] = self._flows.created[flow]
            self._young_count += 1

    def restore(self, flow: int, sync: int) -> None:
        """Note a flow that this node had before it was restarted. Peers that know it better say
        so."""
        self.owners[flow] = self.node
        self.epochs[flow] = 1
        self.announced[flow] = 0
        self.syncs[flow] = sync

    def establish(self, flow: int) -> None:
        """Note that a flow of this node is established."""
        if not self.announced[flow] and self.syncs[flow] != OFF:
            self.announce(flow, OPENED)

    def close(self, flow: int) -> None:
        """Note that a flow ends, or is closing. The end of a replica is its owner's to announce."""
        if self.announced[flow] and self.owners[flow] == self.node:
            self.announce(flow, CLOSED_KIND)
        self.announced[flow] = 0

    def announce(self, flow: int, kind: int) -> None:
        """Announce a flow, if it is of a kind that another node could carry on."""
        record = self._flows.at(flow)
        if record.flags & (OFFLOADED | CARRIED | REPLY_ONLY | LOCAL_CLIENT | LOCAL_BACKEND):
            return
        if record.flags & COUNTED and record.protocol == UDP:
            return
        if self.count == self._waiting.count:
            self.lost = True
            return
        to = self._waiting.at(self.count)
        copy_record(to, record)
        # After the copy: they take the places of other fields.
        # The packet in hand is younger than the last tick.
        created = self._flows.created[flow]
        to.idle = self._ticks - record.seen if self._ticks > record.seen else 0
        to.age = self._ticks - created if self._ticks > created else 0
        to.epoch = self.epochs[flow]
        to.owner = self.owners[flow]
        to.kind = kind
        if record.flags & SPLICED and record.protocol == TCP:
            to.splice = self._flows.splices[flow]
        if record.state == REPLICA:
            to.state = self.states[flow]
        self.count += 1
        self.announced[flow] = self._ticks

    # Periodic work

    def handle_timer(self, ticks: int) -> None:
        """Announce what has become old enough, and what was used."""
        self._ticks = ticks
        while self._young_count and ticks - self._opened[self._first_young] > 1:
            self.announce_young()
        self.sweep()

    def announce_young(self) -> None:
        """Announce the oldest of the young flows, unless it was announced or is over."""
        at = self._first_young
        flow = self._young[at]
        record = self._flows.at(flow)
        self._first_young = (at + 1) % MAX_YOUNG
        self._young_count -= 1
        # Its record may have been reused.
        if (
            record.protocol
            and self._flows.created[flow] == self._opened[at]
            and not self.announced[flow]
            and self.owners[flow] == self.node
            and record.state not in (CLOSING, CLOSED, REPLACED)
        ):
            self.announce(flow, OPENED)

    def sweep(self) -> None:
        """Announce flows again that were used since: a part of the table at each call, the whole
        table in `SWEEP`."""
        flows = self._flows
        last = flows.last_record()
        for _ in range(last // SWEEP + 1):
            flow = self._swept
            self._swept = flow + 1 if flow < last else 1
            record = flows.at(flow)
            if not record.protocol or not self.announced[flow]:
                continue
            third = flows.timeout[record.queue] // 3
            used = record.seen > self.announced[flow]
            if (
                used
                and self.owners[flow] == self.node
                and self._ticks - self.announced[flow] >= third
            ):
                self.announce(flow, USED)

    # Copies

    def begin_copy(self) -> None:
        """Announce all flows, replicas as well: another node has missed some. The rest of a copy
        that is under way is a part of this one."""
        self._copied = 1
        self.lost = False

    def copy(self) -> bool:
        """Announce more flows of a copy, as far as there is room; whether some are left."""
        flows = self._flows
        if not self._copied:
            return False
        for _ in range(COPIED_AT_ONCE):
            if self._copied > flows.last_record():
                self._copied = 0
                return False
            if self.count == self._waiting.count:
                return True
            flow = self._copied
            record = flows.at(flow)
            if (
                record.protocol
                and self.syncs[flow] != OFF
                and record.state not in (CLOSING, CLOSED, REPLACED)
            ):
                self.announce(flow, USED)
            self._copied = flow + 1
        return True

    def take(self) -> bytes:
        """The announcements that wait; they wait no longer."""
        taken = bytes(self._block[: self.count * RECORD_SIZE])
        self.count = 0
        return taken
