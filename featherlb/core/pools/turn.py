"""Whose turn it is, where a worker and a program in the kernel count together."""

from collections.abc import Sequence

from featherlb.core.pools.schedulers import Member

WRAP = 1 << 32


class Turn:
    """The slots of a round, in memory that the program shares: it takes the next one, too."""

    def __init__(self, slots: Sequence[Member], cursor: memoryview) -> None:
        """`cursor` is one word of 32 bits: the slots used so far."""
        self.slots = slots
        self._cursor = cursor

    @property
    def place(self) -> int:
        """The number of the next slot."""
        return int(self._cursor[0]) % len(self.slots)

    def peek(self) -> Member:
        """The member whose turn it is."""
        return self.slots[self.place]

    def take(self) -> Member:
        """The member whose turn it is; then it is the next one's. If the program takes one at the
        same moment, both have the same."""
        member = self.peek()
        self._cursor[0] = (self._cursor[0] + 1) % WRAP
        return member
