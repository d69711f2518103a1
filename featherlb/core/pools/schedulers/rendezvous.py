"""Weighted rendezvous hashing (highest random weight) over a table of rows.

For every row each member has a pseudorandom number; the best by weight owns the row. As no member's
number depends on the others, a member that leaves gives up exactly its own rows, and one that joins
or gains weight takes rows for itself only: the disruption is minimal. (Thaler and Ravishankar,
"Using name-based mappings to increase hit rates", 1998; the weights as in
draft-ietf-bess-weighted-hrw; the table of rows as in GitHub's GLB director.)

A row is computed when the first flow hits it: an update is cheap, a pick costs O(n) the first time
and O(1) afterwards.
"""

from collections.abc import Sequence
from math import log

from featherlb.core.pools.schedulers.base import Member
from featherlb.core.pools.schedulers.hashing import KeyedHash, endpoint_bytes

ROWS = 1 << 16
"""Shares are multiples of a row, and rows are assigned pseudorandomly: with 10 equal members a
share is within 4 % of a tenth (three standard deviations)."""

MAX_SCORES = 1 << 19
"""Scores that `owners` computes, at most: one for each row and member."""

_MASK = (1 << 64) - 1
_LOG_2_53 = 53 * log(2)


class RendezvousTable:
    __slots__ = ("_candidates", "_hash", "_looked_at", "_owners")

    def __init__(self, key: bytes) -> None:
        self._hash = KeyedHash(key, b"rendezvous backend")
        self._candidates: list[tuple[Member, int, int]] = []
        self._owners: list[Member | None] = []
        self._looked_at = 0

    def update(self, members: Sequence[Member]) -> None:
        before = {(member, number): weight for member, number, weight in self._candidates}
        self._candidates = [
            (member, self._hash(endpoint_bytes(member.endpoint)), member.weight)
            for member in members
            if member.weight > 0
        ]
        after = {(member, number): weight for member, number, weight in self._candidates}
        if after == before:
            return
        self._looked_at = 0
        if all(weight <= before.get(candidate, 0) for candidate, weight in after.items()):
            # Nobody gained weight, so only members that lost weight can lose rows. This way the
            # failure of a member doesn't cause the computation of all rows.
            unchanged = {
                candidate[0] for candidate, weight in after.items() if weight == before[candidate]
            }
            self._owners = [owner if owner in unchanged else None for owner in self._owners]
        else:
            self._owners = [None] * ROWS

    def owner(self, value: int) -> Member | None:
        """The member for a hash of 64 bits; None if no member has a weight."""
        row = value % ROWS
        owner = self._owners[row] if self._owners else None
        if owner is None and self._candidates:
            owner = self._owners[row] = self._best(row, self._candidates)
        return owner

    def owners(self) -> list[Member]:
        """The owners of the first rows, of so many as take some tenths of a second at most."""
        rows = min(ROWS, MAX_SCORES // max(1, len(self._candidates)))
        return [owner for row in range(rows) if (owner := self.owner(row)) is not None]

    def known(self) -> Sequence[Member | None]:
        """The owner of each row, None where it isn't known yet; nothing without members."""
        return self._owners if self._candidates else ()

    def find_owners(self, scores: int) -> range:
        """Find owners that aren't known yet, for so many scores; the rows among which they are."""
        first = row = self._looked_at
        while scores > 0 and self._candidates and row < ROWS:
            if self._owners[row] is None:
                self.owner(row)
                scores -= len(self._candidates)
            row += 1
        self._looked_at = row
        return range(first, row)

    def owner_among(self, value: int, members: Sequence[Member]) -> Member:
        """The owner of a hash among these members only: the next best one."""
        wanted = frozenset(members)
        return self._best(value % ROWS, [one for one in self._candidates if one[0] in wanted])

    def _best(self, row: int, candidates: Sequence[tuple[Member, int, int]]) -> Member:
        best = candidates[0][0]
        best_score = float("-inf")
        for member, member_hash, weight in candidates:
            # log(u) / weight with u uniform in (0, 1): a member has the largest of these numbers
            # with a probability proportional to its weight.
            u = (_mix(member_hash, row) >> 11) + 0.5
            score = (log(u) - _LOG_2_53) / weight
            if score > best_score:
                best = member
                best_score = score
        return best


def _mix(seed: int, row: int) -> int:
    """Number `row` of the SplitMix64 sequence that starts at `seed` (Steele, Lea and Flood,
    "Fast splittable pseudorandom number generators", 2014): 64 bits that pass BigCrush, at
    less than the cost of a keyed hash. The key is in the seed."""
    z = (seed + (row + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
