"""Which backend a client's last flow went to. One table per service, read only when a flow opens.
The first bits of an address identify the client. Entries are in the order of their last use, which
is also the order in which they expire, since all have the same timeout; so the oldest are in front.
"""

from collections import OrderedDict

from featherlb.core.pools.gate import key_of
from featherlb.core.pools.schedulers import Member, NewFlow
from featherlb.model import Persistence
from featherlb.model.ticks import TICKS_PER_SECOND

MAX_CLIENTS = 65536
"""Entries per service; beyond that, the least recently used one is forgotten."""


class PersistenceTable:
    """The backends of clients. Times are in ticks of 0.1 s."""

    def __init__(self, persistence: Persistence) -> None:
        self._prefix = persistence.prefix
        self._timeout = round(persistence.timeout * TICKS_PER_SECOND)
        self._entries: OrderedDict[bytes, tuple[Member, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, flow: NewFlow, ticks: int) -> Member | None:
        """The member of the client's last flow, None after the timeout."""
        member, last = self._entries.get(self._client(flow), (None, 0))
        return member if ticks - last < self._timeout else None

    def remaining(self, flow: NewFlow, ticks: int) -> int:
        """For how many ticks more the client is bound to its member; 0 or less if it is not."""
        _, last = self._entries.get(self._client(flow), (None, -self._timeout))
        return last + self._timeout - ticks

    def remember(self, flow: NewFlow, member: Member, ticks: int) -> None:
        """The client's last flow goes to this member; the timeout starts anew."""
        entries = self._entries
        client = self._client(flow)
        entries[client] = member, ticks
        entries.move_to_end(client)
        # For one entry added, up to two expired ones are removed.
        for _ in range(2):
            _, last = next(iter(entries.values()))
            if ticks - last >= self._timeout or len(entries) > MAX_CLIENTS:
                entries.popitem(last=False)

    def _client(self, flow: NewFlow) -> bytes:
        bits = 32 if flow.version == 4 else 128
        return key_of(flow.client >> (bits - self._prefix))
