"""VIPs as addresses of this host: which to assign to which interface, and which it doesn't have."""

from collections.abc import Iterable, Iterator

from featherlb.datapaths.rules.endpoints import Parts
from featherlb.datapaths.rules.facts import Facts, Options
from featherlb.model import LOOPBACK, Address, HostAddress, Protocol, Vip


def assignments(
    vips: Iterable[tuple[Protocol, Vip]], facts: Facts
) -> Iterator[tuple[Address, str]]:
    """Each VIP to assign, with the interface that gets it."""
    for address in sorted({vip.address for _, vip in vips}, key=str):
        if address.is_unspecified or address.is_loopback or address in facts.local_vips:
            continue
        yield address, subnet_interface(address, facts.addresses) or LOOPBACK


def subnet_interface(address: Address, addresses: Iterable[HostAddress]) -> str | None:
    """The interface whose subnet has the address: the longest prefix wins."""
    candidates = [
        own
        for own in addresses
        if own.address.version == address.version and address in own.address.network
    ]
    if not candidates:
        return None
    return max(candidates, key=lambda own: own.address.network.prefixlen).interface


def foreign_vips(parts: Iterable[Parts], options: Options, facts: Facts) -> list[Address]:
    """VIPs that are not addresses of this host, in order."""
    if options.assign:
        return []
    addresses = {address for part in parts for address in part.addresses()}
    return sorted(addresses - facts.local_vips, key=int)
