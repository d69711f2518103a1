"""The reason for each packet's outcome, and the counters that add up.

Every packet that enters the core is counted under exactly one `Reason`, so that received =
translated + passed + dropped holds at any time.
"""

from enum import IntEnum

from featherlb.model.label import label


class Reason(IntEnum):
    """The outcome of a packet. Users see the name in lower case with dashes."""

    # translated
    FORWARD = 0
    """Client to backend."""
    REPLY = 1
    """Backend to client."""
    ICMP_ERROR = 2
    """ICMP error about a packet of a flow, in either direction."""
    # passed on untouched
    NOT_OURS = 3
    """Belongs to no service and no flow."""
    # dropped
    MALFORMED = 4
    """An impossible length or version."""
    BAD_FLAGS = 5
    """TCP flags that no stack sends (SYN+FIN, none, ...)."""
    FRAGMENT = 6
    """An IP fragment: it cannot be attributed to a flow."""
    UNSUPPORTED = 7
    """A transport protocol that featherlb does not balance."""
    TRUNCATED = 8
    """The queue delivered only part of it, so it cannot be rewritten."""
    NO_BACKEND = 9
    """Opens a flow, but no backend is usable; answered with a RST or ICMP port unreachable."""
    NO_FLOW = 10
    """Belongs to no known connection; answered with a RST."""
    NO_SOURCE_PORT = 11
    """`full` NAT has no source port left towards that backend."""
    TUPLE_IN_USE = 12
    """The backend already has a connection from this client's address and port."""
    BAD_CHECKSUM = 13
    """An ICMP message with a wrong checksum, or a frame with a wrong one in its IPv4 header."""
    ECHO = 14
    """An ICMP echo request to a VIP that is not an address of this host; answered."""
    COPY = 15
    """The kernel's copy of a packet that the raw datapath received as a frame."""
    MARTIAN = 16
    """Opens a flow from an address that can't appear on a wire, or from the VIP itself."""
    TTL_EXCEEDED = 17
    """Its TTL has run out (raw datapath); answered with ICMP time exceeded."""
    TOO_BIG = 18
    """Too long for the next link and must not be fragmented (raw datapath); answered with ICMP."""
    NO_NEXT_HOP = 19
    """The next hop to the client is not known (raw datapath)."""
    POOL_FULL = 20
    """Opens a flow, but all usable backends are at their limit; answered like the one that
    finds no backend."""
    INVALID = 21
    """Out of state: conntrack does not attribute it to the connection that it translates (offload
    datapath)."""
    NO_ENTRY = 22
    """Conntrack refuses the entry (offload datapath): table full, or replies already expected."""
    REDISPATCHED = 23
    """A backend's refusal that the client does not get, as its flow goes to another backend."""
    LATE_ANSWER = 24
    """From a backend that another one has replaced; answered with a RST."""
    NOT_ALLOWED = 25
    """Would open a flow, but the service's `allow` or `deny` refuses the client."""
    MAX_FLOWS = 26
    """Would open a flow, but the client, or the service, has as many as it may have."""
    MAX_NEW = 27
    """Would open a flow, but the client, or the service, has opened too many of late."""
    SYN_COOKIE = 28
    """A SYN that was answered with a cookie: nothing is kept of it."""
    COOKIE_ACK = 29
    """The client's, on a connection opened with a cookie, until the backend has answered."""
    FORGED_ERROR = 30
    """An ICMP error about a segment that is not in flight, or with an MTU that no link has."""
    INJECTED_FAULT = 31
    """Lost, or its flow reset, by a fault that an operator has injected."""
    UDP_FLOOD = 32
    """Would open a flow of datagrams, but many have no answer, and the budget for more is spent."""
    WINDOW_SCALE = 33
    """A backend's answer that scales its windows less than a SYN cookie has announced, which
    conntrack can't convert (offload datapath); both ends get a RST."""

    @property
    def label(self) -> str:
        return label(self)


TRANSLATED = frozenset({Reason.FORWARD, Reason.REPLY, Reason.ICMP_ERROR})
PASSED = frozenset({Reason.NOT_OURS})
DROPPED = frozenset(Reason) - TRANSLATED - PASSED
