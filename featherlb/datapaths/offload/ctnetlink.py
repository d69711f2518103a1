"""Conntrack over netlink: executes the core's commands, and reports responses and events to the
core.

Two sockets. One is for requests, whose responses are available when the system call returns (the
kernel handles a request within it). The other receives destroy events, and update events on demand;
events that are lost when its buffer is full are made up for by later look-ups.
"""

import errno
import socket

import cython

from featherlb.core.flows.kernel import Commands
from featherlb.core.path.offloaded import OffloadedFlows
from featherlb.datapaths.batches import MAX_BATCHES
from featherlb.model.ticks import TICKS_PER_SECOND
from featherlb.net.netlink import NLMSG_ERROR
from featherlb.system.conntrack_messages import Entry, Requests
from featherlb.system.mmsg import MessageBatch
from featherlb.system.netlink import (
    NETLINK_ADD_MEMBERSHIP,
    NETLINK_CAP_ACK,
    NETLINK_DROP_MEMBERSHIP,
    SOL_NETLINK,
)
from featherlb.system.nfnetlink import open_socket

if not cython.compiled:
    from featherlb.core.flows.kernel import INSERT, LOOK_UP
    from featherlb.system.conntrack_messages import DELETE_MESSAGE, NEW_MESSAGE

BUFFER = 8 << 20
"""Bytes of kernel memory for responses, and for some 10,000 events."""
GROUP_UPDATE, GROUP_DESTROY = 2, 3  # NFNLGRP_CONNTRACK_UPDATE and _DESTROY in nfnetlink.h
EEXIST = errno.EEXIST

SLOTS = 64
SLOT_SIZE = 2048
"""Bytes: more than any entry takes."""
AT_ONCE = 256
"""Commands per system call, so that their responses fit into the buffer."""


class Conntrack:
    """A worker's access to conntrack."""

    def __init__(self, flows: OffloadedFlows) -> None:
        """OSError if the kernel has no conntrack netlink."""
        self._flows = flows
        self._requests = self._open()
        self._events = self._open()
        self._events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, GROUP_DESTROY)
        self.port = self._requests.getsockname()[0]
        self.answers = MessageBatch(SLOTS, SLOT_SIZE)
        self.answers.use(self._requests)
        self.events = MessageBatch(SLOTS, SLOT_SIZE)
        self.events.use(self._events)
        self.answer = Entry()
        self.answer.attach(self.answers.buffer)
        self.event = Entry()
        self.event.attach(self.events.buffer)
        self.requests = Requests()
        self.batch = Commands()
        self.watching = False
        """Whether update events are received as well."""

    def watch(self, states: bool) -> None:
        """Start or stop receiving update events, half a dozen for each connection: they say when a
        connection was answered, and when it ends."""
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
        """A descriptor that is readable when events wait."""
        return self._events.fileno()

    def execute(self, now: float) -> None:
        """See `KernelFlows.execute`."""
        commands = self._flows.commands
        ticks = int(now * TICKS_PER_SECOND)
        while commands.count:
            commands.take(self.batch)
            for first in range(0, self.batch.count, AT_ONCE):
                end = min(first + AT_ONCE, self.batch.count)
                if self.submit(first, end):
                    self.report(ticks)
                    continue
                for at in range(first, end):
                    if self.submit(at, at + 1):
                        self.report(ticks)
                    elif self.batch.kind(at) == INSERT:
                        self._flows.refused(self.batch.flow(at))

    def submit(self, first: int, end: int) -> bool:
        """Send the commands from number `first` up to `end`. False if the kernel refuses them, for
        lack of memory: fewer at once need less."""
        self.requests.write(self.batch, first, end)
        return self.send()

    def send(self) -> bool:
        """Send the requests that are written; False if the kernel refuses them."""
        try:
            self._requests.send(self.requests.take())
        except OSError:
            return False
        return True

    def report(self, ticks: int) -> None:
        """Report the responses, those to clashing inserts after a look at what they clash with."""
        for at in self.read_answers(ticks):
            self.report_clash(at, ticks)

    def read_answers(self, ticks: int) -> list[int]:
        """Report the responses; returns the numbers of inserts that failed with EEXIST."""
        clashes = []
        batch = self.batch
        entry = self.answer
        while True:
            count = self.answers.receive()
            for slot in range(count):
                start = slot * SLOT_SIZE
                entry.read(start, start + self.answers.lengths[slot])
                at = entry.sequence - 1
                if not 0 <= at < batch.count:
                    continue
                kind = batch.kind(at)
                if kind == LOOK_UP and entry.kind == NEW_MESSAGE:
                    self._flows.counters(batch.flow(at), entry, ticks)
                elif kind == LOOK_UP and entry.kind == NLMSG_ERROR:
                    self._flows.gone(batch.flow(at), ticks)
                elif kind == INSERT and entry.kind == NLMSG_ERROR:
                    if entry.error == EEXIST:
                        clashes.append(at)
                    else:
                        self._flows.refused(batch.flow(at))
            if count < SLOTS:
                return clashes

    def report_clash(self, at: int, ticks: int) -> None:
        """Look up the entry with the forward tuple of an insert, and report it."""
        batch = self.batch
        entry = self.answer
        self.requests.ask(batch, at)
        there = False
        if self.send() and self.answers.receive():
            entry.read(0, self.answers.lengths[0])
            there = entry.kind == NEW_MESSAGE
        self._flows.exists(batch.flow(at), batch.attempts(at), entry if there else None)

    def process(self, now: float) -> None:
        """See `KernelFlows.process`."""
        batch = self.events
        entry = self.event
        ticks = int(now * TICKS_PER_SECOND)
        for _ in range(MAX_BATCHES):
            count = batch.receive()
            for slot in range(count):
                at = slot * SLOT_SIZE
                at = entry.read(at, at + batch.lengths[slot])
                # The core knows what its own commands deleted.
                if not at or entry.sender == self.port:
                    continue
                if entry.kind == NEW_MESSAGE:
                    self._flows.changed(entry, now)
                elif entry.kind == DELETE_MESSAGE:
                    self._flows.ended(entry, ticks)
            self.execute(now)
            if count < SLOTS:
                break

    def close(self) -> None:
        self._requests.close()
        self._events.close()
