"""Which connections are not to be joined, for a while. A connection that is ended in the middle may
have segments under way. Behind a consistent scheduler they would open it again, as those of a
connection from before a restart do. And just after a restart, what a client has opened to a
backend itself is none of ours. Looked at only for segments of no flow; times are in ticks of 0.1
s.
"""

from collections import OrderedDict

from featherlb.model.ticks import TICKS_PER_SECOND

MAX_ENDED = 65536
"""Connections that are remembered; beyond them the first one is forgotten."""
MEMORY = 60 * TICKS_PER_SECOND
"""How long: until both ends have met a RST."""

Key = tuple[int, int, int, int, int]
"""The words of the client's address and of the VIP's, and the ports, client << 16 | VIP."""


class EndedConnections:
    """A memory of keys, in the order in which they came."""

    def __init__(self) -> None:
        self._ended: OrderedDict[Key, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ended)

    def remember(self, key: Key, ticks: int) -> None:
        self._ended[key] = ticks
        self._ended.move_to_end(key)
        # One comes, so two that are old may go.
        for _ in range(2):
            ended_at = next(iter(self._ended.values()))
            if ticks - ended_at >= MEMORY or len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)

    def forget(self, key: Key) -> None:
        """The client has opened it anew."""
        self._ended.pop(key, None)

    def holds(self, key: Key, ticks: int) -> bool:
        """Whether the connection is not to be joined, as of a short while ago."""
        ended_at = self._ended.get(key)
        return ended_at is not None and ticks - ended_at < MEMORY
