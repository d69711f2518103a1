"""Source hash: hashes the client's address, so all its flows go to one member. O(1), see
rendezvous.py.

Only the address is hashed: a client gets the same member on every service that has it, from every
port and over every protocol.
"""

from collections.abc import Sequence

from featherlb.core.pools.schedulers.base import Member, NewFlow, Scheduler
from featherlb.core.pools.schedulers.hashing import KeyedHash, client_bytes
from featherlb.core.pools.schedulers.registry import register
from featherlb.core.pools.schedulers.rendezvous import ROWS, RendezvousTable


@register
class SourceHash(Scheduler):
    name = "source-hash"
    aliases = ("sh", "iphash", "ip-hash")
    consistent = True

    def __init__(self, *, seed: int, key: bytes) -> None:
        self._hash = KeyedHash(key, b"client")
        self._table = RendezvousTable(key)

    def update(self, members: Sequence[Member]) -> None:
        self._table.update(members)

    def pick(self, flow: NewFlow) -> Member | None:
        return self._table.owner(self._hash(client_bytes(flow)))

    def slots(self) -> Sequence[Member]:
        return self._table.owners()

    def explain(self, flow: NewFlow) -> str:
        row = self._hash(client_bytes(flow)) % ROWS
        return f"the client's address hashes to row {row} of {ROWS}, which it owns"

    def overflow(self, flow: NewFlow, members: Sequence[Member]) -> Member:
        return self._table.owner_among(self._hash(client_bytes(flow)), members)
