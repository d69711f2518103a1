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


NETWORK_MULTIPLIER = 0x9E3779B97F4A7C15
"""The golden ratio times 2**64: multiplicative hashing (Knuth, TAOCP 3, 6.4)."""
MASK64 = 0xFFFFFFFFFFFFFFFF
FIRST_BIT = 1


class Counters:
    """`reasons` counts packets by `Reason`, `members` holds the counters of all members,
    `latencies` how long they take to answer.

    `networks` has two words for each member: from which networks (/24, /64) clients have opened
    connections to it, and whose connections it has failed, since somebody has read and reset them.
    Each network is one of 64 bits, so a word tells how many there are as long as they are few.
    """

    def __init__(self) -> None:
        self.reasons = memoryview(array("Q", bytes(8 * len(Reason))))
        self.members = memoryview(array("Q", bytes(8 * COUNTERS)))
        self.latencies = Latencies()
        self.networks = memoryview(array("Q", bytes(8 * 2)))

    def begin(self, member: int) -> None:
        """Reset the counters of this member number."""
        end = (member + 1) * COUNTERS
        if len(self.members) < end:
            larger = array("Q", bytes(max(2 * self.members.nbytes, 8 * end)))
            larger[: len(self.members)] = array("Q", self.members)
            self.members = memoryview(larger)
            count = len(larger) // COUNTERS
            networks = array("Q", bytes(8 * 2 * count))
            networks[: len(self.networks)] = array("Q", self.networks)
            self.networks = memoryview(networks)
        for i in range(end - COUNTERS, end):
            self.members[i] = 0
        self.latencies.begin(member)
        self.networks[2 * member] = 0
        self.networks[2 * member + 1] = 0

    def add(self, member: int, which: int) -> None:
        """Add one to a counter of a member."""
        self.members[member * COUNTERS + which] += 1

    def count_repeated(self, member: int, reply: int, count: int) -> None:
        """Count segments of a member's flows whose data came again in this direction."""
        self.members[member * COUNTERS + RETRANSMITS + reply] += count

    def open(self, member: int, high: int, low: int) -> None:
        """Count a flow of the client with this address."""
        self.add(member, OPENED)
        self.networks[2 * member] |= network_bit(high, low)

    def fail(self, record: Record, how: int) -> None:
        """Count a flow that its member did not take: `how` is REFUSED or SYN_RETRIES."""
        member = record.member_id
        self.add(member, how)
        self.networks[2 * member + 1] |= network_bit(record.client_high, record.client_low)
        self.latencies.failed(member)

    def take_networks(self, member: int) -> tuple[int, int]:
        """The words of this member in `networks`, which are reset."""
        at = 2 * member
        words = self.networks[at], self.networks[at + 1]
        self.networks[at] = 0
        self.networks[at + 1] = 0
        return words

    def drop(self, reason: int) -> int:
        """Count a dropped packet; returns the verdict."""
        self.reasons[reason] += 1
        return DROP

    def pass_on(self) -> int:
        """Count a packet that isn't ours and passes unchanged; returns the verdict."""
        self.reasons[NOT_OURS] += 1
        return PASS


def network_bit(high: int, low: int) -> int:
    """The bit of an address's network: its first 64 bits, of an IPv4 address the first 24."""
    network = high if high else low >> 8
    return FIRST_BIT << ((network * NETWORK_MULTIPLIER & MASK64) >> 58)
