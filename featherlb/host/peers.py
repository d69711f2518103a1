"""The other instances of this host, of which one takes heed that starts or changes its services.

A dead instance counts as well while the kernel carries its connections (datapath offload), for they
need what it has left here; not for an instance that takes its place: one of its number, or with a
VIP of its.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from featherlb.host.orphans import Served, read_vips, remain
from featherlb.model import Service, Vip
from featherlb.system.journal import Record


def others(
    records: Iterable[Record], services: Sequence[Service], queue: int | None, owner: int
) -> list[Record]:
    """Those that count for an instance with these services, of the process `owner` and, where that
    is settled, with this `queue`."""
    vips = list(served(services))
    return [
        record
        for record in records
        if (record.pid != owner if record.alive else record.instance != queue)
        and counts(record, vips)
    ]


def counts(record: Record, vips: Iterable[Served]) -> bool:
    """Whether an instance counts where another one serves these VIPs, or is going to."""
    if record.alive:
        return True
    return may_return(record, vips) and remain(record.vips, record.carried)


def may_return(record: Record, vips: Iterable[Served]) -> bool:
    """Whether a gone instance may come back to connections that the kernel carries."""
    return record.carries and shared(vips, read_vips(record.vips)) is None


def shared(vips: Iterable[Served], theirs: Iterable[Served]) -> Served | None:
    """One of these VIPs of which some packet could be for one of theirs, too."""
    pairs = product(vips, theirs)
    return next(
        (one for one, other in pairs if one[0] is other[0] and _overlap(one[1], other[1])), None
    )


def served(services: Iterable[Service]) -> Iterator[Served]:
    """The VIPs of services."""
    return ((service.protocol, vip) for service in services for vip in service.vips)


def way_out(record: Record) -> str:
    """The end of a sentence about an instance that is in the way."""
    if record.alive:
        return ""
    return "; it is gone, but the kernel carries its connections, which `featherlb down` ends"


def _overlap(one: Vip, other: Vip) -> bool:
    return (
        one.address.version == other.address.version
        and (one.wildcard or other.wildcard or one.address == other.address)
        and one.first_port <= other.last_port
        and other.first_port <= one.last_port
    )
