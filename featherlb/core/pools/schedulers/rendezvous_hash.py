"""Schedulers that hash parts of a flow into the table of rendezvous.py. O(1) per pick. They differ
in the parts."""

from collections.abc import Sequence

from featherlb.core.pools.schedulers.base import Member, NewFlow
from featherlb.core.pools.schedulers.hash_scheduler import HashScheduler
from featherlb.core.pools.schedulers.hashing import CLIENT, FIVE_TUPLE, VIP
from featherlb.core.pools.schedulers.registry import register
from featherlb.core.pools.schedulers.rendezvous import ROWS, RendezvousTable
from featherlb.model import HashPart


class RendezvousHash(HashScheduler):
    """The strategy, without the parts."""

    def __init__(self, *, seed: int, key: bytes, hash_on: tuple[HashPart, ...] = ()) -> None:
        super().__init__(seed=seed, key=key, hash_on=hash_on)
        self._table = RendezvousTable(key)

    def update(self, members: Sequence[Member]) -> None:
        self._table.update(members)

    def pick(self, flow: NewFlow) -> Member | None:
        return self._table.owner(self.hash(self._bytes(flow)))

    def slots(self) -> Sequence[Member]:
        return self._table.owners()

    def table(self) -> Sequence[Member | None]:
        return self._table.known()

    def find_owners(self, scores: int) -> range:
        return self._table.find_owners(scores)

    def explain(self, flow: NewFlow) -> str:
        return f"{self._parts} to row {self._hash_of(flow) % ROWS} of {ROWS}, which it owns"

    def overflow(self, flow: NewFlow, members: Sequence[Member]) -> Member:
        return self._table.owner_among(self._hash_of(flow), members)


@register
class SourceHash(RendezvousHash):
    """The client's address alone: a client gets the same member on every service that has it, from
    every port and over every protocol."""

    name = "source-hash"
    aliases = ("sh", "iphash", "ip-hash")
    default_parts = CLIENT


@register
class DestinationHash(RendezvousHash):
    """The VIP's address alone: all flows to an address of the service go to one member, as with
    IPVS's dh (net/netfilter/ipvs/ip_vs_dh.c), which ignores weights."""

    name = "destination-hash"
    aliases = ("dh",)
    default_parts = VIP


@register
class FiveTupleHash(RendezvousHash):
    """Addresses, ports and protocol: a client's flows spread over the pool, and each keeps its
    member."""

    name = "five-tuple-hash"
    aliases = ("5-tuple", "5-tuple-hash", "hash")
    default_parts = FIVE_TUPLE
