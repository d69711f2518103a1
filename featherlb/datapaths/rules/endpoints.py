"""The VIPs and backends of services for rules: one rule each, or a set."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from featherlb.model import (
    Address,
    Endpoint,
    NatMode,
    Protocol,
    Service,
    Vip,
)
from featherlb.system import ipset
from featherlb.system.ruleset import Match, Membership, Side

FEW = 4
"""Up to this many endpoints get a rule each, which matches address and port: as fast as a set for a
packet that matches none, several times as fast for one that matches the first."""


@dataclass(frozen=True, slots=True)
class Group:
    """Endpoints that rules treat alike, and the name of their set."""

    set_name: str
    family: int
    entries: tuple[ipset.Entry, ...]
    """Of one port each."""
    ranges: tuple[ipset.Entry, ...] = ()
    """Of several ports: these would fill a set, and get a rule each."""

    @classmethod
    def of(cls, name: str, family: int, entries: Iterable[ipset.Entry]) -> "Group":
        """The entries without duplicates; their set's name ends in the family."""
        ordered = sorted(set(entries), key=str)
        return cls(
            f"{name}{family}",
            family,
            tuple(entry for entry in ordered if not entry.endpoint.last_port),
            tuple(entry for entry in ordered if entry.endpoint.last_port),
        )

    def overlaps(self, other: "Group") -> bool:
        """Whether some port of a host belongs to both."""
        if not set(self.entries).isdisjoint(other.entries):
            return True
        return any(
            _overlap(one, entry)
            for ranged, every in ((self, other), (other, self))
            for one in ranged.ranges
            for entry in (*every.entries, *every.ranges)
        )

    def __bool__(self) -> bool:
        return bool(self.entries or self.ranges)

    @property
    def protocols(self) -> list[Protocol]:
        return sorted({entry.protocol for entry in (*self.entries, *self.ranges)})

    def sets(self) -> Iterator[ipset.Set]:
        """Their set, if there are enough of them for one."""
        if len(self.entries) > FEW:
            yield ipset.Set(self.set_name, self.family, self.entries)

    def _ports(self, protocol: Protocol) -> range:
        """From the lowest to the highest port of the set. A set look-up costs several times as much
        as a port match, which excludes most packets of the other direction by their client's
        port."""
        ports = [entry.endpoint.port for entry in self.entries if entry.protocol is protocol]
        return range(min(ports), max(ports) + 1)

    def matches(
        self,
        side: Side,
        use_set: bool,
        *,
        peer_ports: range | None = None,
        syn: bool | None = None,
    ) -> list[Match]:
        """Matches for packets that have one of the endpoints on this side.

        `peer_ports` are those on the other side, `syn` is asked of TCP alone.
        """
        alone, found = (*self.entries, *self.ranges), []
        if use_set and len(self.entries) > FEW:
            peer = () if self.entries[0].peer is None else (side.other,)
            member = Membership(self.set_name, (side, side, *peer))
            alone = self.ranges
            found = [
                replace(
                    _match(side, protocol, self._ports(protocol), peer_ports=peer_ports, syn=syn),
                    member=member,
                )
                for protocol in sorted({entry.protocol for entry in self.entries})
            ]
        return found + [
            _match(
                side,
                entry.protocol,
                ports_of(entry.endpoint),
                entry.endpoint.address,
                peer=entry.peer,
                peer_ports=peer_ports,
                syn=syn,
            )
            for entry in alone
        ]


