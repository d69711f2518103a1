"""Who gets the next flow, where a worker and a program in the kernel share what is changed by each:
both go by one count of slots used."""

from collections.abc import Sequence
from enum import IntEnum

from featherlb.core.pools.schedulers import Member

MASK32 = (1 << 32) - 1


class How(IntEnum):
    """`enum how` in featherlb/bpf/flows.c."""

    BY_WORKER = 0
    IN_TURN = 1
    AT_RANDOM = 2
    BY_LOAD = 3
    BY_CLIENT = 4
    BY_TUPLE = 5


class Turn:
    """The slots of a service whose flows go to the next slot, or to slots drawn at random: the
    draws are a function of the count, too."""

    def __init__(self, how: How, slots: Sequence[Member], count: memoryview, seed: int) -> None:
        """`count` is one word of 32 bits, of memory that the program shares; so has `seed`."""
        self.slots = slots
        self._how = how
        self._count = count
        self._seed = seed

    @property
    def places(self) -> tuple[int, ...]:
        """The numbers of the slots that are looked at next."""
        count, size = self._count[0], len(self.slots)
        if self._how is How.IN_TURN:
            return (count % size,)
        draws = 2 if self._how is How.BY_LOAD else 1
        return tuple(
            scrambled(count + number + self._seed & MASK32) % size for number in range(draws)
        )

    def peek(self) -> Member:
        """The member that gets the next flow."""
        first, *more = (self.slots[place] for place in self.places)
        for other in more:
            if other.active * first.weight < first.active * other.weight:
                return other
        return first

    def take(self) -> Member:
        """The same; then it has been its turn. If the program takes one at the same moment, both
        may take the same."""
        member = self.peek()
        self._count[0] = self._count[0] + len(self.places) & MASK32
        return member

    def explain(self) -> str:
        """Why that member does, as a clause."""
        numbers = " and ".join(str(place + 1) for place in self.places)
        size = len(self.slots)
        if self._how is How.IN_TURN:
            return f"its slot is the next in turn, number {numbers} of {size}"
        if self._how is How.AT_RANDOM:
            return f"its slot is drawn next, number {numbers} of {size}"
        return f"of the slots drawn next, numbers {numbers} of {size}, its has the least load"


def scrambled(number: int) -> int:
    """A permutation of the numbers of 32 bits that looks random (Wellons, "Prospecting for Hash
    Functions", 2018: lowbias32)."""
    number ^= number >> 16
    number = number * 0x7FEB352D & MASK32
    number ^= number >> 15
    number = number * 0x846CA68B & MASK32
    return number ^ number >> 16
