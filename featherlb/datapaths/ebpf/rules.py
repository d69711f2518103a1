"""The datapath ebpf on the host: what the program in the kernel doesn't carry goes to the queues,
by the rules of nfqueue. What it carries, no rule sees."""

from collections.abc import Sequence
from dataclasses import replace

from featherlb.datapaths import queue_rules
from featherlb.datapaths.host_side import Needs, Replies, Scope
from featherlb.datapaths.rules.endpoints import Parts
from featherlb.datapaths.rules.queueing import Queued
from featherlb.model import NatMode


def replies(nat: NatMode) -> frozenset[Replies]:
    return queue_rules.replies(nat)


def queued(scope: Scope) -> Queued:
    return queue_rules.queued(scope, _parts(scope))


def needs(scope: Scope, queued: Sequence[Queued]) -> Needs:
    return replace(queue_rules.needs(scope, _parts(scope), "BPF"), programs=True)


def _parts(scope: Scope) -> Parts:
    return scope.parts("bpf-")
