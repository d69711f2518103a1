"""Which flows give up their SNAT port when no other is left towards a backend.

A spoofed SYN costs its sender nothing, but holds a port for as long as its flow is half-open. So
flows that are closing or half-open can lose their port to a new flow, oldest first; established
ones never do. They are in lists, one for each target (a backend endpoint), kind of port and `Rank`,
in the order in which they got there.

The lists are flat memory, whose pages the kernel allocates on first use: two links and the number
of the list for each flow. List numbers are multiples of `RANKS` for `Rank.NEVER`, which has none.
"""

import mmap
from array import array
from collections.abc import Hashable
from enum import IntEnum

from featherlb.core.flows.tcp_state import State


class Rank(IntEnum):
    """The lists of a target, in the order in which their flows give up their ports."""

    NEVER = 0
    """No list: the connection is open, or datagrams were answered."""
    CLOSING = 1
    UNANSWERED = 2
    """The backend has not answered yet."""
    ANSWERED = 3
    """The backend has answered, the client's ACK is missing."""


RANKS = len(Rank)
_RANKS = {
    State.CLOSING: Rank.CLOSING,
    State.CLOSED: Rank.CLOSING,
    State.NEW: Rank.UNANSWERED,
    State.SYN_SENT: Rank.UNANSWERED,
    State.SYN_RETRIED: Rank.UNANSWERED,
    State.ADOPTED: Rank.UNANSWERED,
    State.REPLACED: Rank.UNANSWERED,
    State.UDP_ONE_WAY: Rank.UNANSWERED,
    State.SYN_RECEIVED: Rank.ANSWERED,
}
RANK_OF = memoryview(bytearray(_RANKS.get(state, Rank.NEVER) for state in State))
"""The rank of a flow by its state."""


class PortHolders:
    """The lists of all targets. Flows are record numbers, 0 is none."""

    def __init__(self, capacity: int) -> None:
        """`capacity` is that of the flow table."""
        self._following = _zeros(capacity + 1)
        self._preceding = _zeros(capacity + 1)
        self._list = _zeros(capacity + 1)
        self._first = memoryview(array("I", bytes(8 * RANKS)))
        self._last = memoryview(array("I", bytes(8 * RANKS)))
        self._numbers: dict[Hashable, list[int]] = {}
        """Number and members of each target."""
        self._free: list[int] = []

    def join(self, target: Hashable) -> int:
        """The number of this target, of which there is another member."""
        known = self._numbers.get(target)
        if known is None:
            number = self._free.pop() if self._free else len(self._numbers)
            known = self._numbers[target] = [number, 0]
            if (number + 1) * 2 * RANKS > len(self._first):
                self._first = _doubled(self._first)
                self._last = _doubled(self._last)
        known[1] += 1
        return known[0]

    def leave(self, target: Hashable) -> None:
        """A member of the target, whose flows have ended, is gone."""
        known = self._numbers[target]
        known[1] -= 1
        if not known[1]:
            del self._numbers[target]
            self._free.append(known[0])

    def place(self, flow: int, target: int, privileged: bool, rank: int) -> None:
        """Put a flow at the end of the list of this target number, kind of port and rank, unless
        it is there already."""
        wanted = (2 * target + privileged) * RANKS + rank
        if self._list[flow] != wanted:
            self.take(flow)
            if rank:
                last = self._last[wanted]
                self._list[flow] = wanted
                self._preceding[flow] = last
                self._following[flow] = 0
                if last:
                    self._following[last] = flow
                else:
                    self._first[wanted] = flow
                self._last[wanted] = flow

    def take(self, flow: int) -> None:
        """Take a flow off its list, if it is on one."""
        number = self._list[flow]
        if number:
            before = self._preceding[flow]
            after = self._following[flow]
            if before:
                self._following[before] = after
            else:
                self._first[number] = after
            if after:
                self._preceding[after] = before
            else:
                self._last[number] = before
            self._list[flow] = 0

    def first(self, target: int, privileged: bool, rank: int) -> int:
        """The flow that has been on this list for longest, or 0."""
        return self._first[(2 * target + privileged) * RANKS + rank]


def _zeros(count: int) -> memoryview:
    return memoryview(mmap.mmap(-1, 4 * count)).cast("I")


def _doubled(numbers: memoryview) -> memoryview:
    return memoryview(array("I", bytes(numbers) + bytes(numbers.nbytes)))
