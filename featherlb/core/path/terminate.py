"""Ends flows for an operator, so that both ends notice and the connection isn't adopted again."""

from typing import Any

import cython

from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tcp_state import State
from featherlb.core.flows.tombstones import Tombstones
from featherlb.core.path.offloaded import OffloadedFlows
from featherlb.core.path.outbox import Outbox
from featherlb.net.build import flow_probe, flow_reset
from featherlb.net.protocols import TCP

REPLACED = int(State.REPLACED)

if not cython.compiled:
    from featherlb.core.flows.record import CARRIED, IPV6, SPLICED, direction_of, ports_of
    from featherlb.net.packet import MASK32


class Termination:
    """Ends flows that an operator names."""

    def __init__(
        self,
        flows: FlowTable,
        lifecycle: Lifecycle,
        offload: OffloadedFlows,
        tombstones: Tombstones,
        outbox: Outbox,
    ) -> None:
        self._flows = flows
        self._lifecycle = lifecycle
        self._offload = offload
        self._tombstones = tombstones
        self._outbox = outbox

    def terminate(self, flow: int, key: bytes, reset: bool, now: float) -> bool:
        """End the flow of that record number if it still has that key (see `export.read_flows`);
        whether it had. With `reset`, both ends of a connection get a RST. Later segments are
        refused, even where a scheduler could adopt them. The connection of a flow that has another
        backend by now continues."""
        flows = self._flows
        if not 0 < flow <= flows.last_record():
            return False
        if flows.records.key(flow) != key:
            return False
        if flows.at(flow).flags & CARRIED:
            self._lifecycle.catch_up(flow)
        if flows.at(flow).protocol == TCP and flows.at(flow).state != REPLACED:
            self._remember_ended(flow, int(now * 10))
            if reset and flows.is_offloaded(flow):
                self._abandon(flow, int(now * 10))
                return True
            if reset:
                self._reset_both(flow)
        self._lifecycle.close(flow)
        return True

    def _abandon(self, flow: int, ticks: int) -> None:
        """Delete a connection from conntrack and have both ends send an ACK, which can be refused
        with a RST: its sequence numbers are not known here."""
        self._offload.abandon(flow, ticks)
        for side in (0, 1):
            self._outbox.add(flow_probe(*towards(self._flows.at(flow), side)))

    def _remember_ended(self, flow: int, ticks: int) -> None:
        record = self._flows.at(flow)
        client, vip = (record.client_high, record.client_low), (record.vip_high, record.vip_low)
        self._tombstones.remember((*client, *vip, ports_of(direction_of(record, 0))), ticks)

    def _reset_both(self, flow: int) -> None:
        for side in (0, 1):
            record = self._flows.at(flow)
            expected = direction_of(record, side).expected
            if record.flags & SPLICED and not side:
                expected = (expected + self._flows.splices[flow]) & MASK32
            self._outbox.add(flow_reset(*towards(record, side), expected))


def towards(record: Any, side: int) -> tuple[int, tuple[int, int], tuple[int, int], int]:
    """IP version, source, destination and ports of packets to one side, 0 being the client, in the
    name of the other."""
    direction = direction_of(record, side)
    ports = direction.dst_port << 16 | direction.src_port
    return (
        6 if record.flags & IPV6 else 4,
        (direction.dst_high, direction.dst_low),
        (direction.src_high, direction.src_low),
        ports,
    )
