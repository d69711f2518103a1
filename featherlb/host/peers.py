"""The other instances on this host that a starting or changing instance has to get along with.

A dead instance is a peer, too, while the kernel forwards its flows, which need what it left here.
It is none to its successor: an instance of its number, or with one of its VIPs.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from featherlb.datapaths.host_side import Replies
from featherlb.host.orphans import Served, any_flows, read_vips
from featherlb.model import Service, Vip
from featherlb.system import programs
from featherlb.system.journal import Record


def peers(
    records: Iterable[Record], services: Sequence[Service], queue: int | None, owner: int
) -> list[Record]:
    """The peers of an instance with these services, of the process `owner` and, if that is known,
    with this `queue`."""
    vips = list(served(services))
    return [
        record
        for record in records
        if (record.pid != owner if record.alive else record.instance != queue)
        and is_peer(record, vips)
    ]


def is_peer(record: Record, vips: Iterable[Served]) -> bool:
    """Whether an instance is a peer of one that serves these VIPs, or is going to."""
    if record.alive:
        return True
    return (
        record.offloads
        and may_resume(record, vips)
        and (
            any_flows(record.vips, record.claims[Replies.TRACKED])
            or programs.carry_any(record.instance)
        )
    )


def may_resume(record: Record, vips: Iterable[Served]) -> bool:
    """Whether a dead instance may be started again. Until then its rules drop its packets, so that
    this host resets none of its connections, or the kernel forwards them."""
    return shared(vips, read_vips(record.vips)) is None


def shared(vips: Iterable[Served], theirs: Iterable[Served]) -> Served | None:
    """One of these VIPs that overlaps with one of theirs."""
    pairs = product(vips, theirs)
    return next(
        (one for one, other in pairs if one[0] is other[0] and _overlap(one[1], other[1])), None
    )


def served(services: Iterable[Service]) -> Iterator[Served]:
    """The VIPs of services."""
    return ((service.protocol, vip) for service in services for vip in service.vips)


def way_out(record: Record) -> str:
    """The end of a sentence about an instance that conflicts."""
    if record.alive:
        return ""
    return "; it is gone, but the kernel forwards its connections, which `featherlb down` ends"


def _overlap(one: Vip, other: Vip) -> bool:
    return (
        one.address.version == other.address.version
        and (one.wildcard or other.wildcard or one.address == other.address)
        and one.first_port <= other.last_port
        and other.first_port <= one.last_port
    )
