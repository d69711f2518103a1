"""Lists and deletes conntrack entries, whichever program created them.

For processes without a flow table.
"""

import struct
from collections.abc import Callable, Iterator
from socket import AF_INET, AF_INET6

from featherlb.system.conntrack_messages import Entry, Requests
from featherlb.system.nfnetlink import open_socket

BUFFER = 1 << 20
"""Receive buffer in bytes of kernel memory."""
DUMP_SIZE = 1 << 16
"""Bytes: exceeds any part of a dump (net/netlink/af_netlink.c: netlink_dump)."""
DONE, ERROR, DELETE = 3, 2, 0x102
REQUEST, ACKNOWLEDGE = 1, 4
HEADER = 20
"""Bytes of nlmsghdr and nfgenmsg."""
ORIGINAL, ID, ZONE = 1, 12, 18  # CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE
KIND = 0x3FFF


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
                    done = not following or entry.kind in (DONE, ERROR)
                    if not done:
                        yield entry, memoryview(buffer)[at:following]
                    at = following


def remove(chosen: Callable[[Entry], bool]) -> int:
    """Delete the `chosen` entries; returns their number. OSError as `dump`."""
    requests = [_deletion(message) for entry, message in dump() if chosen(entry)]
    removed = 0
    with open_socket(BUFFER, BUFFER) as connection:
        for request in requests:
            connection.send(request)
            # The answer is an error code: 0 if the entry was deleted, not already gone.
            removed += not int.from_bytes(connection.recv(1024)[16:20], "little")
    return removed


def _deletion(message: memoryview) -> bytes:
    """A request to delete exactly the entry of this message."""
    body = struct.pack("!BBH", message[16], 0, 0)  # of the same address family
    length = int.from_bytes(message[:4], "little")
    at = HEADER
    while at + 4 <= length:
        size, kind = struct.unpack_from("=HH", message, at)
        end = at + ((size + 3) & ~3)
        if kind & KIND in (ORIGINAL, ID, ZONE):
            body += message[at:end]
        at = end
    flags = REQUEST | ACKNOWLEDGE
    return struct.pack("=IHHII", 16 + len(body), DELETE, flags, 0, 0) + body
