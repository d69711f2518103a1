"""The host's rules for datapaths of which any packet can come to the queues: nfqueue, where all do,
and ebpf, where those do that its program doesn't carry."""

from featherlb.datapaths.host_side import Needs, Replies, Scope
from featherlb.datapaths.rules.endpoints import Parts
from featherlb.datapaths.rules.gate import gate
from featherlb.datapaths.rules.guards import redirects, settings
from featherlb.datapaths.rules.queueing import Queued
from featherlb.model import NatMode
from featherlb.system.ruleset import Chain, hooked, join


def replies(nat: NatMode) -> frozenset[Replies]:
    """In `full` mode replies are matched by SNAT port, so no other packets are queued."""
    if nat is NatMode.FULL:
        return frozenset()
    return frozenset({Replies.UNTRACKED, Replies.QUEUED})


def queued(scope: Scope, parts: Parts) -> Queued:
    """See `Rules.queued`."""
    return Queued(
        parts=parts,
        replying=(parts.dnat_backends,),
        given=(parts.full_pairs,),
    )


def needs(scope: Scope, parts: Parts, prefix: str = "") -> Needs:
    """See `Rules.needs`; `prefix` distinguishes the chains of datapaths."""
    redirect = Chain(f"{prefix}REDIRECT", scope.options.queue)
    clients = gate(scope.services, scope.family, f"{prefix}GATE", scope.options, scope.facts)
    return Needs(
        sets=(*parts.sets(), *clients.sets),
        refusing=clients.refusing,
        settings=tuple(settings(parts, scope.facts)),
        rules={
            "raw": join(
                hooked(redirect, "OUTPUT", redirects(parts, scope.facts)),
                clients.table,
            )
        },
    )
