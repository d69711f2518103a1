"""Maglev's table as the paper's pseudo-code fills it (Eisenbud et al. 2016, section 3.4),
with whole permutations and turns as fractions."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice


def permutation(offset: int, skip: int, size: int) -> list[int]:
    return [(offset + j * skip) % size for j in range(size)]


def turns(weights: Sequence[int]) -> Iterator[int]:
    """Whose turn it is: member i at the times 0, 1/w, 2/w, …; together, the lower number first.

    For equal weights this is the paper's inner loop over all members.
    """
    done = [0] * len(weights)
    while True:
        member = min(range(len(weights)), key=lambda i: (Fraction(done[i], weights[i]), i))
        done[member] += 1
        yield member


def populate(permutations: Sequence[Sequence[int]], weights: Sequence[int]) -> list[int]:
    size = len(permutations[0])
    following = [0] * len(permutations)
    entry = [-1] * size
    for i in islice(turns(weights), size):
        c = permutations[i][following[i]]
        while entry[c] >= 0:
            following[i] += 1
            c = permutations[i][following[i]]
        entry[c] = i
        following[i] += 1
    return entry
