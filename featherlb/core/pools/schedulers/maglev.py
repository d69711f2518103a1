"""Maglev hashing: a table look-up by the hash of the flow, of the 5-tuple by default. O(1).

Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
section 3.4. Every member has a preference list, a permutation of the slots; the members take turns,
and each takes the first free slot of its list. The table is divided almost exactly by weight
(within a slot or two of the ideal), and a change moves few slots more than necessary.

A member of weight w has a turn every 1/w units of time: equal weights take turns as in the paper,
and every member with a weight gets at least one slot.
"""

from collections import Counter
from collections.abc import Sequence
from heapq import heapreplace

from featherlb.core.pools.schedulers.base import Member, NewFlow
from featherlb.core.pools.schedulers.hash_scheduler import HashScheduler
from featherlb.core.pools.schedulers.hashing import FIVE_TUPLE, KeyedHash, endpoint_bytes
from featherlb.core.pools.schedulers.registry import register
from featherlb.model import HashPart

TABLE_SIZE = 65537
"""The paper's size for up to some hundred members, whose shares are then within 1 %."""


@register
class Maglev(HashScheduler):
    name = "maglev"
    aliases = ("mh",)
    default_parts = FIVE_TUPLE

    def __init__(
        self,
        *,
        seed: int,
        key: bytes,
        hash_on: tuple[HashPart, ...] = (),
        table_size: int = TABLE_SIZE,
    ) -> None:
        """`table_size` must be a prime, or else preference lists would miss slots."""
        if table_size < 2 or any(table_size % n == 0 for n in range(2, int(table_size**0.5) + 1)):
            raise ValueError(f"Maglev table size {table_size} is not a prime number")
        super().__init__(seed=seed, key=key, hash_on=hash_on)
        self._size = table_size
        self._hash_offset = KeyedHash(key, b"maglev offset")
        self._hash_skip = KeyedHash(key, b"maglev skip")
        self._shares: list[tuple[bytes, int, Member]] = []
        self._table: list[Member] = []
        self._owned: Counter[Member] = Counter()

    def update(self, members: Sequence[Member]) -> None:
        # Sorted by endpoint, so that the order in the configuration doesn't matter.
        shares = sorted(
            (
                (endpoint_bytes(member.endpoint), member.weight, member)
                for member in members
                if member.weight > 0
            ),
            key=lambda share: share[:2],
        )
        if shares != self._shares:
            self._shares = shares
            self._table = self._populate() if shares else []
            self._owned = Counter()

    def pick(self, flow: NewFlow) -> Member | None:
        table = self._table
        if not table:
            return None
        return table[self.hash(self._bytes(flow)) % self._size]

    def slots(self) -> Sequence[Member]:
        return self._table

    def explain(self, flow: NewFlow) -> str:
        slot = self._hash_of(flow) % self._size
        self._owned = self._owned or Counter(self._table)
        owned = self._owned[self._table[slot]]
        return f"{self._parts} to slot {slot} of {self._size}, one of the {owned} that it owns"

    def overflow(self, flow: NewFlow, members: Sequence[Member]) -> Member:
        """The owner of the next slot that has room: flows of one slot stay together, those of
        neighbouring slots spread (as in consistent hashing with bounded loads, Mirrokni, Thorup and
        Zadimoghaddam, 2018)."""
        wanted = frozenset(members)
        slot = self._hash_of(flow) % self._size
        table = self._table
        # Every member with a weight owns a slot.
        return next(
            member
            for step in range(self._size)
            if (member := table[(slot + step) % self._size]) in wanted
        )

    def _populate(self) -> list[Member]:
        offsets = [self._hash_offset(name) % self._size for name, _, _ in self._shares]
        skips = [self._hash_skip(name) % (self._size - 1) + 1 for name, _, _ in self._shares]
        weights = [weight for _, weight, _ in self._shares]
        members = [member for _, _, member in self._shares]
        return [members[index] for index in fill(self._size, offsets, skips, weights)]


def fill(
    size: int, offsets: Sequence[int], skips: Sequence[int], weights: Sequence[int]
) -> list[int]:
    """The table of `size` slots, each holding the number of the member that owns it.

    The preference list of member i is `offsets[i] + j * skips[i]` modulo `size`, for j = 0, 1, …
    Takes about `size * log(size)` steps for any number of members.
    """
    slots = list(offsets)
    counts = [0] * len(slots)
    turns = [(0.0, index) for index in range(len(slots))]
    taken = bytearray(size)
    table = [0] * size
    for _ in range(size):
        index = turns[0][1]
        slot = slots[index]
        skip = skips[index]
        while taken[slot]:
            slot += skip
            if slot >= size:
                slot -= size
        taken[slot] = 1
        table[slot] = index
        slots[index] = slot
        # A quotient, not a running sum: simultaneous turns must compare as equal.
        counts[index] += 1
        heapreplace(turns, (counts[index] / weights[index], index))
    return table
