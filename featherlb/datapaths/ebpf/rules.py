"""The datapath ebpf on the host: what the program in the kernel doesn't carry goes to the queues,
by the rules of nfqueue. What it carries, no rule sees."""

from collections.abc import Sequence

from featherlb.datapaths.host_side import Needs, Replies, Scope
from featherlb.datapaths.rules.endpoints import Parts
from featherlb.datapaths.rules.gate import gate
from featherlb.datapaths.rules.guards import guards, redirects, settings
from featherlb.datapaths.rules.queueing import Queued
from featherlb.model import NatMode
from featherlb.system.ruleset import Chain, hooked, join


def replies(nat: NatMode) -> frozenset[Replies]:
    """In `full` mode replies are matched by SNAT port, so no other packets are queued."""
    if nat is NatMode.FULL:
        return frozenset()
    return frozenset({Replies.UNTRACKED, Replies.QUEUED})


def queued(scope: Scope) -> Queued:
    parts = _parts(scope)
    return Queued(
        parts=parts,
        replying=(parts.dnat_backends,),
        given=(parts.full_pairs,),
        guards=tuple(guards(parts, scope.facts)),
    )


def needs(scope: Scope, queued: Sequence[Queued]) -> Needs:
    parts = _parts(scope)
    redirect = Chain("BPFREDIRECT", scope.options.queue)
    clients = gate(scope.services, scope.family, "BPFGATE", scope.options, scope.facts)
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
        programs=True,
    )


def _parts(scope: Scope) -> Parts:
    return scope.parts("bpf-")
