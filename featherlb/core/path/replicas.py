"""Keeps replicas of other nodes' flows, and carries them on when their packets come here.

See `core/flows/announcer.py` for owners and epochs. A client's packet makes this node the owner. A
reply doesn't, while the owner is alive: it may take another way than the client's packets for the
life of the connection, and the flow must not change hands with each packet.
"""

from collections.abc import Iterable

import cython

from featherlb.core.flows.announcer import Announcer, Kind
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import Members
from featherlb.core.flows.record import RECORD_SIZE, Records
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.core.path.context import Context
from featherlb.core.path.restore import Restoration
from featherlb.model import Sync
from featherlb.model.shard import WHOLE, Shard
from featherlb.net.protocols import TCP, UDP

if not cython.compiled:
    from featherlb.core.flows.record import (
        ANSWERED,
        FULL,
        SPLICED,
        UNSURE,
        Record,
        direction_of,
        ports_of,
    )

STATES = len(State)
REPLICA = int(State.REPLICA)
REPLACED = int(State.REPLACED)
OPENED = int(Kind.OPENED)
USED = int(Kind.USED)
CLOSED_KIND = int(Kind.CLOSED)
WHEN_ESTABLISHED = tuple(Sync).index(Sync.ESTABLISHED)


class Replicas:
    """`entered` counts replicas, `taken_over` flows that became this node's, `yielded` those that
    became another's, `conflicts` flows that two nodes had with different backends, `unmatched`
    those that no service or backend here matches, or for which there was no room."""

    def __init__(
        self,
        flows: FlowTable,
        members: Members,
        lifecycle: Lifecycle,
        restoration: Restoration,
        announcer: Announcer,
        shard: Shard = WHOLE,
    ) -> None:
        self._flows = flows
        self._members = members
        self._lifecycle = lifecycle
        self._restoration = restoration
        self._announcer = announcer
        self._shard = shard
        self._living: frozenset[int] = frozenset()
        self.entered = 0
        self.taken_over = 0
        self.yielded = 0
        self.conflicts = 0
        self.unmatched = 0

    def set_living(self, nodes: Iterable[int]) -> None:
        """The other nodes that are alive."""
        self._living = frozenset(nodes)

    def counts(self) -> dict[str, int]:
        """What has happened, by the names of metrics."""
        return {
            "entered": self.entered,
            "taken_over": self.taken_over,
            "yielded": self.yielded,
            "conflicts": self.conflicts,
            "unmatched": self.unmatched,
        }

    # Announcements of others

    def receive(self, announcements: bytearray, ticks: int) -> None:
        """Enter what another node has announced; bytes after the last whole record are ignored."""
        if len(announcements) < RECORD_SIZE:
            return
        self._restoration.forget_members()
        records = Records(memoryview(announcements))
        for number in range(records.count):
            self.enter(records.at(number), ticks)

    def enter(self, new: Record, ticks: int) -> None:
        """Enter one announcement, of which nothing is trusted but that a node has sent it."""
        announcer = self._announcer
        flows = self._flows
        if new.protocol not in (TCP, UDP) or new.state >= STATES or new.state == REPLICA:
            self.unmatched += 1
            return
        # In `full` mode the range of its source port says which worker gets its replies.
        if not new.flags & FULL and not self._shard.has(
            new.client_high, new.client_low, new.client_port
        ):
            return
        ref = flows.find(
            new.client_high,
            new.client_low,
            new.vip_high,
            new.vip_low,
            ports_of(direction_of(new, 0)),
            new.protocol,
        )
        flow = ref >> 1
        if ref & 1:
            self.unmatched += 1
            return
        if new.kind == CLOSED_KIND:
            if flow and flows.at(flow).state == REPLICA and self.compare(flow, new) <= 0:
                self.remove(flow)
            return
        seen = ticks - new.idle if new.idle < ticks else 0
        created = ticks - new.age if new.age < ticks else 0
        if flow:
            record = flows.at(flow)
            order = self.compare(flow, new)
            same = (
                record.backend_high == new.backend_high
                and record.backend_low == new.backend_low
                and record.backend_port == new.backend_port
                and record.source_high == new.source_high
                and record.source_low == new.source_low
                and record.source_port == new.source_port
            )
            if not same and order:
                self.conflicts += 1
            if order > 0:
                if announcer.owners[flow] == announcer.node:
                    announcer.announce(flow, USED)
                return
            if new.owner == announcer.node and record.state != REPLICA:
                # It had the flow already before it was restarted.
                announcer.epochs[flow] = new.epoch
                return
            if same:
                if record.state != REPLICA:
                    self.yielded += 1
                self.keep(flow, new, seen)
                return
            # It may be the client's next connection: the announcement of the end was lost.
            if not order and created <= flows.created[flow] + 1:
                return
            self.remove(flow)
        splice = 0
        if new.flags & SPLICED and new.protocol == TCP:
            splice = new.splice
            new.reply_bytes = 0
        flow = self._restoration.insert(new, created, splice)
        if not flow:
            self.unmatched += 1
            return
        record = flows.at(flow)
        record.state = REPLICA
        self._lifecycle.restore(flow, self._members.by_id[record.member_id], seen)
        self.entered += 1
        self.keep(flow, new, seen)

    def keep(self, flow: int, new: Record, seen: int) -> None:
        """Have a flow as another node's."""
        announcer = self._announcer
        announcer.owners[flow] = new.owner
        announcer.epochs[flow] = new.epoch
        announcer.announced[flow] = 0
        announcer.syncs[flow] = WHEN_ESTABLISHED
        announcer.states[flow] = new.state
        self._lifecycle.enter_replica(flow, new.state, seen)

    def compare(self, flow: int, new: Record) -> int:
        """Which is right about the owner: more than 0, this table; less, the announcement; 0 if
        they agree."""
        announcer = self._announcer
        epoch = announcer.epochs[flow]
        owner = announcer.owners[flow]
        if epoch != new.epoch:
            return 1 if epoch > new.epoch else -1
        if owner != new.owner:
            return 1 if owner > new.owner else -1
        return 0

    def remove(self, flow: int) -> None:
        """Remove a flow that another node knows better; its end is not announced."""
        self._announcer.announced[flow] = 0
        self._lifecycle.close(flow)

    # Packets

    def meet(self, ctx: Context) -> None:
        """A packet has come to a replica: carry the flow on here, or only this packet."""
        announcer = self._announcer
        flow = ctx.flow
        if ctx.reply and announcer.owners[flow] in self._living:
            return
        record = self._flows.at(flow)
        if record.protocol == TCP:
            # Its numbers are old, and the other node may have seen the answer to its SYN.
            record.flags |= UNSURE | ANSWERED
        announcer.owners[flow] = announcer.node
        announcer.epochs[flow] += 1
        self._lifecycle.take_over(flow, announcer.states[flow], ctx.ticks)
        announcer.announce(flow, OPENED)
        self.taken_over += 1