@dataclass(frozen=True, slots=True)
class Parts:
    """The endpoints of one datapath's services in one address family."""

    family: int
    vips: Group
    """VIPs of one port. Others can't be in a set (wildcards) or would fill it (ranges)."""
    other_vips: tuple[tuple[Protocol, Vip], ...]
    dnat_backends: Group
    """Backends that see the client's address."""
    full_pairs: Group
    """In `full` mode, each backend with each address of this host that it sees (the entry's
    peer)."""
    forwards: bool
    """Some backend is on another host."""
    full: bool
    """Some service is in `full` mode."""
    loopback: bool
    """Some packets between other hosts and this one carry a 127.0.0.0/8 address inside."""

    @classmethod
    def of(cls, services: Sequence[Service], family: int, prefix: str) -> "Parts":
        """`prefix` begins the names of their sets."""
        vips = {
            (service.protocol, vip)
            for service in services
            for vip in service.vips
            if vip.address.version == family
        }
        backends = [
            (service.protocol, service.nat, backend, endpoint)
            for service in services
            for backend in service.backends
            if backend.endpoint.address.version == family
            for endpoint in service.endpoints_of(backend)
        ]
        full = any(
            service.nat is NatMode.FULL and vip.address.version == family
            for service in services
            for vip in service.vips
        )
        return cls(
            family=family,
            vips=Group.of(
                f"{prefix}vips",
                family,
                (
                    ipset.Entry(Endpoint(vip.address, vip.first_port), protocol)
                    for protocol, vip in vips
                    if single(vip)
                ),
            ),
            other_vips=tuple(sorted(entry for entry in vips if not single(entry[1]))),
            dnat_backends=Group.of(
                f"{prefix}backends",
                family,
                (
                    ipset.Entry(endpoint, protocol)
                    for protocol, nat, _, endpoint in backends
                    if nat is NatMode.DNAT
                ),
            ),
            full_pairs=Group.of(
                f"{prefix}sources",
                family,
                (
                    ipset.Entry(endpoint, protocol, source)
                    for protocol, nat, backend, endpoint in backends
                    if nat is NatMode.FULL
                    for source in backend.reply_addresses
                ),
            ),
            forwards=any(not backend.local for _, _, backend, _ in backends),
            full=full,
            loopback=any(endpoint.address.is_loopback for _, _, _, endpoint in backends)
            or (full and any(vip.address.is_loopback for _, vip in vips)),
        )

    def sets(self) -> Iterator[ipset.Set]:
        for group in (self.vips, self.dnat_backends, self.full_pairs):
            yield from group.sets()

    def addresses(self) -> set[Address]:
        """The VIPs that are addresses, wildcards left out."""
        return {
            *(entry.endpoint.address for entry in self.vips.entries),
            *(vip.address for _, vip in self.other_vips if not vip.wildcard),
        }

    def vip_matches(self, side: Side, use_set: bool, *, syn: bool | None = None) -> list[Match]:
        """Matches for packets that have a VIP on this side; `syn` is for TCP only."""
        return [
            *self.vips.matches(side, use_set, syn=syn),
            *(
                _match(
                    side,
                    protocol,
                    range(vip.first_port, vip.last_port + 1),
                    None if vip.wildcard else vip.address,
                    local=vip.wildcard or None,
                    syn=syn,
                )
                for protocol, vip in self.other_vips
            ),
        ]


def backend_entries(services: Iterable[Service], family: int) -> Iterator[ipset.Entry]:
    """All backends of one address family, whichever address of a client they see."""
    for service in services:
        for backend in service.backends:
            if backend.endpoint.address.version == family:
                for endpoint in service.endpoints_of(backend):
                    yield ipset.Entry(endpoint, service.protocol)


def _overlap(one: ipset.Entry, other: ipset.Entry) -> bool:
    ours, theirs = ports_of(one.endpoint), ports_of(other.endpoint)
    return (
        (one.endpoint.address, one.protocol, one.peer)
        == (other.endpoint.address, other.protocol, other.peer)
        and ours.start < theirs.stop
        and theirs.start < ours.stop
    )


def ports_of(endpoint: Endpoint) -> range:
    """The ports that a backend's endpoint stands for."""
    return range(endpoint.port, (endpoint.last_port or endpoint.port) + 1)


def _match(
    side: Side,
    protocol: Protocol,
    ports: range,
    address: Address | None = None,
    *,
    local: bool | None = None,
    peer: Address | None = None,
    peer_ports: range | None = None,
    syn: bool | None = None,
) -> Match:
    """A match for packets with these ports and this address on one side, the peer's on the other;
    `syn` is for TCP only."""
    if protocol is not Protocol.TCP:
        syn = None
    if side is Side.SOURCE:
        return Match(
            protocol=protocol,
            syn=syn,
            source=address,
            source_ports=ports,
            source_local=local,
            destination=peer,
            destination_ports=peer_ports,
        )
    return Match(
        protocol=protocol,
        syn=syn,
        source=peer,
        source_ports=peer_ports,
        destination=address,
        destination_ports=ports,
        destination_local=local,
    )


def single(vip: Vip) -> bool:
    return not vip.wildcard and vip.first_port == vip.last_port
