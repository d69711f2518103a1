"""Whether clients' packets to the VIPs reach this host, and no other."""

from collections.abc import Iterator, Mapping

from featherlb.datapaths.rules.vip_addresses import subnet_interface
from featherlb.doctor.finding import Finding, error, note
from featherlb.doctor.subject import Subject
from featherlb.model import LOOPBACK, Address
from featherlb.system import arp, rtnetlink


def check_vips(subject: Subject) -> Iterator[Finding]:
    """Asks each VIP's subnet who else has it; `preflight` covers VIPs not assigned here yet."""
    if subject.facts is None:
        return
    here = {own.address.ip for own in rtnetlink.addresses()} | subject.facts.local_vips
    places: dict[Address, str | None] = {
        vip.address: subnet_interface(vip.address, subject.facts.addresses)
        for service in subject.services
        for vip in service.vips
        if not vip.wildcard and not vip.address.is_loopback
    }
    owners: dict[Address, str] = {}
    for interface in {name for name in places.values() if name}:
        mine = [one for one, name in places.items() if name == interface and one in here]
        if mine:
            owners |= arp.owners(interface, mine)
    gateways: dict[int, str] = {
        own.address.version: str(own.address.ip)
        for own in subject.facts.addresses
        if own.interface != LOOPBACK and not own.address.ip.is_link_local
    }
    yield from judge_vips(places, owners, gateways)


def judge_vips(
    places: Mapping[Address, str | None],
    owners: Mapping[Address, str],
    gateways: Mapping[int, str],
) -> Iterator[Finding]:
    """`places` are the interfaces in whose subnets the VIPs are, `owners` the MAC addresses of
    others that have one, `gateways` an address of this host for each family."""
    for vip, mac in owners.items():
        yield error(
            f"the host with MAC address {mac} on {places[vip]} also has VIP {vip}, so clients reach"
            " one or the other; remove it there",
            f"ip address del {vip}/{vip.max_prefixlen} dev INTERFACE",
            mac,
        )
    for vip, interface in places.items():
        gateway = gateways.get(vip.version)
        if interface is None and gateway is not None:
            yield note(
                f"VIP {vip} is in no subnet of this host: routers must route it here",
                f"ip route add {vip} via {gateway}",
                "the router",
            )
