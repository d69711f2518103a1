"""Kinds of ICMP messages as rules ask for them, by address family (4 or 6)."""

ERRORS = {4: ("icmp --icmp-type", (3, 11, 12)), 6: ("ipv6-icmp --icmpv6-type", (1, 2, 3, 4))}
"""A match, and the types that quote a packet: destination unreachable, (packet too big,) time
exceeded, parameter problem."""
ECHO_REQUESTS = {4: "icmp --icmp-type 8", 6: "ipv6-icmp --icmpv6-type 128"}
REDIRECTS = {4: "icmp --icmp-type 5", 6: "ipv6-icmp --icmpv6-type 137"}


def errors(family: int) -> list[str]:
    """A match for each of `ERRORS`."""
    protocol, types = ERRORS[family]
    return [f"-p {protocol} {kind}" for kind in types]
