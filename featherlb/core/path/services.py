"""The services, looked up by a packet's destination.

A pool lives as long as there is a service of its name, its members as long as they have flows.
"""

from collections.abc import Iterable, Sequence
from functools import partial

from featherlb.core.flows.members import Members
from featherlb.core.flows.next_hops import NextHops
from featherlb.core.flows.snat_ports import PortAllocator
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import UserScheduler
from featherlb.model import Service
from featherlb.net.addresses import words_of
from featherlb.net.protocols import MAPPED

ALL_PORTS = 1 << 16
"""In place of a port: those that no other service has."""


class Services:
    """`pools` are by service name, `addresses` are those of all VIPs as words, `user_schedulers`
    are custom schedulers, each with its service's name."""

    def __init__(
        self,
        members: Members,
        next_hops: NextHops,
        source_ports: PortAllocator,
        *,
        seed: int,
        hash_key: bytes,
    ) -> None:
        """`seed` and `hash_key` are for the schedulers."""
        self.pools: dict[str, Pool] = {}
        self.addresses: set[tuple[int, int]] = set()
        self.user_schedulers: list[tuple[str, UserScheduler]] = []
        self._by_vip: dict[tuple[int, int, int, int], Pool] = {}
        self._wildcards = False
        self._all_ports = False
        self._awaiting: list[Pool] = []
        """The pools that await rules."""
        self._members = members
        self._next_hops = next_hops
        self._source_ports = source_ports
        self._seed = seed
        self._hash_key = hash_key

    def update(
        self, services: Sequence[Service], gone: Iterable[str], rules_applied: bool
    ) -> tuple[set[Pool], bool]:
        """Serve these from now on in place of those with their names, and those that are `gone` no
        longer; the others stay. Returns the pools whose datapath has changed, and whether some VIP
        or backend has come or gone. `rules_applied` as for `Balancer.apply`."""
        members = self._members
        switched: set[Pool] = set()
        moved = False
        for pool in self._awaiting:
            pool.awaiting_rules = False
        self._awaiting = []
        for name in gone:
            moved = True
            for member in self.pools.pop(name).members.values():
                members.retire(member)
        for service in services:
            found = self.pools.get(service.name)
            pool = found or Pool(service, seed=self._seed, key=self._hash_key)
            before = pool.service
            moved = moved or found is None or _place(before) != _place(service)
            self.pools[service.name] = pool
            for member in pool.update(service, partial(members.add, pool)):
                members.retire(member)
            for member in pool.members.values():
                members.take_backend(member)
            if service.datapath is not before.datapath:
                switched.add(pool)
                if not rules_applied and (
                    before.datapath.kernel_forwards or service.datapath.kernel_forwards
                ):
                    pool.awaiting_rules = True
                    self._awaiting.append(pool)
        changed = {service.name for service in services}
        self.user_schedulers = [
            one for one in self.user_schedulers if one[0] in self.pools and one[0] not in changed
        ]
        self.user_schedulers += [
            (name, scheduler)
            for name in changed
            for scheduler in self.pools[name].schedulers
            if isinstance(scheduler, UserScheduler)
        ]
        if moved:
            self._index()
        return switched, moved

    def find(self, high: int, low: int, protocol: int, port: int, wire: bool) -> Pool | None:
        """The pool of the service with this VIP; `wire` for a packet that came as a frame."""
        pool = self._by_vip.get((high, low, protocol, port))
        if pool is None and self._all_ports:
            pool = self._by_vip.get((high, low, protocol, ALL_PORTS))
        if pool is None and self._wildcards:
            family = MAPPED if not high and low >> 32 == 0xFFFF else 0
            pool = self._by_vip.get((0, family, protocol, port))
            # A packet at a hook is for this host; a frame may be for another.
            if wire and pool is not None and (high, low) not in self._next_hops.addresses:
                return None
        return pool

    def _index(self) -> None:
        """Index the VIPs, and exclude their ports from the SNAT ports."""
        by_vip: dict[tuple[int, int, int, int], Pool] = {}
        excluded: list[tuple[tuple[int, int], int]] = []
        self._wildcards = False
        self._all_ports = False
        sources = {
            words_of(source)
            for pool in self.pools.values()
            for member in pool.members.values()
            for source in member.backend.sources
        }
        for pool in self.pools.values():
            for vip in pool.service.vips:
                high, low = words_of(vip.address)
                self._wildcards |= vip.wildcard
                if vip.all_ports:
                    self._all_ports = True
                    by_vip[high, low, int(pool.service.protocol), ALL_PORTS] = pool
                    # Its address keeps its SNAT ports: packets to those are replies first.
                    continue
                for port in range(vip.first_port, vip.last_port + 1):
                    by_vip[high, low, int(pool.service.protocol), port] = pool
                    for source in sources if vip.wildcard else [(high, low)]:
                        excluded.append((source, port))
        self._by_vip = by_vip
        self.addresses = {
            words_of(vip.address) for pool in self.pools.values() for vip in pool.service.vips
        }
        self._source_ports.exclude(excluded)


def _place(service: Service) -> tuple[object, ...]:
    """What the indices of VIPs and backends depend on; not on weights."""
    backends = {(backend.endpoint, backend.sources) for backend in service.backends}
    return service.protocol, service.vips, backends
