"""Matches for kinds of ICMP messages, by address family (4 or 6)."""

from featherlb.net.protocols import ECHO_REQUEST, ICMP_ERRORS, REDIRECT
from featherlb.system.ruleset import Icmp, Match

PROTOCOLS = {4: Icmp.V4, 6: Icmp.V6}


def errors(family: int) -> list[Match]:
    """A match for each type of message that quotes a packet."""
    return [Match(protocol=PROTOCOLS[family], icmp_type=kind) for kind in ICMP_ERRORS[family]]


def unreachable(family: int) -> Match:
    return errors(family)[0]


def echo_requests(family: int) -> Match:
    return Match(protocol=PROTOCOLS[family], icmp_type=ECHO_REQUEST[family])


def redirects(family: int) -> Match:
    return Match(protocol=PROTOCOLS[family], icmp_type=REDIRECT[family])
