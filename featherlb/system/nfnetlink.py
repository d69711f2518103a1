"""Netlink sockets to netfilter, and NFQUEUE's configuration messages and counters: what the drivers
that speak netlink share.

Byte order and numbers are those of include/uapi/linux/netfilter/nfnetlink_queue.h: netlink headers
are in host order, attribute payloads and the queue number in network order.
"""

import socket
import struct
from pathlib import Path

COPY_RANGE = 65531
"""NFQNL_MAX_COPY_RANGE in net/netfilter/nfnetlink_queue.c: longer packets arrive cut."""

_SUBSYS_QUEUE = 3
_MSG_CONFIG = 2
_NLM_F_REQUEST = 1
_NLM_F_ACK = 4

_CMD, _PARAMS, _QUEUE_MAXLEN, _MASK, _FLAGS = 1, 2, 3, 4, 5
_CMD_BIND = 1
_COPY_PACKET = 2

FLAG_FAIL_OPEN = 1
FLAG_GSO = 4

PROC = Path("/proc/net/netfilter/nfnetlink_queue")

SOL_NETLINK = 270
_NETLINK_NETFILTER = 12
_NETLINK_NO_ENOBUFS = 5
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33


def open_socket(receive_buffer: int, send_buffer: int) -> socket.socket:
    """A bound socket with so many bytes of kernel memory each way, past net.core.rmem_max and
    wmem_max, that doesn't fail where messages were lost. OSError if the kernel refuses it."""
    new = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    new.bind((0, 0))
    for level, option, value in (
        (socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer),
        (socket.SOL_SOCKET, _SO_SNDBUFFORCE, send_buffer),
        (SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1),
    ):
        new.setsockopt(level, option, value)
    return new


def attribute(kind: int, payload: bytes) -> bytes:
    """A netlink attribute, padded to four bytes (RFC 3549 section 2.2)."""
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + bytes(-length % 4)


def config_message(queue: int, attributes: bytes, *, acknowledge: bool = False) -> bytes:
    """An NFQNL_MSG_CONFIG."""
    flags = _NLM_F_REQUEST | (_NLM_F_ACK if acknowledge else 0)
    body = struct.pack("!BBH", 0, 0, queue) + attributes
    kind = _SUBSYS_QUEUE << 8 | _MSG_CONFIG
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 0, 0) + body


def bind_attributes() -> bytes:
    """Bind the queue to the sending socket."""
    return attribute(_CMD, struct.pack("!BBH", _CMD_BIND, 0, 0))


def copy_attributes(max_length: int, flags: int, mask: int) -> bytes:
    """Deliver whole packets, hold up to `max_length` of them, set `flags` within `mask`."""
    return (
        attribute(_PARAMS, struct.pack("!IB", COPY_RANGE, _COPY_PACKET))
        + attribute(_QUEUE_MAXLEN, struct.pack("!I", max_length))
        + flag_attributes(flags, mask)
    )


def flag_attributes(flags: int, mask: int) -> bytes:
    """Set `flags` within `mask`, of a queue that is bound."""
    return attribute(_FLAGS, struct.pack("!I", flags)) + attribute(_MASK, struct.pack("!I", mask))


def kernel_counters(queue: int) -> tuple[int, int, int]:
    """Packets waiting, dropped as the queue was full, dropped as the socket was full."""
    try:
        lines = PROC.read_text().splitlines()
    except OSError:
        return 0, 0, 0
    for line in lines:
        fields = line.split()
        if int(fields[0]) == queue:
            return int(fields[2]), int(fields[5]), int(fields[6])
    return 0, 0, 0
