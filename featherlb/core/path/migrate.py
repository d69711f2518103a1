"""Migrates the flows of a service that changes its datapath."""

from collections.abc import Collection

import cython

from featherlb.core.flows.kernel import Commands
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import Members
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.core.path.carrying import Carrying
from featherlb.core.pools.pool import Pool
from featherlb.net.protocols import TCP

if not cython.compiled:
    from featherlb.core.flows.record import (
        ABANDONED,
        CARRIED,
        COUNTED,
        LOCAL_CLIENT,
        OFFLOADED,
        SPLICED,
        WIRED,
        direction_of,
    )
    from featherlb.core.flows.windows import start_unsure

NEW = int(State.NEW)
SYN_SENT = int(State.SYN_SENT)
SYN_RETRIED = int(State.SYN_RETRIED)
CLOSING = int(State.CLOSING)
CLOSED = int(State.CLOSED)
REPLACED = int(State.REPLACED)


class Migration:
    """Moves flows from one datapath to another."""

    def __init__(
        self,
        flows: FlowTable,
        members: Members,
        lifecycle: Lifecycle,
        commands: Commands,
        carrying: Carrying,
    ) -> None:
        self._flows = flows
        self._members = members
        self._lifecycle = lifecycle
        self._commands = commands
        self._carrying = carrying

    def migrate(self, pools: Collection[Pool]) -> None:
        """Move the flows of these pools to their services' datapaths. Flows of clients on this host
        never use frames."""
        flows = self._flows
        for flow in range(1, flows.last_record() + 1):
            record = flows.at(flow)
            if not record.protocol:
                continue
            pool = self._members.by_id[record.member_id].pool
            if pool not in pools:
                continue
            if record.flags & CARRIED and not pool.carries:
                self._carrying.release(flow)
            if not record.flags & LOCAL_CLIENT:
                record.flags = record.flags & ~WIRED | (WIRED if pool.raw else 0)
            if pool.offloaded != (record.flags & OFFLOADED != 0):
                self.migrate_flow(flow, pool.offloaded)

    def migrate_flow(self, flow: int, offloaded: bool) -> None:
        """Have the kernel translate a flow from now on, or no longer; a flow that both ends have
        closed, or whose client has another backend, is removed."""
        flows = self._flows
        record = flows.at(flow)
        state = record.state
        if flows.is_offloaded(flow):
            self._commands.delete(flows, flow)
        spliced = record.protocol == TCP and record.flags & SPLICED
        # The kernel converts no windows, and knows no flow that opens with a cookie: both ends
        # notice when they send next.
        kept = not spliced or (
            state not in (NEW, SYN_SENT, SYN_RETRIED) and not flows.splices[flow] >> 32
        )
        if state in (CLOSING, CLOSED, REPLACED) or not kept:
            record.flags |= ABANDONED
            self._lifecycle.close(flow)
            return
        for reply in (0, 1):
            direction_of(record, reply).kernel_packets = 0
        if offloaded:
            record.forward_bytes = record.reply_bytes = 0
            # The kernel does not count responses.
            if record.protocol != TCP:
                record.flags &= ~COUNTED
            record.flags |= OFFLOADED
            self._commands.insert(flows, flow)
        else:
            record.flags &= ~(OFFLOADED | ABANDONED)
            if record.protocol == TCP:
                start_unsure(record)
            self._lifecycle.compute_deltas(flow)
        self._lifecycle.enter(flow, state, record.seen)
