"""Announcing an address to the neighbours on a link, and asking them for its owner.

Writes and reads Ethernet frames on AF_PACKET sockets: ARP (RFC 826, RFC 5227) for IPv4, neighbour
discovery (RFC 4861) for IPv6. Interfaces without Ethernet addresses have no such neighbours, and
those that are down can't be asked: nothing happens there.
"""

import os
import select
import socket
import struct
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

from featherlb.model import LOOPBACK, Address
from featherlb.model.errors import HostError
from featherlb.net.build import icmp
from featherlb.net.protocols import ETHER_TYPE_ARP, ETHER_TYPES, ICMPV6

REPEATS = 3
"""How often each announcement or question is sent: RFC 5227's PROBE_NUM."""
ANSWER_TIME = 0.1
"""Seconds to wait for answers after each question; a link answers within milliseconds."""

_ETH_P_ALL = 0x0003
_ARP_REQUEST = 1
_ARP_HEADER = struct.Struct("!HHBBH")
_ETHERNET_IPV4 = (1, ETHER_TYPES[4], 6, 4)
"""What stands in front of an ARP packet's operation: both kinds of addresses, and their lengths."""
_SOLICITATION, _ADVERTISEMENT = 135, 136
_OVERRIDE = 0x20000000
_BROADCAST = b"\xff" * 6
_ALL_NODES = IPv6Address("ff02::1")


def announce(interface: str, addresses: Collection[Address]) -> None:
    """Tell the neighbours that the addresses are at this host's interface now.

    Gratuitous ARP (RFC 5227 section 2.3), unsolicited advertisements (RFC 4861 section 7.2.6).
    HostError if this host can't have a socket for it.
    """
    with _open(interface) as link:
        if link is None:
            return
        mac: bytes = link.getsockname()[4]
        for address in list(addresses) * REPEATS:
            with suppress(OSError):
                if isinstance(address, IPv4Address):
                    link.send(arp_request(mac, address, address))
                else:
                    link.send(advertisement(mac, address))


def owners(interface: str, addresses: Collection[Address]) -> dict[Address, str]:
    """Which of the addresses somebody else on the link has, each with the owner's MAC address.

    Asks without claiming them: ARP probes (RFC 5227 section 2.1.1) and duplicate address
    detection (RFC 4862 section 5.4), both shortened to `REPEATS * ANSWER_TIME` seconds.
    """
    found: dict[Address, str] = {}
    wanted = set(addresses)
    with _open(interface) as link:
        if link is None:
            return found
        mac: bytes = link.getsockname()[4]
        for _ in range(REPEATS):
            for address in addresses:
                with suppress(OSError):
                    if isinstance(address, IPv4Address):
                        link.send(arp_request(mac, IPv4Address(0), address))
                    else:
                        link.send(solicitation(mac, address))
            deadline = time.monotonic() + ANSWER_TIME
            while (left := deadline - time.monotonic()) > 0:
                if not select.select([link], [], [], left)[0]:
                    break
                with suppress(OSError):
                    claim = claimed_address(link.recv(2048))
                    if claim and claim[0] in wanted and claim[1] != mac:
                        found[claim[0]] = claim[1].hex(":")
    return found


def arp_request(mac: bytes, sender: IPv4Address, target: IPv4Address) -> bytes:
    """A frame that asks everybody for `target`; from 0.0.0.0 it is a probe."""
    return (
        _BROADCAST
        + mac
        + struct.pack("!H", ETHER_TYPE_ARP)
        + _ARP_HEADER.pack(*_ETHERNET_IPV4, _ARP_REQUEST)
        + mac
        + sender.packed
        + bytes(6)
        + target.packed
    )


def solicitation(mac: bytes, target: IPv6Address) -> bytes:
    """A frame that asks for `target` from the unspecified address (RFC 4862 section 5.4.2)."""
    # The solicited-node multicast address, RFC 4291 section 2.7.1.
    group = IPv6Address(IPv6Address("ff02::1:ff00:0").packed[:13] + target.packed[13:])
    message = struct.pack("!BBHI", _SOLICITATION, 0, 0, 0) + target.packed
    return _icmpv6_frame(mac, IPv6Address(0), group, message)


def advertisement(mac: bytes, target: IPv6Address) -> bytes:
    """A frame that tells all nodes to find `target` at `mac`, overriding what they knew."""
    link_address = struct.pack("!BB", 2, 1) + mac
    message = struct.pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE) + target.packed + link_address
    return _icmpv6_frame(mac, target, _ALL_NODES, message)


def claimed_address(frame: bytes) -> tuple[Address, bytes] | None:
    """The address that the sender of an ARP packet or an advertisement has, and its MAC."""
    kind = frame[12:14]
    if kind == struct.pack("!H", ETHER_TYPE_ARP) and len(frame) >= 42:
        if _ARP_HEADER.unpack_from(frame, 14)[:4] == _ETHERNET_IPV4:
            return IPv4Address(frame[28:32]), frame[22:28]
    elif (
        kind == struct.pack("!H", ETHER_TYPES[6])
        and len(frame) >= 78
        and frame[20] == ICMPV6
        and frame[54] == _ADVERTISEMENT
    ):
        return ip_address(frame[62:78]), frame[6:12]
    return None


def _icmpv6_frame(mac: bytes, source: IPv6Address, group: IPv6Address, message: bytes) -> bytes:
    # Hop limit 255 proves that no router was passed (RFC 4861 section 7.1).
    packet = icmp(6, source.packed, group.packed, bytearray(message), 255)
    return (
        b"\x33\x33"  # an IPv6 multicast on Ethernet, RFC 2464 section 7
        + group.packed[12:]
        + mac
        + struct.pack("!H", ETHER_TYPES[6])
        + packet
    )


@contextmanager
def _open(interface: str) -> Iterator[socket.socket | None]:
    """A socket for whole frames on the interface, None if that isn't an Ethernet in use. HostError
    if this host can't have one."""
    try:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise HostError(f"cannot ask the neighbours on {interface}: {reason}") from None
    with opened as link:
        try:
            link.bind((interface, _ETH_P_ALL))
        except OSError:
            yield None
            return
        # An interface without Ethernet addresses, the loopback interface among them.
        yield link if len(link.getsockname()[4]) == 6 and interface != LOOPBACK else None
