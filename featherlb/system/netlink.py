"""Requests to the kernel over netlink(7), one after the other, and what it announces by itself.

The kernel answers each request before the request returns. Where it lacks memory for the moment, or
its tables change while it lists them, a question is asked again. Numbers are those of
include/uapi/linux/netlink.h, in host byte order.
"""

import errno
import os
import socket
import time
from collections.abc import Iterator
from typing import Self

from featherlb.net.netlink import (
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_MULTI,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    Message,
    build_message,
    error_code,
    parse_messages,
)

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
SOL_NETLINK = 270  # include/linux/socket.h
NETLINK_ADD_MEMBERSHIP, NETLINK_DROP_MEMBERSHIP, NETLINK_NO_ENOBUFS, NETLINK_CAP_ACK = 1, 2, 5, 10
"""Options of netlink sockets."""
DATAGRAM = 1 << 16
"""Bytes: more than the kernel puts into one datagram (net/netlink/af_netlink.c: netlink_dump)."""
TRANSIENT = (errno.ENOBUFS, errno.ENOMEM, errno.EINTR, errno.EAGAIN)
"""Errors of a kernel that lacks something for the moment."""
PAUSES = (0.01, 0.1, 0.5)
"""Seconds until a question that failed for the moment is repeated; then it has failed for good."""
MONITOR_BUFFER = 1 << 20
"""Bytes of kernel memory for changes that have not been read (net.core.rmem_max may be less)."""
MAX_READ = 256
"""Datagrams per call, so that a flood of changes doesn't keep the reader from anything else."""


class Connection:
    """A socket for requests. OSError if the host can't have it."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """The bodies of all messages of a table. If the table never rests while it is listed, some
        entries may be missing: watch the changes."""
        return self._persist(kind, NLM_F_DUMP, body)

    def get(self, kind: int, body: bytes) -> bytes:
        """The body of the one message asked for."""
        return self._persist(kind, 0, body)[0]

    def change(self, kind: int, mode: int, body: bytes) -> None:
        """Have something changed. It is not tried again: what lacks room today may do so for long,
        and a change may be none of those that can be repeated."""
        self._exchange(kind, NLM_F_ACK | mode, body)

    def _persist(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        for pause in PAUSES:
            try:
                bodies, interrupted = self._exchange(kind, flags, body)
                if not interrupted:
                    return bodies
            except OSError as error:
                if error.errno not in TRANSIENT:
                    raise
            time.sleep(pause)
        return self._exchange(kind, flags, body)[0]

    def _exchange(self, kind: int, flags: int, body: bytes) -> tuple[list[bytes], bool]:
        """The bodies of the answers, and whether the table changed meanwhile; OSError with the
        kernel's error."""
        self._sequence += 1
        self._socket.send(build_message(kind, flags | NLM_F_REQUEST, self._sequence, body))
        return self._receive()

    def _receive(self) -> tuple[list[bytes], bool]:
        """The answer to the last request, as `_exchange`."""
        bodies: list[bytes] = []
        interrupted = False
        while True:
            for message in parse_messages(self._socket.recv(DATAGRAM)):
                if message.sequence != self._sequence:
                    # The rest of a dump that ended in an error.
                    continue
                interrupted = interrupted or bool(message.flags & NLM_F_DUMP_INTR)
                if message.kind in (NLMSG_ERROR, NLMSG_DONE):
                    if code := error_code(message.body):
                        raise OSError(code, os.strerror(code))
                    return bodies, interrupted
                bodies.append(message.body)
                if not message.flags & NLM_F_MULTI:
                    return bodies, interrupted


class Monitor:
    """A socket that receives changes as the kernel announces them to groups of listeners: bits of a
    number. OSError if the host can't have it."""

    def __init__(self, protocol: int, groups: int) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, protocol)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MONITOR_BUFFER)
        self._socket.bind((0, groups))

    def fileno(self) -> int:
        return self._socket.fileno()

    def messages(self) -> Iterator[Message]:
        """What has come since the last call. Doesn't block; in a flood there is more to read
        afterwards.

        OverflowError if the kernel had to drop changes: everything may be different.
        """
        for _ in range(MAX_READ):
            try:
                datagram = self._socket.recv(DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                raise OverflowError from None
            yield from parse_messages(datagram)

    def close(self) -> None:
        self._socket.close()
