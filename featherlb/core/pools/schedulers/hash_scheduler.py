"""What the consistent schedulers share: the hash of a flow, of the parts that `hash_on` names."""

from collections.abc import Sequence
from typing import ClassVar

from featherlb.core.pools.schedulers.base import Member, NewFlow, Scheduler
from featherlb.core.pools.schedulers.hashing import KeyedHash, bytes_with_key, shown_parts
from featherlb.model import HashPart


class HashScheduler(Scheduler):
    """Without `hash_on`, the `default_parts` are hashed. Flows with the same `parts` get the same
    `hash`, of 64 bits, under every scheduler that hashes these parts."""

    consistent = True
    default_parts: ClassVar[tuple[HashPart, ...]]

    def __init__(self, *, seed: int, key: bytes, hash_on: tuple[HashPart, ...] = ()) -> None:
        self.parts = hash_on or self.default_parts
        self._parts = shown_parts(self.parts)
        purpose, self._bytes = bytes_with_key(self.parts, self.default_parts)
        self.hash = KeyedHash(key, purpose)

    def _hash_of(self, flow: NewFlow) -> int:
        return self.hash(self._bytes(flow))

    def table(self) -> Sequence[Member | None]:
        """The owner of each slot, which is a hash modulo their number; None where it isn't known
        yet. Empty without a table or members."""
        return self.slots()

    def find_owners(self, scores: int) -> range:
        """Find owners that aren't known yet, at the cost of about so many scores. Returns the slots
        among which they are; none if all were known."""
        return range(0)
