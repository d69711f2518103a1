"""The built-in chains of iptables' nf_tables variant. It makes one with the first rule for it, and
its table, and leaves both when they are empty: a hook that every later packet passes for nothing.

Numbers are those of include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h; in attributes, values
are in network order.
"""

import errno
import os
from collections.abc import Collection
from typing import NamedTuple

from featherlb.model.errors import HostError
from featherlb.net.netlink import (
    NFGENMSG,
    NFNL_SUBSYS_NFTABLES,
    NLM_F_ACK,
    NLM_F_NONREC,
    NLM_F_REQUEST,
    build_message,
    nfnl_body,
    parse_attributes,
    read_text,
    text_attribute,
)
from featherlb.net.protocols import ADDRESS_FAMILIES
from featherlb.system.netlink import NETLINK_NETFILTER, TRANSIENT, Connection

BUILT_IN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
}
"""By table, the chains that iptables may make in it."""

BATCH_BEGIN, BATCH_END = 16, 17  # NFNL_MSG_BATCH_*
GET_TABLE, DELETE_TABLE, GET_CHAIN, DELETE_CHAIN = 1, 2, 4, 5
TABLE_NAME, TABLE_USE = 1, 3
CHAIN_TABLE, CHAIN_NAME, CHAIN_POLICY, CHAIN_USE = 1, 3, 5, 6
ACCEPT = 1  # NF_ACCEPT
_GONE = (errno.ENOENT, errno.EBUSY)
"""Somebody else was faster, or uses it."""


class Standing(NamedTuple):
    """What is there of a table."""

    there: bool
    chains: frozenset[str]


def standing(family: int, table: str) -> Standing:
    """What is there of this table of iptables; nothing where the kernel has no nf_tables. HostError
    if it doesn't say."""
    try:
        with _Kernel(family) as kernel:
            chains = frozenset(chain for chain, _ in kernel.chains(table))
            return Standing(table in kernel.tables(), chains)
    except OSError as error:
        if error.errno in TRANSIENT:
            raise _failure("list", table, error) from None
        return Standing(False, frozenset())


def remove(family: int, table: str, chains: Collection[str], *, table_too: bool) -> None:
    """Remove these chains as far as they are empty and accept what passes them, and the table if
    nothing is left in it. HostError if the kernel refuses that."""
    try:
        with _Kernel(family) as kernel:
            for chain, idle in kernel.chains(table):
                if idle and chain in chains:
                    kernel.delete(
                        DELETE_CHAIN,
                        text_attribute(CHAIN_TABLE, table),
                        text_attribute(CHAIN_NAME, chain),
                    )
            if table_too and kernel.tables().get(table) == 0:
                kernel.delete(DELETE_TABLE, text_attribute(TABLE_NAME, table))
    except OSError as error:
        raise _failure("remove", table, error) from None


class _Kernel(Connection):
    """Requests about the tables of an address family; OSError with the kernel's error."""

    def __init__(self, family: int) -> None:
        super().__init__(NETLINK_NETFILTER)
        self._family = ADDRESS_FAMILIES[family]

    def tables(self) -> dict[str, int]:
        """How many things each table holds."""
        found = {}
        for body in self.dump(_kind(GET_TABLE), nfnl_body(self._family, 0, b"")):
            attributes = parse_attributes(body, NFGENMSG)
            found[read_text(attributes[TABLE_NAME])] = int.from_bytes(attributes[TABLE_USE], "big")
        return found

    def chains(self, table: str) -> list[tuple[str, bool]]:
        """The chains of a table, each with whether nothing is in it and it lets everything pass."""
        found = []
        for body in self.dump(_kind(GET_CHAIN), nfnl_body(self._family, 0, b"")):
            attributes = parse_attributes(body, NFGENMSG)
            if read_text(attributes[CHAIN_TABLE]) == table:
                used, policy = (
                    int.from_bytes(attributes.get(key, b""), "big")
                    for key in (CHAIN_USE, CHAIN_POLICY)
                )
                found.append((read_text(attributes[CHAIN_NAME]), not used and policy == ACCEPT))
        return found

    def delete(self, what: int, *names: bytes) -> None:
        """Delete something that nobody uses; no error if it has gone, or somebody uses it now."""
        self._sequence += 1
        border = nfnl_body(0, NFNL_SUBSYS_NFTABLES, b"")
        request = NLM_F_REQUEST | NLM_F_ACK | NLM_F_NONREC
        self._socket.send(
            build_message(BATCH_BEGIN, NLM_F_REQUEST, self._sequence, border)
            + build_message(
                _kind(what), request, self._sequence, nfnl_body(self._family, 0, b"".join(names))
            )
            + build_message(BATCH_END, NLM_F_REQUEST, self._sequence, border)
        )
        try:
            self._receive()
        except OSError as error:
            if error.errno not in _GONE:
                raise


def _failure(task: str, table: str, error: OSError) -> HostError:
    reason = os.strerror(error.errno or 0).lower()
    return HostError(f"cannot {task} empty chains of the nftables table '{table}': {reason}")


def _kind(what: int) -> int:
    return NFNL_SUBSYS_NFTABLES << 8 | what
