"""Numbers of Ethernet, IP, ICMP and TCP that several modules need. Each stands here alone."""

ETHER_TYPES = {4: 0x0800, 6: 0x86DD}
"""By IP version (include/uapi/linux/if_ether.h: ETH_P_IP, ETH_P_IPV6)."""
ETHER_TYPE_ARP = 0x0806
ETHERNET_HEADER = 14
"""Bytes: two MAC addresses and the type."""

ADDRESS_FAMILIES = {4: 2, 6: 10}
"""By IP version (include/linux/socket.h: AF_INET, AF_INET6)."""
MAPPED = 0xFFFF << 32
"""The low word of ::ffff:0:0/96, in which IPv4 addresses are mapped (RFC 4291 section 2.5.5.2)."""

# Protocol numbers (IANA).
ICMP = 1
TCP = 6
UDP = 17
ICMPV6 = 58

# IPv6 extension headers that may stand before the transport header (RFC 8200 section 4).
HOP_BY_HOP = 0
ROUTING = 43
FRAGMENT_HEADER = 44
DESTINATION_OPTIONS = 60

# TCP flags (RFC 9293 section 3.1); the ECN bits and PSH, URG say nothing about the state.
FIN = 0x01
SYN = 0x02
RST = 0x04
ACK = 0x10

ICMP_ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
"""The types of messages that quote a packet, by IP version: destination unreachable, (packet too
big,) time exceeded, parameter problem (RFC 792, RFC 4443). Redirects are for the network that they
were seen in, and source quench is obsolete (RFC 6633)."""
ECHO_REQUEST = {4: 8, 6: 128}
REDIRECT = {4: 5, 6: 137}
