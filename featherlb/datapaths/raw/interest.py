"""Which packets of which addresses a worker wants to receive as frames."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from featherlb.model import ALL_SOURCE_PORTS, Address, Service
from featherlb.model.shard import Shard

ROOM = 2000
"""Addresses and ports that a socket filter can look for."""
MAX_RANGE = 256
"""Ports of a VIP's range that are told from those that `full` NAT gives."""


@dataclass(frozen=True, slots=True)
class Interest:
    """What a worker wants to see: packets to `vips`, from `backends`, and all ICMP errors.

    `sources` are the addresses that `full` NAT gives to packets, `vip_ports` the ports of VIPs that
    it could give as well.
    """

    shard: Shard
    vips: frozenset[Address] = frozenset()
    backends: frozenset[Address] = frozenset()
    sources: frozenset[Address] = frozenset()
    vip_ports: frozenset[int] = frozenset()

    def extended(self, services: Iterable[Service], addresses: frozenset[Address]) -> "Interest":
        """This, and the packets of these services; `addresses` are what a wildcard VIP stands for.

        What was of interest once stays so, as long as there is room: flows of services and backends
        that leave go on.
        """
        new = self.of(services, addresses)
        both = replace(
            self,
            vips=self.vips | new.vips,
            backends=self.backends | new.backends,
            sources=self.sources | new.sources,
            vip_ports=self.vip_ports | new.vip_ports,
        )
        return next((one for one in (both, new) if one.fits), self)

    @property
    def fits(self) -> bool:
        """Whether a filter has room for all but the backends."""
        given = len(self.sources) + len(self.vip_ports) if self.tells_given else 0
        return len(self.vips) + given <= ROOM

    @property
    def tells_given(self) -> bool:
        """Whether a port that was given says whose a packet is."""
        return self.shard.workers > 1 and bool(self.sources)

    @property
    def fits_whole(self) -> bool:
        """Whether it has room for the backends, too."""
        return replace(self, vips=self.vips | self.backends).fits

    def of(self, services: Iterable[Service], addresses: frozenset[Address]) -> "Interest":
        """What the worker wants to see of these services, and nothing else."""
        raw = [service for service in services if service.datapath.takes_frames]
        vips = [vip for service in raw for vip in service.vips]
        backends = [backend for service in raw for backend in service.backends]
        return Interest(
            self.shard,
            vips=frozenset(vip.address for vip in vips if not vip.wildcard)
            | {
                address
                for vip in vips
                if vip.wildcard
                for address in addresses
                if address.version == vip.address.version
            },
            backends=frozenset(backend.endpoint.address for backend in backends),
            sources=frozenset(source for one in backends for source in one.reply_addresses),
            vip_ports=frozenset(
                port
                for vip in vips
                if vip.last_port - vip.first_port < MAX_RANGE
                for port in range(vip.first_port, vip.last_port + 1)
                if any(port in ports for ports in ALL_SOURCE_PORTS)
            ),
        )
