"""Looks up in connection tracking who has a tuple that the core wants (`core/path/claims.py`).

Balanced connections of the datapaths nfqueue and raw are not in connection tracking, so one that is
there is another one: a client's with a backend itself, through this host as its router.
"""

import socket
from contextlib import suppress

import cython

from featherlb.core.path.claims import Claims
from featherlb.model import Service
from featherlb.system import sysctl
from featherlb.system.conntrack_messages import Entry, Requests
from featherlb.system.mmsg import MessageBatch
from featherlb.system.nfnetlink import open_socket

if not cython.compiled:
    from featherlb.core.flows.kernel import UNKNOWN
    from featherlb.core.flows.lifecycle import IS_REUSABLE
    from featherlb.system.conntrack_messages import NEW_MESSAGE

BUFFER = 1 << 16
"""Bytes of kernel memory: one answer is under way at a time."""
SIZE = 2048
"""Bytes: more than any entry takes."""
COUNT = "net/netfilter/nf_conntrack_count"
"""A setting that there is with connection tracking alone."""


class TupleOwners:
    """Answers the core's questions."""

    def __init__(self, claims: Claims) -> None:
        """Answers none until `serve`."""
        self.claims = claims
        self.entry = Entry()
        self.answers = MessageBatch(1, SIZE)
        self.entry.attach(self.answers.buffer)
        self.requests = Requests()
        self._socket: socket.socket | None = None

    def serve(self, services: tuple[Service, ...]) -> None:
        """Answer questions from now on if these services have any, and if the kernel tracks
        connections. Loads no kernel module."""
        asking = any(not one.datapath.kernel_forwards for one in services)
        self.claims.active = asking and sysctl.read(COUNT) is not None
        if self.claims.active and self._socket is None:
            self._socket = open_socket(BUFFER, BUFFER)
            self.answers.use(self._socket)

    def answer(self) -> None:
        """Answer the open question: no, if the kernel has no memory for it. A connection that is
        closing has given its tuple up."""
        claims = self.claims
        entry = self.entry
        self.requests.get_tuple(
            claims.version,
            claims.protocol,
            claims.client_high,
            claims.client_low,
            claims.backend_high,
            claims.backend_low,
            claims.ports,
        )
        assert self._socket is not None
        owned = False
        with suppress(OSError):
            self._socket.send(self.requests.take())
        # The kernel answers within the system call.
        if self.answers.receive():
            entry.read(0, self.answers.lengths[0])
            state = entry.state
            owned = entry.kind == NEW_MESSAGE and (state == UNKNOWN or not IS_REUSABLE[state])
        claims.answer(owned)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
