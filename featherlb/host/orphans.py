"""What connection tracking still has of flows that nobody balances any more (datapath offload).

Entries would outlive the instance: those of open connections go on translating as long as the host
forwards, those of closed ones hold their ports.
"""

import logging
from collections.abc import Callable, Collection, Iterable
from ipaddress import ip_address

from featherlb.core.flows.conntrack import Entry
from featherlb.model import Endpoint, Protocol, Vip
from featherlb.net.addresses import address_of
from featherlb.system import conntrack, ipset
from featherlb.system.journal import VipRow

log = logging.getLogger(__name__)

Served = tuple[Protocol, Vip]

DESTINATION_NAT = 1 << 5
"""IPS_DST_NAT in nf_conntrack_common.h."""


def read_vips(rows: Iterable[VipRow]) -> list[Served]:
    """VIPs as the journal has them."""
    return [
        (Protocol[name.upper()], Vip(ip_address(address), first, last))
        for name, address, first, last in rows
    ]


def give_up(
    vips: Iterable[VipRow], backends: Collection[str], spared: Iterable[VipRow] = ()
) -> int:
    """Remove the entries of connections to these VIPs that lead to these backends; how many.

    `backends` are entries of `carried_entries`. Connections to the VIPs that are `spared` stay.
    """
    if not backends:
        return 0
    try:
        return conntrack.remove(_leading(vips, backends, spared))
    except OSError as error:
        log.warning("connection tracking can't be told to forget flows: %s", error.strerror)
        return 0


def remain(vips: Iterable[VipRow], backends: Collection[str]) -> bool:
    """Whether there are entries of connections to these VIPs that lead to these backends."""
    chosen = _leading(vips, backends)
    try:
        return any(chosen(entry) for entry, _ in conntrack.dump())
    except OSError:
        return True  # who may not look, may not change anything either


def _leading(
    vips: Iterable[VipRow], backends: Collection[str], spared: Iterable[VipRow] = ()
) -> Callable[[Entry], bool]:
    """As `give_up`."""
    known, kept = read_vips(vips), read_vips(spared)

    def leads_to(entry: Entry, served: list[Served]) -> bool:
        port = entry.ports & 0xFFFF
        return any(
            entry.protocol == protocol
            and vip.first_port <= port <= vip.last_port
            and _is(vip, entry)
            for protocol, vip in served
        )

    def chosen(entry: Entry) -> bool:
        if not entry.status & DESTINATION_NAT:
            return False
        if not leads_to(entry, known) or leads_to(entry, kept):
            return False
        source = address_of(entry.back_src_high, entry.back_src_low)
        endpoint = Endpoint(source, entry.back_ports >> 16)
        return str(ipset.Entry(endpoint, Protocol(entry.protocol))) in backends

    return chosen


def _is(vip: Vip, entry: Entry) -> bool:
    """Whether a VIP's address, which may stand for all of its family, is the destination."""
    destination = address_of(entry.dst_high, entry.dst_low)
    return destination == vip.address or (
        vip.wildcard and destination.version == vip.address.version
    )
