"""Changes of nf_tables' rules, as the kernel announces them: those that may concern the rules which
iptables' nf_tables variant keeps there.

Numbers are those of include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h.
"""

import os
import socket

from featherlb.model.errors import HostError
from featherlb.net.netlink import NFGENMSG, NFNL_SUBSYS_NFTABLES, parse_attributes, parse_messages
from featherlb.net.protocols import ADDRESS_FAMILIES
from featherlb.system.netlink import DATAGRAM, NETLINK_NETFILTER
from featherlb.system.nfnetlink import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK

GROUP = 7  # NFNLGRP_NFTABLES
NEW_TABLE, DELETE_TABLE, DELETE_CHAIN, NEW_RULE, DELETE_RULE, NEW_GENERATION = 0, 2, 5, 6, 8, 15
TABLE_NAME, CHAIN_TABLE, CHAIN_NAME, RULE_TABLE, RULE_CHAIN = 1, 1, 3, 1, 2
GENERATION_PID, GENERATION_PROCESS = 2, 3

TABLES = ("filter", "nat", "mangle", "raw")
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
OWN = "FEATHERLB-"

MONITOR_BUFFER = 1 << 20
"""Bytes of kernel memory for changes that have not been read (net.core.rmem_max may be less)."""
_MAX_READ = 256
"""Datagrams per call, so that a flood of changes doesn't keep the reader from anything else."""


class Monitor:
    """A socket that receives every change. Other programs' chains are none of its business."""

    def __init__(self) -> None:
        """HostError if this host can't have it."""
        try:
            kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MONITOR_BUFFER)
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, GROUP)
        except OSError as error:
            raise HostError(
                f"cannot watch the rules of nf_tables: {os.strerror(error.errno or 0).lower()}"
            ) from None
        self._concerned = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> str | None:
        """Which program may have changed featherlb's rules since the last call: its name and pid,
        empty if the kernel doesn't say; None if none has. Doesn't block; in a flood there is more
        to read afterwards.

        OverflowError if the kernel had to drop changes: everything may be different.
        """
        author: str | None = None
        for _ in range(_MAX_READ):
            try:
                datagram = self._socket.recv(DATAGRAM)
            except BlockingIOError:
                break
            except OSError:
                raise OverflowError from None
            for message in parse_messages(datagram):
                subsystem, what = divmod(message.kind, 256)
                if subsystem != NFNL_SUBSYS_NFTABLES:
                    continue
                if what != NEW_GENERATION:
                    self._concerned = self._concerned or concerns(what, message.body)
                elif self._concerned:
                    # It ends the messages of one commit.
                    self._concerned = False
                    author = author_of(message.body)
        return author

    def close(self) -> None:
        self._socket.close()


def concerns(what: int, body: bytes) -> bool:
    """Whether a change may be one of featherlb's chains or of the jumps to them."""
    if body[0] not in ADDRESS_FAMILIES.values():
        return False
    attributes = parse_attributes(body, NFGENMSG)
    if what in (NEW_TABLE, DELETE_TABLE):
        return _text(attributes.get(TABLE_NAME)) in TABLES
    if what == DELETE_CHAIN:
        table, chain = attributes.get(CHAIN_TABLE), _text(attributes.get(CHAIN_NAME))
    elif what in (NEW_RULE, DELETE_RULE):
        table, chain = attributes.get(RULE_TABLE), _text(attributes.get(RULE_CHAIN))
    else:
        return False
    return _text(table) in TABLES and (chain in HOOKS or chain.startswith(OWN))


def author_of(body: bytes) -> str:
    """The program that has made a commit, from the message that ends it."""
    attributes = parse_attributes(body, NFGENMSG)
    if GENERATION_PROCESS not in attributes or GENERATION_PID not in attributes:
        return ""
    pid = int.from_bytes(attributes[GENERATION_PID], "big")
    return f"{_text(attributes[GENERATION_PROCESS])} (pid {pid})"


def _text(payload: bytes | None) -> str:
    return (payload or b"").rstrip(b"\0").decode(errors="replace")
