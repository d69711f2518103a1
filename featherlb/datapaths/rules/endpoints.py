"""The VIPs and backends of services as rules ask for them: one by one, or by a set."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from featherlb.model import (
    SOURCE_PORTS,
    Address,
    Endpoint,
    NatMode,
    Protocol,
    Service,
    Vip,
)
from featherlb.system import ipset

GIVEN_PORTS = f"{SOURCE_PORTS.start}:{SOURCE_PORTS.stop - 1}"
"""Those that `full` mode gives to flows."""
NO_OPENING = " ! --syn"
"""A further match for TCP: a packet that can't open a connection."""
FEW = 4
"""So many endpoints have a rule each, which asks for address and port: no slower than to look into
a set for a packet that is for none of them, several times as fast for one that is for the first.
"""


@dataclass(frozen=True, slots=True)
class Group:
    """Endpoints that rules treat alike, and the name of their set."""

    set_name: str
    family: int
    entries: tuple[ipset.Entry, ...]

    @property
    def protocols(self) -> list[Protocol]:
        return sorted({entry.protocol for entry in self.entries})

    def sets(self) -> Iterator[ipset.Set]:
        """Their set, if they are so many that rules look into one."""
        if len(self.entries) > FEW:
            yield ipset.Set(self.set_name, self.family, self.entries)

    def _ports(self, protocol: Protocol, side: str) -> str:
        """A match for all ports from the lowest to the highest of the set. Looking into a set costs
        several times as much, and the other direction's packets have a client's port there."""
        ports = [entry.endpoint.port for entry in self.entries if entry.protocol is protocol]
        low, high = min(ports), max(ports)
        return f" --{side[0]}port {low}" + (f":{high}" if high != low else "")

    def matches(self, side: str, use_set: bool, *, ports: str = "", tcp: str = "") -> list[str]:
        """Rule matches for packets whose `side`, `dst` or `src`, is one of the endpoints.

        `ports` is a further match for each protocol, `tcp` one for TCP alone.
        """
        other = "src" if side == "dst" else "dst"
        extra = {Protocol.TCP: tcp + ports, Protocol.UDP: ports}
        if use_set and len(self.entries) > FEW:
            sides = f"{side},{side}"
            if self.entries[0].peer is not None:
                sides += f",{other}"
            return [
                f"-p {protocol}{extra[protocol]}{self._ports(protocol, side)}"
                f" -m set --match-set {self.set_name} {sides}"
                for protocol in self.protocols
            ]
        return [
            f"-p {entry.protocol}{extra[entry.protocol]}"
            f" -{side[0]} {entry.endpoint.address} --{side[0]}port {entry.endpoint.port}"
            + (f" -{other[0]} {entry.peer}" if entry.peer is not None else "")
            for entry in self.entries
        ]


@dataclass(frozen=True, slots=True)
class Parts:
    """What services of one address family and one kind of datapath are made of."""

    family: int
    vips: Group
    """VIPs of one port. Others can't be in a set (wildcards) or would fill it (ranges)."""
    other_vips: tuple[tuple[Protocol, Vip], ...]
    kept: Group
    """Backends that see the client's address (`dnat`)."""
    replaced: Group
    """Backends that see one of this host's addresses, their entry's peer (`full`)."""
    full_backends: Group
    """The same of the datapath raw, whichever address they see."""
    forwards: bool
    """Some backend is on another host."""
    full: bool
    """Some service is in `full` mode."""
    loopback: bool
    """Some packets between other hosts and this one carry a 127.0.0.0/8 address inside."""

    @classmethod
    def of(cls, services: Sequence[Service], family: int, prefix: str) -> "Parts":
        vips = {
            (service.protocol, vip)
            for service in services
            for vip in service.vips
            if vip.address.version == family
        }
        backends = {
            (service.protocol, service.nat, backend)
            for service in services
            for backend in service.backends
            if backend.endpoint.address.version == family
        }
        full = any(
            service.nat is NatMode.FULL and vip.address.version == family
            for service in services
            for vip in service.vips
        )

        raw = any(service.datapath.takes_frames for service in services)

        def group(role: str, entries: Iterable[ipset.Entry]) -> Group:
            unique = sorted(set(entries), key=str)
            return Group(f"{prefix}{role}{family}", family, tuple(unique))

        return cls(
            family=family,
            vips=group(
                "vips",
                (
                    ipset.Entry(Endpoint(vip.address, vip.first_port), protocol)
                    for protocol, vip in vips
                    if single(vip)
                ),
            ),
            other_vips=tuple(sorted(entry for entry in vips if not single(entry[1]))),
            kept=group(
                "backends",
                (
                    ipset.Entry(backend.endpoint, protocol)
                    for protocol, nat, backend in backends
                    if nat is NatMode.DNAT
                ),
            ),
            replaced=group(
                "sources",
                (
                    ipset.Entry(backend.endpoint, protocol, source)
                    for protocol, nat, backend in backends
                    if nat is NatMode.FULL
                    for source in backend.sources
                ),
            ),
            full_backends=group(
                "full",
                (
                    ipset.Entry(backend.endpoint, protocol)
                    for protocol, nat, backend in backends
                    if raw and nat is NatMode.FULL
                ),
            ),
            forwards=any(not backend.local for _, _, backend in backends),
            full=full,
            loopback=any(backend.endpoint.address.is_loopback for _, _, backend in backends)
            or (full and any(vip.address.is_loopback for _, vip in vips)),
        )

    def sets(self) -> Iterator[ipset.Set]:
        for group in (self.vips, self.kept, self.replaced, self.full_backends):
            yield from group.sets()

    def addresses(self) -> set[Address]:
        """The VIPs that are addresses, wildcards left out."""
        return {
            *(entry.endpoint.address for entry in self.vips.entries),
            *(vip.address for _, vip in self.other_vips if not vip.wildcard),
        }

    def vip_matches(self, side: str, use_set: bool, *, tcp: str = "") -> list[str]:
        """Rule matches for packets whose `side` is a VIP; `tcp` is a further match for TCP."""
        matches = self.vips.matches(side, use_set, tcp=tcp)
        for protocol, vip in self.other_vips:
            where = (
                f"-m addrtype --{side}-type LOCAL" if vip.wildcard else f"-{side[0]} {vip.address}"
            )
            ports = f"{vip.first_port}"
            if vip.first_port != vip.last_port:
                ports += f":{vip.last_port}"
            extra = tcp if protocol is Protocol.TCP else ""
            matches.append(f"-p {protocol}{extra} {where} --{side[0]}port {ports}")
        return matches


def single(vip: Vip) -> bool:
    return not vip.wildcard and vip.first_port == vip.last_port
