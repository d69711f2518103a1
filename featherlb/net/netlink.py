"""Netlink messages, as far as those of nfnetlink, conntrack and rtnetlink are alike.

Numbers are those of include/uapi/linux/netlink.h and netfilter/nfnetlink.h. Headers are in host
order; nfnetlink's attributes have their values in network order.
"""

import struct

NLMSG_HEADER = 16
"""Bytes of struct nlmsghdr: length, type, flags, sequence number, port id."""
NFNL_HEADER = 20
"""Bytes of struct nlmsghdr and, of netfilter's messages, struct nfgenmsg: address family, version,
resource id."""

NLMSG_ERROR, NLMSG_DONE = 2, 3

NLM_F_REQUEST, NLM_F_ACK = 1, 4
NLM_F_DUMP = 0x300
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400

NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF

NFNL_SUBSYS_CTNETLINK, NFNL_SUBSYS_QUEUE = 1, 3
"""They stand in the upper byte of a message's type."""


def attribute(kind: int, payload: bytes) -> bytes:
    """A netlink attribute, padded to four bytes (RFC 3549 section 2.2)."""
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + bytes(-length % 4)


def nfnl_message(kind: int, flags: int, family: int, resource: int, attributes: bytes) -> bytes:
    """A message to netfilter; `kind` includes the subsystem."""
    body = struct.pack("!BBH", family, 0, resource) + attributes
    return struct.pack("=IHHII", NLMSG_HEADER + len(body), kind, flags, 0, 0) + body


def error_code(message: bytes) -> int:
    """The errno in an NLMSG_ERROR, which answers a request with NLM_F_ACK; 0 if it succeeded."""
    code: int = struct.unpack_from("=i", message, NLMSG_HEADER)[0]
    return -code
