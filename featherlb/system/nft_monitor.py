"""Changes of nf_tables' rules, as the kernel announces them: those that may concern the rules which
iptables' nf_tables variant keeps there.

Numbers are those of include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h.
"""

import os
from collections.abc import Mapping

from featherlb.model.errors import HostError
from featherlb.net.netlink import NFGENMSG, NFNL_SUBSYS_NFTABLES, parse_attributes, read_text
from featherlb.net.protocols import ADDRESS_FAMILIES
from featherlb.system import netlink
from featherlb.system.nft_chains import (
    BUILT_IN,
    CHAIN_NAME,
    CHAIN_TABLE,
    DELETE_CHAIN,
    DELETE_TABLE,
    TABLE_NAME,
)

GROUP = 7  # NFNLGRP_NFTABLES
NEW_TABLE, NEW_RULE, DELETE_RULE, NEW_GENERATION = 0, 6, 8, 15
RULE_TABLE, RULE_CHAIN = 1, 2
GENERATION_PID, GENERATION_PROCESS = 2, 3

OWN = "FEATHERLB-"


class Monitor(netlink.Monitor):
    """A socket that receives every change. Other programs' chains are none of its business."""

    def __init__(self) -> None:
        """HostError if this host can't have it."""
        try:
            super().__init__(netlink.NETLINK_NETFILTER, 1 << GROUP - 1)
        except OSError as error:
            raise HostError(
                f"cannot watch the rules of nf_tables: {os.strerror(error.errno or 0).lower()}"
            ) from None
        self._concerned = False

    def read(self) -> str | None:
        """Which program may have changed featherlb's rules since the last call, as of `messages`:
        its name and pid, empty if the kernel doesn't say; None if none has."""
        author: str | None = None
        for message in self.messages():
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


def concerns(what: int, body: bytes) -> bool:
    """Whether a change may be one of featherlb's chains or of the jumps to them."""
    if body[0] not in ADDRESS_FAMILIES.values():
        return False
    attributes = parse_attributes(body, NFGENMSG)
    if what in (NEW_TABLE, DELETE_TABLE):
        return _text(attributes, TABLE_NAME) in BUILT_IN
    if what == DELETE_CHAIN:
        table, chain = _text(attributes, CHAIN_TABLE), _text(attributes, CHAIN_NAME)
    elif what in (NEW_RULE, DELETE_RULE):
        table, chain = _text(attributes, RULE_TABLE), _text(attributes, RULE_CHAIN)
    else:
        return False
    built_in = BUILT_IN.get(table)
    return built_in is not None and (chain in built_in or chain.startswith(OWN))


def author_of(body: bytes) -> str:
    """The program that has made a commit, from the message that ends it."""
    attributes = parse_attributes(body, NFGENMSG)
    if GENERATION_PROCESS not in attributes or GENERATION_PID not in attributes:
        return ""
    pid = int.from_bytes(attributes[GENERATION_PID], "big")
    return f"{_text(attributes, GENERATION_PROCESS)} (pid {pid})"


def _text(attributes: Mapping[int, bytes], kind: int) -> str:
    """Empty if there is none."""
    return read_text(attributes.get(kind, b""))
