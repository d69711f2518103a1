"""SNAT ports for `full` NAT. A flow in `full` mode reaches its backend from one of the balancer's
addresses, and its reply is identified by (protocol, backend endpoint, source address, source port).
So flows to different backend endpoints may share a port, flows to the same endpoint never do: ports
are allocated per protocol, source address and backend endpoint, which allows 31744 flows per source
address and *backend*. Linux's SNAT has the same rule (net/netfilter/nf_nat_core.c,
`nf_nat_used_tuple`: a reply tuple must be unique).

A client with a port below 1024 gets a port below 1024, from a range of its own (RFC 4787 REQ-3a;
nf_nat_l4proto_unique_tuple in nf_nat_core.c).

RFC 4787 REQ-3 and RFC 5382 REQ-7 forbid a NAT to overload ports, that is to let two flows share one
where they can collide. Towards different endpoints they can't, and RFC 7857 section 3 ("port
overlapping") allows it. When no port is free, a flow is refused, unless another one gives up its
port (`port_holders.py`).

The port that has been free for longest is allocated first, so that the backend's TIME_WAIT of its
last flow has most likely passed. Ports that were never used are picked at random (RFC 6056 section
3.3), so that an off-path attacker can't predict the next one.
"""

import random
from array import array
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from featherlb import model


class _PortRing:
    """The free ports of one source address towards one target: 2 bytes each.

    A ring from `_head` over `_count` ports. The first `_fresh` of them were never allocated; the
    rest are in the order of their release.
    """

    __slots__ = ("_count", "_fresh", "_head", "_places", "_random", "_ring", "_size")

    def __init__(self, ports: Sequence[int], draw: Callable[[], float]) -> None:
        self._ring = array("H", ports)
        self._size = self._count = self._fresh = len(ports)
        self._head = 0
        self._places: dict[int, int] | None = None
        self._random = draw

    def take(self, excluded: frozenset[int]) -> int | None:
        """The next port that isn't excluded, or None. O(1), plus a step for each excluded port at
        the front."""
        ring = self._ring
        self._places = None
        for _ in range(self._count):
            head = self._head
            port = ring[head]
            if self._fresh:
                # One step of a Fisher-Yates shuffle. The ring has not wrapped while fresh
                # ports remain, as those fill it from the head on.
                other = head + int(self._random() * self._fresh)
                port, ring[other] = ring[other], port
                self._fresh -= 1
            self._head = (head + 1) % self._size
            self._count -= 1
            if port not in excluded:
                return port
            self.give_back(port)
        return None

    def claim(self, port: int) -> bool:
        """Take this port, if it is free. O(n) for the first of consecutive claims."""
        ring = self._ring
        if self._places is None:
            places = range(self._head, self._head + self._count)
            self._places = {ring[at % self._size]: at % self._size for at in places}
        at = self._places.pop(port, None)
        if at is None:
            return False
        # The port at the front takes its place.
        if at != self._head:
            ring[at] = ring[self._head]
            self._places[ring[at]] = at
        self._fresh = max(0, self._fresh - 1)
        self._head = (self._head + 1) % self._size
        self._count -= 1
        return True

    def give_back(self, port: int) -> None:
        self._places = None
        self._ring[(self._head + self._count) % self._size] = port
        self._count += 1

    @property
    def in_use(self) -> int:
        return self._size - self._count


class _Target:
    """The rings towards one backend endpoint, by source address: those of unprivileged ports, and
    those of privileged ones."""

    __slots__ = ("leaving", "rings", "turn")

    def __init__(self) -> None:
        self.rings: tuple[dict[Hashable, _PortRing], dict[Hashable, _PortRing]] = {}, {}
        self.turn = 0
        self.leaving = False


_Excluded = dict[Hashable, frozenset[int]]
_Source = TypeVar("_Source", bound=Hashable)

_NOTHING: frozenset[int] = frozenset()


