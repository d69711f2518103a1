"""What the consistent schedulers share: the hash of a flow, of the parts that `hash_on` names."""

from typing import ClassVar

from featherlb.core.pools.schedulers.base import NewFlow, Scheduler
from featherlb.core.pools.schedulers.hashing import KeyedHash, bytes_with_key, shown_parts
from featherlb.model import HashPart


class HashScheduler(Scheduler):
    """`default_parts` are hashed without `hash_on`. Flows with the same parts get the same hash, of
    64 bits, under every scheduler that hashes these parts."""

    consistent = True
    default_parts: ClassVar[tuple[HashPart, ...]]

    def __init__(self, *, seed: int, key: bytes, hash_on: tuple[HashPart, ...] = ()) -> None:
        parts = hash_on or self.default_parts
        self._parts = shown_parts(parts)
        purpose, self._bytes = bytes_with_key(parts, self.default_parts)
        self._hash = KeyedHash(key, purpose)

    def _hash_of(self, flow: NewFlow) -> int:
        return self._hash(self._bytes(flow))
