"""Between the synchroniser and a worker: a socket that keeps the bounds of messages.

A message is its kind (a byte) and its content. Neither end waits: a worker keeps what has no room,
up to its bound, and the synchroniser lets the peer wait whose announcements have no room.
"""

import socket
import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum

from featherlb.core.flows.record import RECORD_SIZE

RECORDS_AT_ONCE = 500
"""In a message: less than 64 KiB."""
_BUFFER = 4 << 20
"""Bytes of each direction."""
_LONGEST = 1 + RECORDS_AT_ONCE * RECORD_SIZE


class Message(IntEnum):
    """Kinds of messages. The first three go both ways, the others to the worker."""

    FLOWS = 1
    """Announcements."""
    COPIED = 2
    """A part of a copy of all flows."""
    COPY_ENDS = 3
    COPY_WANTED = 4
    LIVING = 5
    """The numbers of the other nodes that are alive, 32 bits each."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
    return ends


class Link:
    """One end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, kind: Message, content: bytes | memoryview = b"") -> bool:
        """Send a message; whether there was room."""
        try:
            self._end.send(bytes((kind,)) + content)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            pass  # nobody is there any more
        return True

    def receive(self, most: int = 64) -> Iterator[tuple[Message, bytes]]:
        """The messages that wait, `most` at most. EOFError if the other end is closed, ValueError
        if it has sent something else."""
        for _ in range(most):
            try:
                data = self._end.recv(_LONGEST)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            yield Message(data[0]), data[1:]

    def close(self) -> None:
        self._end.close()


def parts(records: bytes) -> Iterator[memoryview]:
    """Records in pieces that fit into messages."""
    view = memoryview(records)
    size = RECORDS_AT_ONCE * RECORD_SIZE
    for at in range(0, len(view) - len(view) % RECORD_SIZE, size):
        yield view[at : at + size]


def pack_nodes(nodes: Iterable[int]) -> bytes:
    """The content of `Message.LIVING`."""
    return b"".join(struct.pack("<I", node) for node in sorted(nodes))


def unpack_nodes(content: bytes) -> list[int]:
    """The nodes in it."""
    return [node for (node,) in struct.iter_unpack("<I", content[: len(content) // 4 * 4])]
