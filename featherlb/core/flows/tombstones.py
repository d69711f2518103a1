"""Recently closed connections, which must not be adopted. A connection that was ended by force may
have segments in flight, which a consistent scheduler would adopt like those of a connection from
before a restart. After a restart, connections that clients opened to a backend directly are kept
here as well. Checked only for segments without a flow; times are in ticks of 0.1 s.
"""

from collections import OrderedDict

from featherlb.model.ticks import TICKS_PER_SECOND

MAX_TOMBSTONES = 65536
"""Connections to remember; beyond that, the oldest is forgotten."""
MEMORY = 60 * TICKS_PER_SECOND
"""Ticks for which each is remembered: until both ends have received a RST."""

Key = tuple[int, int, int, int, int]
"""The words of the client's address and of the VIP, and the ports, client << 16 | VIP."""


class Tombstones:
    """Keys in the order in which they were added."""

    def __init__(self) -> None:
        self._closed: OrderedDict[Key, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._closed)

    def remember(self, key: Key, ticks: int) -> None:
        self._closed[key] = ticks
        self._closed.move_to_end(key)
        # For one entry added, up to two expired ones are removed.
        for _ in range(2):
            closed_at = next(iter(self._closed.values()))
            if ticks - closed_at >= MEMORY or len(self._closed) > MAX_TOMBSTONES:
                self._closed.popitem(last=False)

    def forget(self, key: Key) -> None:
        """Remove a connection that the client has reopened."""
        self._closed.pop(key, None)

    def holds(self, key: Key, ticks: int) -> bool:
        """Whether the connection was closed recently and must not be adopted."""
        closed_at = self._closed.get(key)
        return closed_at is not None and ticks - closed_at < MEMORY
