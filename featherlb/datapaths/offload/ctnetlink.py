"""Conntrack over netlink: the entries that carry offloaded flows, and word of their end.

Two sockets: one for requests, whose answers are there as soon as a request has been sent (the
kernel handles it within the system call), and one that hears of all entries that end, if need be
also of those whose state changes. What it misses, for its buffer is full, is found by and by:
`sweep` asks for every flow.
"""

import errno
import socket
from collections.abc import Set

from featherlb.core.path.offloaded import Offload
from featherlb.model.shard import Shard
from featherlb.system import conntrack
from featherlb.system.mmsg import MessageBatch
from featherlb.system.nfnetlink import SOL_NETLINK, open_socket

NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP, NETLINK_CAP_ACK = 1, 2, 10
BUFFER = 8 << 20
"""Bytes of kernel memory for answers, and for events: some 10,000."""
GROUP_UPDATE, GROUP_DESTROY = 2, 3  # NFNLGRP_CONNTRACK_UPDATE and _DESTROY in nfnetlink.h
ENTRY, ERROR, GONE = 0x100, 2, 0x102
"""Kinds of messages: an entry, an error, an entry's end."""
EEXIST = errno.EEXIST

SLOTS = 64
SLOT_SIZE = 2048
"""Bytes: more than any entry takes."""
MAX_BATCHES = 32
"""Per call of `process`, so that the worker gets to its packets under any load."""
MAX_PORTS = 8
"""Source ports that are tried for a flow. Somebody else may have half of them: of 250 flows, one
finds none then."""
SWEPT = 512
"""Flow records that a sweep looks at in one go, at most: one or two milliseconds."""


