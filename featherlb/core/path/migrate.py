"""What becomes of a service's flows when it changes its datapath: they go on by the new one."""

from collections.abc import Collection

import cython

from featherlb.core.flows.conntrack import Requests
from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.members import Members
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.core.pools.pool import Pool

if not cython.compiled:
    from featherlb.core.flows.table import (
        ABANDONED,
        BYTES,
        CARRIED,
        FLAGS,
        LOCAL_CLIENT,
        MEMBER,
        OFFLOADED,
        PROTOCOL,
        SEEN,
        STATE,
        WIRED,
    )

CLOSING = int(State.CLOSING)
CLOSED = int(State.CLOSED)


class Handover:
    """Hands flows over from one datapath to another."""

    def __init__(
        self, flows: FlowTable, members: Members, lifecycle: Lifecycle, requests: Requests
    ) -> None:
        self._flows = flows
        self._members = members
        self._lifecycle = lifecycle
        self._requests = requests

    def switch(self, pools: Collection[Pool]) -> None:
        """Meet the packets of these pools' flows where those of new flows are met. The flows of
        this host's own clients never are on a wire."""
        flows = self._flows
        for flow in range(1, flows.last_record() + 1):
            at = flow * 128
            if not flows.u8[at + PROTOCOL]:
                continue
            pool = self._members.slots[flows.u16[flow * 64 + MEMBER]].pool
            if pool not in pools:
                continue
            if not flows.u8[at + FLAGS] & LOCAL_CLIENT:
                wired = WIRED if pool.raw else 0
                flows.u8[at + FLAGS] = flows.u8[at + FLAGS] & ~WIRED | wired
            if pool.offloaded != (flows.u8[at + FLAGS] & OFFLOADED != 0):
                self.hand_over(flow, pool.offloaded)

    def hand_over(self, flow: int, carried: bool) -> None:
        """Have conntrack carry a flow from now on, or no more; one that both ends have closed
        ends."""
        flows = self._flows
        at = flow * 128
        state = flows.u8[at + STATE]
        if flows.is_carried(flow):
            self._requests.delete(flows, flow)
        if state in (CLOSING, CLOSED):
            flows.u8[at + FLAGS] |= ABANDONED
            self._lifecycle.close(flow)
            return
        for direction in (0, 1):
            flows.u32[flow * 32 + CARRIED + direction] = 0
        ticks = flows.u32[flow * 32 + SEEN]
        if carried:
            for direction in (0, 1):
                flows.u64[flow * 16 + BYTES + direction] = 0
            flows.u8[at + FLAGS] |= OFFLOADED
            self._requests.create(flows, flow)
        else:
            flows.u8[at + FLAGS] &= ~(OFFLOADED | ABANDONED)
            self._lifecycle.settle(flow)
        self._lifecycle.enter(flow, state, ticks)
