"""Lists and deletes conntrack entries, whichever program created them.

For processes without a flow table.
"""

from collections.abc import Callable, Iterator
from socket import AF_INET, AF_INET6

from featherlb.net.netlink import NLMSG_DONE, NLMSG_ERROR, NLMSG_HEADER, error_code
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
        entry = Entry()
        requests = Requests()
        requests.dump(family)
        buffer = bytearray(DUMP_SIZE)
        entry.attach(buffer)
        with open_socket(BUFFER, BUFFER) as connection:
            connection.send(requests.take())
            done = False
            while not done:
                end = connection.recv_into(buffer)
                at = 0
                while at < end and not done:
                    following = entry.read(at, end)
                    done = not following or entry.kind in (NLMSG_DONE, NLMSG_ERROR)
                    if not done:
                        yield entry, memoryview(buffer)[at:following]
                    at = following


def remove(chosen: Callable[[Entry], bool]) -> int:
    """Delete the `chosen` entries; returns their number. OSError as `dump`."""
    requests = [deletion(message) for entry, message in dump() if chosen(entry)]
    removed = 0
    with open_socket(BUFFER, BUFFER) as connection:
        for request in requests:
            connection.send(request)
            # An entry that is already gone gives an error.
            removed += not error_code(connection.recv(1024)[NLMSG_HEADER:])
    return removed
