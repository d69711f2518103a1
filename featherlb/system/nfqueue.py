"""NFQUEUE's configuration messages, and its state in /proc.

Numbers are those of include/uapi/linux/netfilter/nfnetlink_queue.h. In attributes, values are in
network order.
"""

import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from featherlb.net.netlink import (
    NFGENMSG,
    NFNL_SUBSYS_QUEUE,
    NLM_F_ACK,
    NLM_F_REQUEST,
    attribute,
    nfnl_message,
    parse_attributes,
)

COPY_RANGE = 65531
"""NFQNL_MAX_COPY_RANGE in net/netfilter/nfnetlink_queue.c: longer packets arrive cut."""

PACKET_MESSAGE, VERDICT_MESSAGE, _CONFIG_MESSAGE = (NFNL_SUBSYS_QUEUE << 8 | n for n in range(3))

_CMD, _PARAMS, _QUEUE_MAXLEN, _MASK, _FLAGS = 1, 2, 3, 4, 5
_CMD_BIND = 1
_COPY_PACKET = 2

_PACKET_HDR, _VERDICT_HDR = 1, 2
_NF_DROP = 0  # include/uapi/linux/netfilter.h

FLAG_FAIL_OPEN = 1
FLAG_GSO = 4

_QUEUES = Path("/proc/thread-self/net/netfilter/nfnetlink_queue")


def config_message(queue: int, attributes: bytes, *, acknowledge: bool = False) -> bytes:
    """An NFQNL_MSG_CONFIG."""
    flags = NLM_F_REQUEST | (NLM_F_ACK if acknowledge else 0)
    return nfnl_message(_CONFIG_MESSAGE, flags, socket.AF_UNSPEC, queue, attributes)


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


def drop_message(queue: int, packet: bytes) -> bytes:
    """An NFQNL_MSG_VERDICT that drops a packet, given the body of the message that announced it."""
    number = parse_attributes(packet, NFGENMSG)[_PACKET_HDR][:4]
    verdict = attribute(_VERDICT_HDR, struct.pack("!I", _NF_DROP) + number)
    return nfnl_message(VERDICT_MESSAGE, NLM_F_REQUEST, socket.AF_UNSPEC, queue, verdict)


@dataclass(frozen=True, slots=True)
class Queue:
    """A bound NFQUEUE as the kernel shows it: its owner's netlink port id (usually a pid), packets
    that wait, and packets dropped because the queue or the owner's socket was full."""

    owner: int = 0
    waiting: int = 0
    queue_dropped: int = 0
    socket_dropped: int = 0


def bound_queues() -> dict[int, Queue]:
    """The queues in use in the calling thread's network namespace, by number; empty where the
    kernel has no nfnetlink_queue."""
    try:
        lines = _QUEUES.read_text().splitlines()
    except OSError:
        return {}
    rows = [[int(field) for field in line.split()] for line in lines]
    return {row[0]: Queue(row[1], row[2], row[5], row[6]) for row in rows}
