"""Which clients may open flows of a service, and how many: `allow`, `deny`, `max_flows` and
`max_new` of the YAML file, as values."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_network

from featherlb.model.address import Address, Network

MAPPED = 0xFFFF << 32
"""In front of an IPv4 address in IPv6's mapped form (RFC 4291 section 2.5.5.2)."""
_BORDERS = (MAPPED, MAPPED + (1 << 32))
"""Where these addresses begin and end."""
_SIZE = 16
"""Bytes of an address."""
_IN_MAPPED = MAPPED.to_bytes(_SIZE)[:12]
"""The first bytes of a range of IPv4 addresses."""


CLIENT_PREFIX = {4: 32, 6: 64}
"""The prefix length by which limits tell clients apart, by address family: a host has a whole /64
to choose its IPv6 address from (RFC 4291 section 2.5.1)."""


class Refusal(StrEnum):
    """What a client gets that may not open a flow."""

    DROP = "drop"
    """Nothing."""
    RESET = "reset"
    """A RST; for a datagram, an ICMP port unreachable."""


@dataclass(frozen=True, slots=True)
class NetworkSet:
    """Addresses of any number of networks, both families together.

    `packed` has disjoint ranges in ascending order, the first and the last address of each as 16
    bytes in network order, IPv4 in its mapped form: cheap to send, compare and search, however many
    networks there are.
    """

    packed: bytes = b""

    @classmethod
    def of(cls, networks: Iterable[Network]) -> "NetworkSet":
        """The addresses of these networks."""
        return cls.of_ranges(found for network in networks for found in ranges_of(network))

    @classmethod
    def of_ranges(cls, ranges: Iterable[tuple[int, int]]) -> "NetworkSet":
        """Those of these ranges: first and last address, as in `ranges`."""
        merged: list[list[int]] = []
        for first, last in sorted(ranges):
            # Those next to each other are joined, unless they are of different families.
            if merged and first <= merged[-1][1] + (first not in _BORDERS):
                merged[-1][1] = max(last, merged[-1][1])
            else:
                merged.append([first, last])
        return cls(b"".join(one.to_bytes(_SIZE, "big") for pair in merged for one in pair))

    def __or__(self, other: "NetworkSet") -> "NetworkSet":
        if not self or not other:
            return self or other
        return self.of_ranges((*self.ranges(), *other.ranges()))

    def without(self, other: "NetworkSet") -> "NetworkSet":
        """The ranges of this set that aren't ranges of the other one, as a set."""
        theirs = set(other._pieces())
        return NetworkSet(b"".join(one for one in self._pieces() if one not in theirs))

    def _pieces(self) -> list[bytes]:
        """Each range as it is packed."""
        return [self.packed[at : at + 2 * _SIZE] for at in range(0, len(self.packed), 2 * _SIZE)]

    def __bool__(self) -> bool:
        return bool(self.packed)

    def covers(self, address: Address) -> bool:
        """Whether this address is among them."""
        number = int(address) | (MAPPED if address.version == 4 else 0)
        return any(first <= number <= last for first, last in self.ranges())

    def has(self, family: int) -> bool:
        """Whether it has addresses of this family, 4 or 6."""
        return any(one.startswith(_IN_MAPPED) is (family == 4) for one in self._pieces())

    def ranges(self) -> Iterator[tuple[int, int]]:
        """The ranges: first and last address as numbers of 128 bits."""
        for at in range(0, len(self.packed), 2 * _SIZE):
            yield (
                int.from_bytes(self.packed[at : at + _SIZE], "big"),
                int.from_bytes(self.packed[at + _SIZE : at + 2 * _SIZE], "big"),
            )

    def networks(self, family: int) -> list[tuple[int, int]]:
        """The fewest networks that have the same addresses of one family, 4 or 6: address and
        prefix length of each."""
        found = []
        bits = 32 if family == 4 else 128
        for first, last in self.ranges():
            if (first >> 32 == 0xFFFF) != (family == 4):
                continue
            if family == 4:
                first, last = first - MAPPED, last - MAPPED
            while first <= last:
                # The largest block that begins here and does not end behind the last address.
                aligned = (first & -first).bit_length() - 1 if first else bits
                free = min(aligned, (last - first + 1).bit_length() - 1)
                found.append((first, bits - free))
                first += 1 << free
        return found


def ranges_of(network: Network) -> Iterator[tuple[int, int]]:
    """A network as `NetworkSet.ranges` has it: two ranges, if it has addresses of both families."""
    first = int(network.network_address)
    last = first + (1 << network.max_prefixlen - network.prefixlen) - 1
    if network.version == 4:
        yield first | MAPPED, last | MAPPED
        return
    # Without the addresses that stand for IPv4.
    if first < _BORDERS[0]:
        yield first, min(last, _BORDERS[0] - 1)
    if last >= _BORDERS[1]:
        yield max(first, _BORDERS[1]), last


NOBODY = NetworkSet()


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in a unit of time."""

    count: int
    unit: str
    """A key of `SECONDS`."""

    @property
    def per_second(self) -> float:
        return self.count / SECONDS[self.unit]

    def __str__(self) -> str:
        return f"{self.count}/{self.unit}"


SECONDS = {"s": 1, "m": 60, "h": 3600}
"""The units of rates."""


@dataclass(frozen=True, slots=True)
class MaxFlows:
    """How many open flows the clients of one network may have together; `prefix` is the network's
    prefix length, 0 for all clients of the service."""

    limit: int
    prefix: int
    action: Refusal = Refusal.DROP


@dataclass(frozen=True, slots=True)
class MaxNew:
    """How many flows the clients of one network may open together: `rate` a second, and `burst` at
    once. `prefix` is as in `MaxFlows`."""

    rate: float
    burst: int
    prefix: int
    action: Refusal = Refusal.DROP


@dataclass(frozen=True, slots=True)
class Admission:
    """The conditions on which a client may open a flow of a service; it must meet all of them."""

    allow: NetworkSet | None = None
    """Its address is one of these; None: it may be any."""
    deny: NetworkSet = NOBODY
    """It is none of these."""
    deny_action: Refusal = Refusal.DROP
    max_flows: tuple[MaxFlows, ...] = ()
    max_new: tuple[MaxNew, ...] = ()

    def admits(self, client: Address) -> bool:
        """Whether the lists let this client in."""
        allowed = self.allow is None or self.allow.covers(client)
        return allowed and not self.deny.covers(client)

    @property
    def prefixes(self) -> list[int]:
        """The prefix lengths by which its limits tell clients apart."""
        every = [one.prefix for one in self.max_flows] + [one.prefix for one in self.max_new]
        return [prefix for prefix in every if prefix]


EVERYBODY = Admission()
"""Without conditions."""


def network_text(number: int, prefix: int) -> str:
    """A network as text; `number` is any of its addresses as 128 bits, IPv4 in its mapped form. A
    single address has no prefix."""
    if number >> 32 == 0xFFFF:
        address: IPv4Address | IPv6Address = IPv4Address(number & 0xFFFFFFFF)
    else:
        address = IPv6Address(number)
    if prefix >= address.max_prefixlen:
        return str(address)
    return str(ip_network((address, prefix), strict=False))
