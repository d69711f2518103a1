"""Netlink messages, as far as those of nfnetlink, conntrack and rtnetlink are alike.

Numbers are those of include/uapi/linux/netlink.h and netfilter/nfnetlink.h. Headers are in host
order; nfnetlink's attributes have their values in network order.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port id."""
NLMSG_HEADER = HEADER.size
NFGENMSG = 4
"""Bytes of struct nfgenmsg."""
NFNL_HEADER = NLMSG_HEADER + NFGENMSG
"""Bytes of struct nlmsghdr and, of netfilter's messages, struct nfgenmsg: address family, version,
resource id."""
_ATTRIBUTE = struct.Struct("=HH")
"""struct nlattr: length with this header, type."""

NLMSG_ERROR, NLMSG_DONE = 2, 3

NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 0x01, 0x02, 0x04, 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_NONREC = 0x100
"""Delete nothing that is in use."""

NLA_F_NESTED, NLA_F_NET_BYTEORDER, NLA_TYPE_MASK = 0x8000, 0x4000, 0x3FFF

NFNL_SUBSYS_CTNETLINK, NFNL_SUBSYS_QUEUE, NFNL_SUBSYS_IPSET, NFNL_SUBSYS_NFTABLES = 1, 3, 6, 10
"""They stand in the upper byte of a message's type."""


class Message(NamedTuple):
    """A netlink message; `body` is what follows its header."""

    kind: int
    flags: int
    sequence: int
    body: bytes


def build_message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A netlink message, with its header."""
    return HEADER.pack(NLMSG_HEADER + len(body), kind, flags, sequence, 0) + body


def nfnl_body(family: int, resource: int, content: bytes) -> bytes:
    """What follows the header of a message to netfilter: struct nfgenmsg, and attributes."""
    return struct.pack("!BBH", family, 0, resource) + content


def nfnl_message(kind: int, flags: int, family: int, resource: int, content: bytes) -> bytes:
    """A message to netfilter with these attributes; `kind` includes the subsystem."""
    return build_message(kind, flags, 0, nfnl_body(family, resource, content))


def attribute(kind: int, payload: bytes) -> bytes:
    """A netlink attribute, padded to four bytes (RFC 3549 section 2.2)."""
    length = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(length, kind) + payload + bytes(-length % 4)


def text_attribute(kind: int, text: str) -> bytes:
    """A netlink attribute that holds a string."""
    return attribute(kind, text.encode() + b"\0")


def read_text(payload: bytes) -> str:
    """The string in an attribute's payload."""
    return payload.rstrip(b"\0").decode(errors="replace")


def parse_messages(datagram: bytes) -> Iterator[Message]:
    """The messages of a datagram."""
    at = 0
    while at + NLMSG_HEADER <= len(datagram):
        length, kind, flags, sequence, _ = HEADER.unpack_from(datagram, at)
        yield Message(kind, flags, sequence, datagram[at + NLMSG_HEADER : at + length])
        at += max(NLMSG_HEADER, (length + 3) & ~3)


def each_attribute(body: bytes, at: int = 0) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each attribute from this offset on."""
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        yield kind & NLA_TYPE_MASK, body[at + _ATTRIBUTE.size : at + length]
        at += max(_ATTRIBUTE.size, (length + 3) & ~3)


def parse_attributes(body: bytes, at: int = 0) -> dict[int, bytes]:
    """The payloads of the attributes from this offset on, by type."""
    return dict(each_attribute(body, at))


def error_code(body: bytes) -> int:
    """The errno in the body of an NLMSG_ERROR, which answers a request with NLM_F_ACK, or of an
    NLMSG_DONE; 0 if the request succeeded."""
    code: int = struct.unpack_from("=i", body)[0]
    return -code
