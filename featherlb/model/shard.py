"""A shard: the flows, source ports and connection limits of one of several workers.

A hash of the client's address and port selects a flow's worker; if workers are to remember
clients, a hash of the address alone, or of its network (`remembered_prefix`). Three places must
agree on it, or packets of one flow would meet different workers: the kernel's rules (HMARK,
`datapaths/rules/steering.py`), the filters of packet sockets (`datapaths/raw/socket_filter.py`),
and a worker that adopts entries of connection tracking (`core/path/offloaded.py`). So the hash
is HMARK's (net/netfilter/xt_HMARK.c, `hmark_hash`) of the client's side alone: Jenkins' hash of
three words (include/linux/jhash.h, `jhash_3words`), scaled to the number of workers.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from featherlb.model import PRIVILEGED_SOURCE_PORTS, SOURCE_PORTS, Admission, Service

WORD = 0xFFFFFFFF
ROUNDS = (
    ("c", "b", 14),
    ("a", "c", 11),
    ("b", "a", 25),
    ("c", "b", 16),
    ("a", "c", 4),
    ("b", "a", 14),
    ("c", "b", 24),
)
"""How Jenkins' hash mixes its words: (x, y, n) for x = (x ^ y) - (y rotated left by n)."""
_INITIAL = 0xDEADBEEF + (3 << 2)  # JHASH_INITVAL and the length, of three words


def remembered_prefix(services: Iterable[Service], family: int) -> int:
    """How many bits of a client's address select its worker, for this address family, 4 or 6: those
    by which all services with persistence or limits for clients can tell these apart; 0 if there is
    none.

    It holds for the clients of all services. A reply names a backend, which several services may
    have, but not the service.
    """
    prefixes = [
        prefix
        for service in services
        if service.vips[0].address.version == family
        for prefix in service.remembered_prefixes
    ]
    return min(prefixes, default=0)


def folded(high: int, low: int) -> int:
    """An address as it is hashed: itself, or the four words of an IPv6 address combined with XOR
    (`hmark_addr6_mask`). Given as two words, IPv4 in its mapped form."""
    if high or low >> 32 != 0xFFFF:
        low ^= high
        low ^= low >> 32
    return low & WORD


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of worker number `worker` (from 0) of `workers`. All workers of an instance have
    the same `seed` (32 bits) and `prefix4` and `prefix6`: how many bits of a client's IPv4 or IPv6
    address select the worker; 0 if the whole address and the port do."""

    worker: int
    workers: int
    seed: int
    prefix4: int = 0
    prefix6: int = 0

    @property
    def ports(self) -> range:
        """The part of `SOURCE_PORTS` that it may give to flows: a reply's destination port then
        says whose flow it is."""
        return self._part(SOURCE_PORTS)

    @property
    def privileged_ports(self) -> range:
        """The same of `PRIVILEGED_SOURCE_PORTS`."""
        return self._part(PRIVILEGED_SOURCE_PORTS)

    @property
    def all_ports(self) -> tuple[range, range]:
        """Its parts of `ALL_SOURCE_PORTS`; of the few privileged ones, one of many workers may have
        none."""
        return self.ports, self.privileged_ports

    def _part(self, ports: range) -> range:
        size = len(ports) // self.workers
        return ports[self.worker * size : (self.worker + 1) * size]

    def connections(self, limit: int) -> int:
        """Its part of a limit; together the workers have all."""
        return limit // self.workers + (self.worker < limit % self.workers)

    def admission(self, admission: Admission, family: int) -> Admission:
        """The limits for clients of one address family, 4 or 6, that apply to its flows.

        It has all flows of a client whose network selects the worker. Of other limits it gets its
        part, but one flow at least.
        """
        selecting = self.prefix4 if family == 4 else self.prefix6

        def divides(prefix: int) -> bool:
            return self.workers > 1 and not 0 < selecting <= prefix

        return replace(
            admission,
            max_flows=tuple(
                replace(one, limit=max(1, self.connections(one.limit)))
                if divides(one.prefix)
                else one
                for one in admission.max_flows
            ),
            max_new=tuple(
                replace(
                    one,
                    rate=one.rate / self.workers,
                    burst=max(1, self.connections(one.burst)),
                )
                if divides(one.prefix)
                else one
                for one in admission.max_new
            ),
        )

    @property
    def start(self) -> int:
        """What is added to each word before they are mixed."""
        return (_INITIAL + self.seed) & WORD

    def has(self, high: int, low: int, port: int) -> bool:
        """Whether it has the flows of this client, whose address is given as two words of 64 bits
        (IPv4 in its mapped form)."""
        if self.workers == 1:
            return True
        if high or low >> 32 != 0xFFFF:
            prefix, unused = self.prefix6, 128 - self.prefix6
        else:
            prefix, unused = self.prefix4, 32 - self.prefix4
        if prefix:
            network = (high << 64 | low) >> unused << unused
            high, low, port = network >> 64, network & (1 << 64) - 1, 0
        start, address = self.start, folded(high, low)
        words = {"a": start, "b": (start + address) & WORD, "c": (start + (port << 16)) & WORD}
        for changed, other, bits in ROUNDS:
            value = words[other]
            rotated = (value << bits | value >> (32 - bits)) & WORD
            words[changed] = ((words[changed] ^ value) - rotated) & WORD
        return words["c"] * self.workers >> 32 == self.worker


WHOLE = Shard(0, 1, 0)
"""That of a single worker."""
