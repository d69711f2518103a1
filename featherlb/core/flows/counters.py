"""What is counted while packets go by: why each met its fate, and what pool members have had.

Flat memory; `views` makes of it what people see.
"""

from array import array

from featherlb.model import Verdict
from featherlb.model.reason import Reason

# The counts of a member, from its number times COUNTERS on: packets and bytes forward, packets and
# bytes of replies, then
OPENED = 4  # flows
RESETS = 5  # open connections that the backend has reset
REFUSED = 6  # those that it has refused
SYN_TIMEOUTS = 7  # SYNs that it has never answered
SYN_RETRIES = 8  # those that it left without an answer until the client sent them again
COUNTERS = 9

NOT_OURS = int(Reason.NOT_OURS)
PASS = int(Verdict.PASS)
DROP = int(Verdict.DROP)


class Counters:
    """`reasons` has a count of packets for each `Reason`, `members` those of all members."""

    def __init__(self) -> None:
        self.reasons = memoryview(array("Q", bytes(8 * len(Reason))))
        self.members = memoryview(array("Q", bytes(8 * COUNTERS)))

    def begin(self, member: int) -> None:
        """Count from 0 for the member of this number, which is new."""
        end = (member + 1) * COUNTERS
        if len(self.members) < end:
            larger = array("Q", bytes(max(2 * self.members.nbytes, 8 * end)))
            larger[: len(self.members)] = array("Q", self.members)
            self.members = memoryview(larger)
        for i in range(end - COUNTERS, end):
            self.members[i] = 0

    def add(self, member: int, which: int) -> None:
        """Count one of these for a member."""
        self.members[member * COUNTERS + which] += 1

    def drop(self, reason: int) -> int:
        """Count why the packet is dropped: the verdict."""
        self.reasons[reason] += 1
        return DROP

    def pass_on(self) -> int:
        """Count a packet that isn't ours, and goes on as it came: the verdict."""
        self.reasons[NOT_OURS] += 1
        return PASS
