"""Counters of the packet path: packets by reason, and traffic and outcomes by pool member.

Flat memory, which `core/path/export.py` reads.
"""

from array import array

import cython

from featherlb.core.pools.latency import Latencies
from featherlb.model import Verdict
from featherlb.model.reason import Reason

if not cython.compiled:
    from featherlb.core.flows.record import Record

# The counters of a member begin at its number times COUNTERS: packets and bytes forward, packets
# and bytes of replies, then
OPENED = 4  # flows
RESETS = 5  # established connections that the backend reset
REFUSED = 6  # connections that it refused
SYN_TIMEOUTS = 7  # SYNs that it never answered
SYN_RETRIES = 8  # SYNs that the client retransmitted before an answer
DOUBTFUL = 9  # SYNs, FINs, RSTs and handshakes' ACKs that changed nothing, as they may be forged
MOVED_REFUSED = 10  # flows that it refused, and that went to another backend
MOVED_SILENT = 11  # flows that it did not answer in time, and that went to another backend
PORTS_RECLAIMED = 12  # half-open flows that lost their source port to another one
RETRANSMITS = 13  # data that clients, RETRANSMITS + 1 that the backend has sent again
COUNTERS = 15

NOT_OURS = int(Reason.NOT_OURS)
PASS = int(Verdict.PASS)
DROP = int(Verdict.DROP)


class Counters:
    """`reasons` counts packets by `Reason`, `members` holds the counters of all members,
    `latencies` how long they take to answer."""

    def __init__(self) -> None:
        self.reasons = memoryview(array("Q", bytes(8 * len(Reason))))
        self.members = memoryview(array("Q", bytes(8 * COUNTERS)))
        self.latencies = Latencies()

    def begin(self, member: int) -> None:
        """Reset the counters of this member number."""
        end = (member + 1) * COUNTERS
        if len(self.members) < end:
            larger = array("Q", bytes(max(2 * self.members.nbytes, 8 * end)))
            larger[: len(self.members)] = array("Q", self.members)
            self.members = memoryview(larger)
        for i in range(end - COUNTERS, end):
            self.members[i] = 0
        self.latencies.begin(member)

    def add(self, member: int, which: int) -> None:
        """Add one to a counter of a member."""
        self.members[member * COUNTERS + which] += 1

    def fail(self, record: Record, how: int) -> None:
        """Count a flow that its member did not take: `how` is REFUSED or SYN_RETRIES."""
        self.members[record.member_id * COUNTERS + how] += 1
        self.latencies.failed(record.member_id)

    def drop(self, reason: int) -> int:
        """Count a dropped packet; returns the verdict."""
        self.reasons[reason] += 1
        return DROP

    def pass_on(self) -> int:
        """Count a packet that isn't ours and passes unchanged; returns the verdict."""
        self.reasons[NOT_OURS] += 1
        return PASS
