"""The datapath nfqueue on the host: all packets of its services go to the queues, and the kernel
forwards what workers have rewritten."""

from collections.abc import Sequence

from featherlb.datapaths import queue_rules
from featherlb.datapaths.host_side import Needs, Replies, Scope
from featherlb.datapaths.rules.queueing import Queued
from featherlb.model import NatMode


def replies(nat: NatMode) -> frozenset[Replies]:
    return queue_rules.replies(nat)


def queued(scope: Scope) -> Queued:
    return queue_rules.queued(scope, scope.parts())


def needs(scope: Scope, queued: Sequence[Queued]) -> Needs:
    return queue_rules.needs(scope, scope.parts())
