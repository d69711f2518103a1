"""Weighted rendezvous hashing by its definition: every member's score, and the best one."""

from collections.abc import Sequence
from fractions import Fraction
from math import log

MASK = (1 << 64) - 1


def splitmix64(state: int, steps: int) -> int:
    """The output after so many steps of the generator, run one by one."""
    output = 0
    for _ in range(steps):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        output = state
        output = ((output ^ (output >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        output = ((output ^ (output >> 27)) * 0x94D049BB133111EB) & MASK
        output ^= output >> 31
    return output


def best(members: Sequence[tuple[int, int]], row: int) -> int:
    """The position of the row's owner among (hash, weight) pairs."""

    def score(position: int) -> float:
        number, weight = members[position]
        fraction = Fraction(2 * (splitmix64(number, row + 1) >> 11) + 1, 1 << 54)
        return log(fraction) / weight

    return max(range(len(members)), key=score)
