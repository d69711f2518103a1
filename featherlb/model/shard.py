"""A shard: the flows, source ports and connection limits of one of several workers.

A hash of the client's address and port selects a flow's worker. Three places must agree on it, or
packets of one flow would meet different workers: the kernel's rules (HMARK,
`datapaths/rules/steering.py`), the filters of packet sockets (`datapaths/raw/socket_filter.py`),
and a worker that adopts entries of connection tracking (`core/path/offloaded.py`). So the hash
is HMARK's (net/netfilter/xt_HMARK.c, `hmark_hash`) of the client's side alone: Jenkins' hash of
three words (include/linux/jhash.h, `jhash_3words`), scaled to the number of workers.
"""

from dataclasses import dataclass

from featherlb.model import PRIVILEGED_SOURCE_PORTS, SOURCE_PORTS

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
    the same `seed` (32 bits)."""

    worker: int
    workers: int
    seed: int

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

    @property
    def start(self) -> int:
        """What is added to each word before they are mixed."""
        return (_INITIAL + self.seed) & WORD

    def has(self, high: int, low: int, port: int) -> bool:
        """Whether it has the flows of this client, whose address is given as two words of 64 bits
        (IPv4 in its mapped form)."""
        if self.workers == 1:
            return True
        start, address = self.start, folded(high, low)
        words = {"a": start, "b": (start + address) & WORD, "c": (start + (port << 16)) & WORD}
        for changed, other, bits in ROUNDS:
            value = words[other]
            rotated = (value << bits | value >> (32 - bits)) & WORD
            words[changed] = ((words[changed] ^ value) - rotated) & WORD
        return words["c"] * self.workers >> 32 == self.worker


WHOLE = Shard(0, 1, 0)
"""That of a single worker."""
