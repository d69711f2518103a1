"""Lists and deletes conntrack entries, whichever program created them.

For processes without a flow table.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from socket import AF_INET, AF_INET6

from featherlb.net.netlink import NLMSG_DONE, NLMSG_ERROR, NLMSG_HEADER, error_code
from featherlb.system import netlink
from featherlb.system.conntrack_messages import Entry, Requests, deletion
from featherlb.system.nfnetlink import open_socket

BUFFER = 1 << 20
"""Receive buffer in bytes of kernel memory."""
DUMP_SIZE = 1 << 16
"""Bytes: exceeds any part of a dump (net/netlink/af_netlink.c: netlink_dump)."""


def dump() -> Iterator[tuple[Entry, memoryview]]:
    """Each entry of both address families with its message; both are valid until the next one.
    OSError without CAP_NET_ADMIN or conntrack netlink in the kernel."""
    for family in (AF_INET, AF_INET6):
        pauses = iter(netlink.PAUSES)
        while True:
            begun = False
            try:
                for one in _dump_family(family):
                    begun = True
                    yield one
                break
            except OSError as error:
                # What was seen can't be taken back.
                pause = next(pauses, None)
                if begun or pause is None or error.errno not in netlink.TRANSIENT:
                    raise
                time.sleep(pause)


def _dump_family(family: int) -> Iterator[tuple[Entry, memoryview]]:
    entry = Entry()
    requests = Requests()
    requests.dump(family)
    buffer = bytearray(DUMP_SIZE)
    entry.attach(buffer)
    with open_socket(BUFFER, BUFFER) as connection:
        connection.send(requests.take())
        while True:
            end = connection.recv_into(buffer)
            at = 0
            while at < end:
                following = entry.read(at, end)
                if not following:
                    return
                if entry.kind in (NLMSG_DONE, NLMSG_ERROR):
                    if code := error_code(bytes(buffer[at:end])[NLMSG_HEADER:]):
                        raise OSError(code, os.strerror(code))
                    return
                yield entry, memoryview(buffer)[at:following]
                at = following


def remove(chosen: Callable[[Entry], bool]) -> int:
    """Delete the `chosen` entries; returns their number. OSError as `dump`."""
    requests = [deletion(message) for entry, message in dump() if chosen(entry)]
    removed = 0
    with open_socket(BUFFER, BUFFER) as connection:
        for request in requests:
            connection.send(request)
            code = error_code(connection.recv(1024)[NLMSG_HEADER:])
            # An entry may be gone already.
            if code not in (0, errno.ENOENT):
                raise OSError(code, os.strerror(code))
            removed += not code
    return removed
