"""Orphaned flows: conntrack entries of flows whose instance has gone.

Entries outlive the instance: the kernel translates by those of open connections as long as the host
forwards, and those of closed ones occupy their ports.
"""

import logging
from collections.abc import Callable, Collection, Iterable
from ipaddress import ip_address

from featherlb.host.backend_text import Backends
from featherlb.model import Endpoint, Protocol, Vip
from featherlb.net.addresses import address_of
from featherlb.system import conntrack, ipset
from featherlb.system.conntrack_messages import Entry
from featherlb.system.journal import VipRow

log = logging.getLogger(__name__)

Served = tuple[Protocol, Vip]


def read_vips(rows: Iterable[VipRow]) -> list[Served]:
    """VIPs as the journal has them."""
    return [
        (Protocol[name.upper()], Vip(ip_address(address), first, last))
        for name, address, first, last in rows
    ]


def delete_flows(
    vips: Iterable[VipRow], backends: Collection[str], kept: Iterable[VipRow] = ()
) -> int:
    """Delete the conntrack entries of flows from these VIPs to these backends; how many.

    `backends` are as in `claims.claims`. Flows of VIPs that are `kept` stay.
    """
    if not backends:
        return 0
    try:
        return conntrack.remove(_of_flows(vips, backends, kept))
    except OSError as error:
        log.warning("cannot delete conntrack entries of orphaned flows: %s", error.strerror)
        return 0


def any_flows(vips: Iterable[VipRow], backends: Collection[str]) -> bool:
    """Whether conntrack has entries of flows from these VIPs to these backends."""
    chosen = _of_flows(vips, backends)
    try:
        return any(chosen(entry) for entry, _ in conntrack.dump())
    except OSError:
        return True  # without the privilege to look, nothing may be changed either


def _of_flows(
    vips: Iterable[VipRow], backends: Collection[str], kept: Iterable[VipRow] = ()
) -> Callable[[Entry], bool]:
    """As `delete_flows`."""
    deleted, staying, known = read_vips(vips), read_vips(kept), Backends(backends)

    def leads_to(entry: Entry, served: list[Served]) -> bool:
        port = entry.ports & 0xFFFF
        return any(
            entry.protocol == protocol
            and vip.first_port <= port <= vip.last_port
            and _is(vip, entry)
            for protocol, vip in served
        )

    def chosen(entry: Entry) -> bool:
        if not entry.translated:
            return False
        if not leads_to(entry, deleted) or leads_to(entry, staying):
            return False
        source = address_of(entry.reply_src_high, entry.reply_src_low)
        endpoint = Endpoint(source, entry.reply_ports >> 16)
        return str(ipset.Entry(endpoint, Protocol(entry.protocol))) in known

    return chosen


def _is(vip: Vip, entry: Entry) -> bool:
    """Whether a VIP's address, which may stand for all of its family, is the destination."""
    destination = address_of(entry.dst_high, entry.dst_low)
    return destination == vip.address or (
        vip.wildcard and destination.version == vip.address.version
    )
