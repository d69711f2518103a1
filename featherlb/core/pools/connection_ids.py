"""Which backend a QUIC connection is with, by its connection IDs.

A client chooses the first destination connection ID at random; from the server's answer on, it uses
the ID that the server has chosen (RFC 9000 section 7.2), and keeps it if a NAT on the way gives it
another port or address. Packets with a short header don't tell the length of their ID. So the IDs
that servers choose are noted from their long headers, and looked up by the lengths that were seen.

IDs that a server issues later are encrypted (NEW_CONNECTION_ID, section 19.15) and not known here.
"""

from collections import Counter, OrderedDict

from featherlb.core.pools.schedulers import Member
from featherlb.net.payload_keys import quic_ids

MAX_IDS = 65536
"""Per service; beyond that, the least recently used one is forgotten."""


class ConnectionIds:
    """The IDs of a service's connections."""

    def __init__(self) -> None:
        self._members: OrderedDict[bytes, Member] = OrderedDict()
        self._lengths: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._members)

    def learn(self, payload: bytes, member: Member) -> None:
        """Note the ID that this member has chosen, if the datagram begins with a long header."""
        ids = quic_ids(payload)
        if ids is None or not ids[1]:
            return
        source = ids[1]
        if source not in self._members:
            self._lengths[len(source)] += 1
        self._members[source] = member
        self._members.move_to_end(source)
        if len(self._members) > MAX_IDS:
            forgotten, _ = self._members.popitem(last=False)
            self._lengths[len(forgotten)] -= 1

    def find(self, payload: bytes) -> Member | None:
        """The member that has chosen the ID that a client's datagram is sent to."""
        ids = quic_ids(payload)
        if ids is not None:
            return self._use(ids[0])
        for length, count in self._lengths.items():
            if count and len(payload) > length:
                member = self._use(payload[1 : 1 + length])
                if member is not None:
                    return member
        return None

    def _use(self, connection_id: bytes) -> Member | None:
        member = self._members.get(connection_id)
        if member is not None:
            self._members.move_to_end(connection_id)
        return member
