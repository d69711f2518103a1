"""Why a host cannot run the datapath offload: connection tracking is missing, or a service needs
more than the first packet of a flow."""

from collections.abc import Iterator, Sequence

from featherlb.datapaths.rules.extensions import queue_obstacles
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.model import QUIC_KEY, Service
from featherlb.model.errors import HostError
from featherlb.system import iptables
from featherlb.system.ruleset import Match, Rule, State


def obstacles(services: Sequence[Service]) -> Iterator[str]:
    yield from queue_obstacles(services)
    for family in sorted({vip.address.version for service in services for vip in service.vips}):
        try:
            iptables.require_tables(family, ["nat"])
        except HostError as error:
            yield str(error)
        if iptables.missing(family, [Rule(Match(states=(State.DNAT,)))]):
            yield "this kernel has no connection tracking (load its module nf_conntrack)"
    for service in services:
        for key, wanted in (
            ("one_packet", service.one_packet),
            ("responses", service.responses is not None),
            ("mss", service.mss is not None),
            (f"hash_on: {QUIC_KEY}", service.key == QUIC_KEY),
        ):
            if wanted:
                yield f"workers see only a flow's first packet, which is not enough for `{key}`"


def limits(services: Sequence[Service], options: Options, facts: Facts) -> Iterator[str]:
    return iter(())