class Conntrack:
    """A worker's link to the kernel's connection tracking."""

    def __init__(self, handler: Offload) -> None:
        """OSError if the kernel has no conntrack netlink."""
        self._requests = self._open()
        self._events = self._open()
        self._events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, GROUP_DESTROY)
        self.port = self._requests.getsockname()[0]
        self.answers = MessageBatch(SLOTS, SLOT_SIZE)
        self.answers.use(self._requests)
        self.events = MessageBatch(SLOTS, SLOT_SIZE)
        self.events.use(self._events)
        handler.answer.attach(self.answers.buffer)
        handler.event.attach(self.events.buffer)
        self.failed: list[int] = []
        """Flows that the last `flush` could not create; they are forgotten."""
        self.next = 1
        self.watching = False
        """Hears of changes of state as well."""

    def watch(self, states: bool) -> None:
        """Hear of changes of state from now on, or no more: half a dozen for a connection."""
        if states == self.watching:
            return
        change = NETLINK_ADD_MEMBERSHIP if states else NETLINK_DROP_MEMBERSHIP
        self._events.setsockopt(SOL_NETLINK, change, GROUP_UPDATE)
        self.watching = states

    def _open(self) -> socket.socket:
        new = open_socket(BUFFER, BUFFER)
        new.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        return new

    def fileno(self) -> int:
        """A descriptor that is readable when entries have ended."""
        return self._events.fileno()

    def flush(self, handler: Offload) -> None:
        """Send the requests that have gathered; `failed` says what the kernel refuses."""
        self.failed = []
        if not handler.requests.length:
            return
        clashes = self.send(handler)
        for flow in clashes:
            self.resolve(handler, flow)

    def send(self, handler: Offload) -> list[int]:
        """Send the requests; the flows whose key another entry has."""
        self._requests.send(handler.requests.take())
        clashes = []
        batch = self.answers
        entry = handler.answer
        while True:
            count = batch.receive()
            for slot in range(count):
                start = slot * SLOT_SIZE
                entry.read(start, start + batch.lengths[slot])
                if entry.kind != ERROR or not entry.sequence:
                    continue  # what was to be deleted is gone already
                if entry.error == EEXIST:
                    clashes.append(entry.sequence)
                else:
                    self.failed.append(entry.sequence)
                    handler.fail(entry.sequence)
            if count < SLOTS:
                return clashes

    def resolve(self, handler: Offload, flow: int) -> None:
        """Put a flow in place of the entry that has its key, unless that one is to go on; give it
        another source port if need be, where the replies to its own are another entry's."""
        if self.ask(handler, flow) and not handler.clash(flow, handler.answer):
            return
        handler.replace(flow)
        tried = 0
        while self.send(handler):
            tried += 1
            if tried == MAX_PORTS or not handler.give_port(flow):
                self.failed.append(flow)
                handler.fail(flow)
                break

    def ask(self, handler: Offload, flow: int) -> bool:
        """Whether there is an entry with the flow's key; `handler.answer` holds it."""
        if handler.requests.length:
            self.flush(handler)
        handler.inquire(flow)
        self._requests.send(handler.requests.take())
        if not self.answers.receive():
            return False
        handler.answer.read(0, self.answers.lengths[0])
        return handler.answer.kind == ENTRY

    def learn(self, handler: Offload, flow: int, now: float) -> None:
        """Have the core know how the flow is, or that it has ended. Requests that have gathered are
        sent before, and `failed` says what the kernel refuses of them."""
        self.failed = []
        if self.ask(handler, flow):
            handler.observe(flow, handler.answer, int(now * 10))
        else:
            handler.disown(flow)

    def consult(self, handler: Offload, now: float) -> None:
        """Send inquiries that have gathered, `SLOTS` at most and nothing else, and have the core
        know what the answers are."""
        if not handler.requests.length:
            return
        self._requests.send(handler.requests.take())
        entry = handler.answer
        ticks = int(now * 10)
        for slot in range(self.answers.receive()):
            start = slot * SLOT_SIZE
            entry.read(start, start + self.answers.lengths[slot])
            if entry.kind == ENTRY:
                handler.observe(entry.sequence, entry, ticks)
            elif entry.kind == ERROR and handler.is_offloaded(entry.sequence):
                handler.disown(entry.sequence)

    def process(self, handler: Offload, now: float) -> None:
        """Hear what has ended or changed, without blocking."""
        batch = self.events
        entry = handler.event
        ticks = int(now * 10)
        for _ in range(MAX_BATCHES):
            count = batch.receive()
            for slot in range(count):
                at = slot * SLOT_SIZE
                end = at + batch.lengths[slot]
                at = entry.read(at, end)
                # What was deleted on our own request has been dealt with.
                if not at or entry.sender == self.port:
                    continue
                if entry.kind == ENTRY:
                    handler.advance(entry, ticks)
                if entry.kind != GONE:
                    continue
                flow = handler.end(entry, False, ticks)
                if flow and not self.ask(handler, flow):
                    handler.end(entry, True, ticks)
            if count < SLOTS:
                break

    def sweep(self, handler: Offload, now: float) -> None:
        """Look at the next tenth of the flows, but at no more than `SWEPT`."""
        last = handler.last_record()
        if self.next > last:
            self.next = 1
        count = min(SWEPT, last // 10 + 1)
        self.refresh(handler, self.next, count, now)
        self.next += count

    def refresh(self, handler: Offload, first: int, count: int, now: float) -> None:
        """Have the core know how the flows with these record numbers are."""
        self.flush(handler)
        end = min(first + count, handler.last_record() + 1)
        for start in range(first, end, SLOTS):
            for flow in range(start, min(start + SLOTS, end)):
                if handler.is_offloaded(flow):
                    handler.inquire(flow)
            self.consult(handler, now)

    def adopt(self, handler: Offload, services: Set[str], shard: Shard, now: float) -> int:
        """Show the core all entries, for these services; how many it has taken over."""
        self.flush(handler)
        adopted = 0
        for entry, _ in conntrack.dump():
            adopted += handler.adopt(entry, services, shard, int(now * 10))
        return adopted

    def close(self) -> None:
        self._requests.close()
        self._events.close()
