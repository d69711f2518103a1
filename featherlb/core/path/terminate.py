"""Ending flows by hand, so that both ends know and the connection isn't joined again."""

import cython

from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.table import FlowTable
from featherlb.core.flows.tombstones import EndedConnections
from featherlb.core.path.offloaded import Offload
from featherlb.core.path.outbox import Answers
from featherlb.net.build import flow_probe, flow_reset

if not cython.compiled:
    from featherlb.core.flows.table import EXPECTED, FLAGS, IPV6, KEY_BYTES, PORTS, PROTOCOL
    from featherlb.net.packet import TCP


class Ending:
    """Ends flows that an operator names."""

    def __init__(
        self,
        flows: FlowTable,
        lifecycle: Lifecycle,
        offload: Offload,
        ended: EndedConnections,
        answers: Answers,
    ) -> None:
        self._flows = flows
        self._lifecycle = lifecycle
        self._offload = offload
        self._ended = ended
        self._answers = answers

    def end_flow(self, flow: int, key: bytes, reset: bool, now: float) -> bool:
        """End the flow of that record number if it still is the one with that key (see
        `views.read_flows`); whether it was. With `reset`, both ends of a connection get a RST. What
        they still send is refused, where it would be adopted otherwise."""
        flows = self._flows
        if not 0 < flow <= flows.last_record():
            return False
        if bytes(flows.u8[flow * 128 : flow * 128 + KEY_BYTES]) != key:
            return False
        if flows.u8[flow * 128 + PROTOCOL] == TCP:
            self._remember_ended(flow, int(now * 10))
            if reset and flows.is_carried(flow):
                self._abandon(flow, int(now * 10))
                return True
            if reset:
                self._reset_both(flow)
        self._lifecycle.close(flow)
        return True

    def _abandon(self, flow: int, ticks: int) -> None:
        """Take a connection away from conntrack and make both ends say where they are, so that
        their answer can be refused: of the sequence numbers nothing is known here."""
        self._offload.abandon(flow, ticks)
        for side in (0, 1):
            self._answers.add(flow_probe(*self._turned(flow, side)))

    def _remember_ended(self, flow: int, ticks: int) -> None:
        flows = self._flows
        at = flow * 16
        client, vip = (flows.u64[at], flows.u64[at + 1]), (flows.u64[at + 2], flows.u64[at + 3])
        self._ended.remember((*client, *vip, flows.u32[flow * 32 + PORTS]), ticks)

    def _reset_both(self, flow: int) -> None:
        for side in (0, 1):
            expected = self._flows.u32[flow * 32 + EXPECTED + side]
            self._answers.add(flow_reset(*self._turned(flow, side), expected))

    def _turned(self, flow: int, side: int) -> tuple[int, tuple[int, int], tuple[int, int], int]:
        """The version, source, destination and ports of packets that answer one side's."""
        flows = self._flows
        at = flow * 16 + 4 * side
        ports = flows.u32[flow * 32 + PORTS + side]
        return (
            6 if flows.u8[flow * 128 + FLAGS] & IPV6 else 4,
            (flows.u64[at + 2], flows.u64[at + 3]),
            (flows.u64[at], flows.u64[at + 1]),
            (ports & 0xFFFF) << 16 | ports >> 16,
        )
