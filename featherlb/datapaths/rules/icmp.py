"""Kinds of ICMP messages as rules ask for them, by address family (4 or 6)."""

from featherlb.system.ruleset import Icmp, Match

PROTOCOLS = {4: Icmp.V4, 6: Icmp.V6}
_ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
"""The types that quote a packet: destination unreachable, (packet too big,) time exceeded,
parameter problem."""
_ECHO_REQUEST = {4: 8, 6: 128}
_REDIRECT = {4: 5, 6: 137}


def errors(family: int) -> list[Match]:
    """A match for each type of message that quotes a packet."""
    return [Match(protocol=PROTOCOLS[family], icmp_type=kind) for kind in _ERRORS[family]]


def echo_requests(family: int) -> Match:
    return Match(protocol=PROTOCOLS[family], icmp_type=_ECHO_REQUEST[family])


def redirects(family: int) -> Match:
    return Match(protocol=PROTOCOLS[family], icmp_type=_REDIRECT[family])