class PortAllocator:
    """Allocates source ports, none twice while it is in use.

    A *target* is a protocol and backend endpoint, whichever services the backend belongs to; a
    *source* is an address of the balancer. Both may be of any hashable type. Memory is 2 bytes per
    port for each pair that has been used.
    """

    def __init__(
        self,
        seed: int,
        ports: Sequence[int] = model.SOURCE_PORTS,
        privileged: Sequence[int] = model.PRIVILEGED_SOURCE_PORTS,
    ) -> None:
        self._random = random.Random(seed).random
        self._ports = ports, privileged
        self._targets: dict[Hashable, _Target] = {}
        self._excluded: tuple[_Excluded, _Excluded] = {}, {}

    def exclude(self, pairs: Iterable[tuple[Hashable, int]]) -> None:
        """Replace the (source, port) pairs that are never allocated.

        They are the VIPs: a reply to one would look like a client's packet. A pair in use stays so
        until its release.
        """
        ports: dict[Hashable, set[int]] = {}
        for source, port in pairs:
            ports.setdefault(source, set()).add(port)
        plain, privileged = (
            {source: frozenset(some.intersection(kind)) for source, some in ports.items()}
            for kind in self._ports
        )
        self._excluded = plain, privileged

    def allocate(
        self, target: Hashable, sources: Sequence[_Source], privileged: bool = False
    ) -> tuple[_Source, int] | None:
        """A (source, port) that is free towards `target`, or None if every source is
        exhausted. The sources take turns. A `privileged` port is below 1024."""
        entry = self._entry(target)
        for _ in sources:
            source = sources[entry.turn % len(sources)]
            entry.turn += 1
            ring = self._ring(entry, source, privileged)
            port = ring.take(self._excluded[privileged].get(source, _NOTHING))
            if port is not None:
                return source, port
        return None

    def is_scarce(self, target: Hashable, source: Hashable, privileged: bool = False) -> bool:
        """Whether more than 80 % of these ports are in use; the source has been used."""
        in_use = self._targets[target].rings[privileged][source].in_use
        return 5 * in_use > 4 * self._limit(source, privileged)

    def use(self, target: Hashable, sources: Iterable[Hashable]) -> tuple[int, int]:
        """How many unprivileged ports of these sources are in use towards a target, and how many
        there are."""
        entry = self._targets.get(target)
        rings = entry.rings[False] if entry else {}
        in_use = limit = 0
        for source in sources:
            limit += self._limit(source, False)
            if source in rings:
                in_use += rings[source].in_use
        return in_use, limit

    def _limit(self, source: Hashable, privileged: bool) -> int:
        return len(self._ports[privileged]) - len(self._excluded[privileged].get(source, _NOTHING))

    def claim(self, target: Hashable, source: Hashable, port: int) -> bool:
        """Take this port for a flow that already uses it; whether it was free."""
        return self._ring(self._entry(target), source, _is_privileged(port)).claim(port)

    def _entry(self, target: Hashable) -> _Target:
        entry = self._targets.get(target)
        if entry is None:
            entry = self._targets[target] = _Target()
        entry.leaving = False
        return entry

    def _ring(self, entry: _Target, source: Hashable, privileged: bool) -> _PortRing:
        rings = entry.rings[privileged]
        ring = rings.get(source)
        if ring is None:
            ring = rings[source] = _PortRing(self._ports[privileged], self._random)
        return ring

    def release(self, target: Hashable, source: Hashable, port: int) -> None:
        """Release a port, once, when its flow is removed."""
        entry = self._targets[target]
        entry.rings[_is_privileged(port)][source].give_back(port)
        if entry.leaving:
            self.forget(target)

    def forget(self, target: Hashable) -> None:
        """Free the memory of a removed backend, as soon as its last port is released. Allocating
        for it again cancels this."""
        entry = self._targets.get(target)
        if entry is None:
            return
        entry.leaving = any(ring.in_use for rings in entry.rings for ring in rings.values())
        if not entry.leaving:
            del self._targets[target]


def _is_privileged(port: int) -> bool:
    return port < model.FIRST_UNPRIVILEGED_PORT
