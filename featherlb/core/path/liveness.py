"""Finds connections whose ends are gone: a RST or FIN can be lost, and nobody repeats a RST.

A connection that has been silent for a while gets one probe, towards its backend and in the name of
its client (RFC 1122 section 4.2.3.6). A backend that has the connection answers with an ACK, which
goes on to the client. Who doesn't have it, backend or client, answers with a RST, which ends the
flow and tells the other end. The answers of a connection that lives don't extend its timeout.
"""

from collections import deque

import cython

from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.flows.table import FlowTable
from featherlb.core.path.outbox import Outbox
from featherlb.net.build import flow_probe

if not cython.compiled:
    from featherlb.core.flows.record import direction_of
    from featherlb.core.path.terminate import towards
    from featherlb.net.packet import MASK32

AT_ONCE = 100
"""Probes per call of `probe`, and so about 1000 a second."""


class Liveness:
    """Probes silent connections."""

    def __init__(self, flows: FlowTable, lifecycle: Lifecycle, outbox: Outbox) -> None:
        self._flows = flows
        self._lifecycle = lifecycle
        self._outbox = outbox
        self._silent: deque[int] = deque()

    def probe(self) -> None:
        """Probe connections that have become silent. Call it once per tick."""
        silent = self._silent
        silent.extend(self._lifecycle.take_silent())
        for _ in range(min(len(silent), AT_ONCE)):
            flow = silent.popleft()
            # It may have ended or moved since: then it is another flow, or none, or not silent.
            if self._flows.at(flow).protocol and self._lifecycle.is_silent(flow):
                self._probe(flow)

    def _probe(self, flow: int) -> None:
        """A segment in front of what the backend expects. If there is a connection, any such
        segment is answered with an ACK; if not, the RST has what the client expects as its
        sequence number."""
        record = self._flows.at(flow)
        expected = direction_of(record, 1).expected
        acknowledgement = direction_of(record, 0).expected
        packet = flow_probe(*towards(record, 1), (expected - 1) & MASK32, acknowledgement)
        self._outbox.add(packet)
