"""A worker's side of the synchronisation with other nodes."""

import time

from featherlb.cluster.links import Link, Message, parts, unpack_nodes
from featherlb.core.path.balancer import Balancer

INTERVAL = 0.005
"""Seconds for which announcements are collected: each message costs both ends a system call."""
ENOUGH = 256
"""Announcements that don't wait any longer."""


class FlowSync:
    """Sends what the core announces, and gives it what others have announced."""

    def __init__(self, core: Balancer, link: Link, node: int) -> None:
        """`node` is this node's number."""
        self._core = core
        self._link = link
        self._next = 0.0
        self._copying: Message | None = None
        """What the copy under way is sent as: to all nodes, or to those that asked for it."""
        self._asked = False
        """Somebody waits for its end."""
        self._unsent: list[tuple[Message, bytes]] = []
        core.announcer.start(node, int(time.monotonic() * 10))

    def fileno(self) -> int:
        return self._link.fileno()

    @property
    def urgent(self) -> bool:
        """Whether `flush` has something to do within `INTERVAL`."""
        return self._copying is not None or self._core.announcer.count > 0

    def receive(self, now: float) -> None:
        """Take messages, as many as don't delay packets for long."""
        for kind, content in self._link.receive(most=2):
            match kind:
                case Message.FLOWS:
                    self._core.replicas.receive(bytearray(content), int(now * 10))
                case Message.LIVING:
                    self._core.replicas.set_living(unpack_nodes(content))
                case Message.COPY_WANTED:
                    self._asked = True
                    # One that all nodes need goes on as that.
                    self._begin_copy(self._copying or Message.COPIED)

    def _begin_copy(self, kind: Message) -> None:
        self._core.announcer.begin_copy()
        self._copying = kind

    def flush(self, now: float) -> None:
        """Send what has been announced, and a part of a copy that is under way."""
        announcer = self._core.announcer
        if self._unsent and not self._send_rest():
            return
        if announcer.count and (now >= self._next or announcer.count >= ENOUGH):
            self._next = now + INTERVAL
            if not self._send(Message.FLOWS, announcer.take()):
                return
        if announcer.lost and self._copying is None:
            # To all peers: nobody knows who has missed what.
            self._begin_copy(Message.FLOWS)
        if self._copying is not None and not announcer.count:
            kind, more = self._copying, announcer.copy()
            if not more:
                self._copying = None
            self._send(kind, announcer.take())
            if not more and self._asked:
                self._asked = False
                self._send(Message.COPY_ENDS, b"")

    def _send(self, kind: Message, records: bytes) -> bool:
        """Send it in messages; what has no room is sent later, before anything else. Whether all
        had room."""
        pieces = [memoryview(b"")] if kind is Message.COPY_ENDS else list(parts(records))
        for at, piece in enumerate(pieces):
            if self._unsent or not self._link.send(kind, piece):
                self._unsent += [(kind, bytes(one)) for one in pieces[at:]]
                return False
        return True

    def _send_rest(self) -> bool:
        while self._unsent:
            if not self._link.send(*self._unsent[0]):
                return False
            del self._unsent[0]
        return True

    def close(self) -> None:
        self._link.close()
