"""What the kernel refuses if it is short of memory: messages to netfilter that are too large."""

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featherlb.lab import Node
from tests.netns.command import api

NETLINK_NETFILTER = 12  # linux/netlink.h
SO_SNDBUFFORCE = 32  # asm-generic/socket.h
PIDFD_GETFD = 438  # asm-generic/unistd.h
LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def small_send_buffers(node: Node) -> Iterator[None]:
    """The kernel refuses messages of some 4500 bytes and more from the node's workers: it allocates
    none that is larger than the send buffer."""
    workers = api(node, "status")["workers"]
    sockets = [one for worker in workers for one in netfilter_sockets(worker["pid"])]
    sizes = [one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for one in sockets]
    try:
        for one in sockets:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        yield
    finally:
        for one, size in zip(sockets, sizes, strict=True):
            # The kernel doubles what it is given.
            one.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, size // 2)
            one.close()


def netfilter_sockets(pid: int) -> list[socket.socket]:
    """Descriptors of our own of the sockets that a process has to netfilter."""
    rows = map(str.split, Path(f"/proc/{pid}/net/netlink").read_text().splitlines())
    links = {f"socket:[{row[9]}]" for row in rows if row[1] == str(NETLINK_NETFILTER)}
    process = os.pidfd_open(pid)
    try:
        found = [
            socket.socket(fileno=LIBC.syscall(PIDFD_GETFD, process, int(one.name), 0))
            for one in Path(f"/proc/{pid}/fd").iterdir()
            if os.readlink(one) in links
        ]
    finally:
        os.close(process)
    assert found
    return found
