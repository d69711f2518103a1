"""What two instances on one host cannot share: a backend whose replies they handle in conflicting
ways, and a source address towards it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product

from featherlb.datapaths.host_side import Replies, rules_of
from featherlb.host.backend_text import common, texts_of
from featherlb.host.peers import way_out
from featherlb.model import Datapath, NatMode, Service
from featherlb.system.journal import Record


def claims(services: Iterable[Service]) -> Mapping[Replies, frozenset[str]]:
    """The backends, as text, by the handling of their replies."""
    found: dict[Replies, set[str]] = {handling: set() for handling in Replies}
    for service in services:
        for handling in rules_of(service.datapath).replies(service.nat):
            found[handling].update(
                text for backend in service.backends for text in texts_of(service, backend)
            )
    return {handling: frozenset(backends) for handling, backends in found.items()}


def source_entries(services: Iterable[Service], spared: Collection[str] = ()) -> frozenset[str]:
    """Each backend, except those that are `spared`, with each source address of packets sent to it
    in `full` mode, as text.

    Only one instance of a host may use such a pair, as two would assign the same ports. If
    conntrack has the flows of both, both may: it refuses a port that is taken.
    """
    return frozenset(
        f"{text},{source}"
        for service in services
        if service.nat is NatMode.FULL
        for backend in service.backends
        for text in texts_of(service, backend)
        if text not in spared
        for source in backend.sources
    )


def conflict(services: Sequence[Service], record: Record) -> str | None:
    """Why these services can't run beside another instance that has one of their backends: a
    sentence that names what to do; None if they can."""
    ours, theirs = claims(services), record.claims

    def in_both(one: Replies, other: Replies) -> frozenset[str]:
        return common(ours[one], theirs[other]) | common(ours[other], theirs[one])

    if both := in_both(Replies.TRACKED, Replies.UNTRACKED):
        indifferent = " or ".join(
            f"{datapath} with the NAT mode {nat}"
            for datapath, nat in product(Datapath, NatMode)
            if not rules_of(datapath).replies(nat)
        )
        return (
            f"the featherlb with pid {record.pid} also has backend {min(both)}, and only one of the"
            f" two instances uses the datapath {datapaths_with(Replies.TRACKED)} for it; the other"
            " exempts the backend's replies from connection tracking; use the same datapath in"
            f" both, or {indifferent} in the other{way_out(record)}"
        )
    if both := in_both(Replies.DROPPED, Replies.QUEUED):
        return (
            f"the featherlb with pid {record.pid} also has backend {min(both)}, and only one of the"
            f" two instances uses the datapath {datapaths_with(Replies.DROPPED)} for it, which"
            " hides the backend's replies from the other; use the same datapath in both, or the NAT"
            f" mode full in one{way_out(record)}"
        )
    return None


def datapaths_with(handling: Replies) -> str:
    """The datapaths that handle replies in this way, for a sentence."""
    return " or ".join(
        datapath
        for datapath in Datapath
        if any(handling in rules_of(datapath).replies(nat) for nat in NatMode)
    )
