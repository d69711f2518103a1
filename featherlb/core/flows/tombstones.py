"""Which connections are not to be joined, for a while. A connection that is ended in the middle may
have segments under way. Behind a consistent scheduler they would open it again, as those of a
connection from before a restart do. And just after a restart, what a client has opened to a
backend itself is none of ours. Looked at only for segments of no flow; times are in ticks of 0.1
s.
"""

from collections import OrderedDict

from featherlb.model.ticks import TICKS_PER_SECOND

MAX_TOMBSTONES = 65536
"""Connections that are remembered; beyond them the first one is forgotten."""
MEMORY = 60 * TICKS_PER_SECOND
"""How long: until both ends have met a RST."""

Key = tuple[int, int, int, int, int]
"""The words of the client's address and of the VIP's, and the ports, client << 16 | VIP."""


class Tombstones:
    """A memory of keys, in the order in which they came."""

    def __init__(self) -> None:
        self._closed: OrderedDict[Key, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._closed)

    def remember(self, key: Key, ticks: int) -> None:
        self._closed[key] = ticks
        self._closed.move_to_end(key)
        # One comes, so two that are old may go.
        for _ in range(2):
            closed_at = next(iter(self._closed.values()))
            if ticks - closed_at >= MEMORY or len(self._closed) > MAX_TOMBSTONES:
                self._closed.popitem(last=False)

    def forget(self, key: Key) -> None:
        """The client has opened it anew."""
        self._closed.pop(key, None)

    def holds(self, key: Key, ticks: int) -> bool:
        """Whether the connection is not to be joined, as of a short while ago."""
        closed_at = self._closed.get(key)
        return closed_at is not None and ticks - closed_at < MEMORY
