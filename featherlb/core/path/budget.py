"""A budget for new flows of datagrams during a flood of them.

Each datagram from an address that nobody has used opens a flow and costs a backend its attention,
and unlike a SYN it can't be answered with a cookie. What a flood leaves behind are flows that no
backend answers. While there are many without an answer,
only so many more may open: datagrams of known flows go first, as they need no budget.

The datagrams of one-packet services need none either: whether one opens a flow is known only when
it has been scheduled.
"""

from featherlb.core.flows.lifecycle import Lifecycle
from featherlb.core.path.cookies import threshold
from featherlb.model.ticks import TICKS_PER_SECOND

FILLED = 4
"""At this rate, one in so many records of the flow table is of a datagram without an answer."""


class DatagramBudget:
    """Decides whether a datagram may open a flow. `rate` is how many may in a tick during a flood,
    which there is while `limit` flows or more are without an answer."""

    def __init__(self, lifecycle: Lifecycle, capacity: int, one_way: float) -> None:
        """`capacity` is the flow table's, `one_way` the timeout of flows of datagrams without an
        answer in seconds."""
        self._lifecycle = lifecycle
        self.limit = threshold(capacity)
        self.rate = max(1, int(capacity / FILLED / (one_way * TICKS_PER_SECOND)))
        self._tick = 0
        self._left = 0

    def allows(self, ticks: int) -> bool:
        """Whether another flow may open now; then it has."""
        if self._lifecycle.unanswered < self.limit:
            return True
        if ticks != self._tick:
            self._tick = ticks
            self._left = self.rate
        if not self._left:
            return False
        self._left -= 1
        return True
