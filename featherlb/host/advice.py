"""What works on this host, but perhaps not as intended: sentences for the log and the doctor."""

from collections.abc import Iterator, Sequence

from featherlb.datapaths.host_side import Replies, rules_of
from featherlb.model import NatMode, Service
from featherlb.system import sockets


def advice(services: Sequence[Service]) -> Iterator[str]:
    """Each sentence names what is affected and the way out. Nothing is changed."""
    greedy = [service for service in services if any(vip.all_ports for vip in service.vips)]
    yield from _shadowed(greedy)
    for service in greedy:
        if Replies.QUEUED in rules_of(service.datapath).replies(service.nat):
            yield (
                f"backends of service '{service.name}' are recognised by their address alone, so"
                f" this host masquerades none of their own connections; if it should, set"
                f" `nat: {NatMode.FULL}` or another datapath than {service.datapath}"
            )


def _shadowed(services: Sequence[Service]) -> Iterator[str]:
    """Daemons of this host that clients no longer reach at a VIP with all ports."""
    if not services:
        return
    listeners = sockets.listeners({service.protocol for service in services})
    for service in services:
        for vip in service.vips:
            hidden = [
                f"{listener.owner()} on port {listener.endpoint.port}"
                for listener in listeners
                if listener.protocol is service.protocol and listener.accepts(vip.address)
            ]
            if vip.all_ports and hidden:
                yield (
                    f"VIP {vip}/{service.protocol} takes all connections to its address: clients"
                    f" reach {', '.join(dict.fromkeys(hidden))} only at other addresses of this"
                    " host"
                )
