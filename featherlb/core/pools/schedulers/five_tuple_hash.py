"""5-tuple hash: hashes addresses, ports and protocol, so a client's flows spread over the pool
while each keeps its member. O(1), see rendezvous.py."""

from collections.abc import Sequence

from featherlb.core.pools.schedulers.base import Member, NewFlow, Scheduler
from featherlb.core.pools.schedulers.hashing import KeyedHash, five_tuple_bytes
from featherlb.core.pools.schedulers.registry import register
from featherlb.core.pools.schedulers.rendezvous import ROWS, RendezvousTable


@register
class FiveTupleHash(Scheduler):
    name = "five-tuple-hash"
    aliases = ("5-tuple", "5-tuple-hash", "hash")
    consistent = True

    def __init__(self, *, seed: int, key: bytes) -> None:
        self._hash = KeyedHash(key, b"flow")
        self._table = RendezvousTable(key)

    def update(self, members: Sequence[Member]) -> None:
        self._table.update(members)

    def pick(self, flow: NewFlow) -> Member | None:
        return self._table.owner(self._hash(five_tuple_bytes(flow)))

    def slots(self) -> Sequence[Member]:
        return self._table.owners()

    def explain(self, flow: NewFlow) -> str:
        row = self._hash(five_tuple_bytes(flow)) % ROWS
        return f"addresses, ports and protocol hash to row {row} of {ROWS}, which it owns"

    def overflow(self, flow: NewFlow, members: Sequence[Member]) -> Member:
        return self._table.owner_among(self._hash(five_tuple_bytes(flow)), members)
