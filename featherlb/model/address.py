"""Addresses, endpoints and VIPs. Frozen values of the standard library's address types."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address


Network = IPv4Network | IPv6Network


class Protocol(IntEnum):
    """Transport protocols that a service can have, by IANA protocol number."""

    TCP = 6
    UDP = 17

    def __str__(self) -> str:
        return self.name.lower()


LAST_PORT = 65535


def _address(host: str) -> Address:
    try:
        return ip_address(host)
    except ValueError:
        raise ValueError(f"'{host}' is not an IP address") from None


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An address and a port (0 to 65535).

    A backend's may stand for several ports: those up to `last_port` if that is not 0; if it has no
    port of its own (0 to 65535), for the one that the client connects to.
    """

    address: Address
    port: int
    last_port: int = 0

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Read `10.0.0.1:80` or `[2001:db8::1]:80`; ValueError says what is wrong."""
        host, port = split_host_port(text)
        return cls(_address(host), port)

    @classmethod
    def of_backend(cls, text: str) -> "Endpoint":
        """Read a backend's, which may stand for several ports: also `10.0.0.1:8000-8009` and
        `10.0.0.1`. ValueError says what is wrong."""
        host, port, last_port = split_host_ports(text)
        return cls(_address(host), port, last_port)

    @property
    def keeps_port(self) -> bool:
        """Whether it stands for the port that the client connects to."""
        return self.last_port > 0 and self.port == 0

    def covers(self, other: "Endpoint") -> bool:
        """Whether the other one, with one port, is one of those that this one stands for."""
        last = self.last_port or self.port
        return self.address == other.address and self.port <= other.port <= last

    def __str__(self) -> str:
        return join_host_ports(str(self.address), self.port, self.last_port)


def split_host_ports(text: str) -> tuple[str, int, int]:
    """Split `host:port`, `host:low-high` or `host` (an IPv6 address in brackets) into host, `port`
    and `last_port` as `Endpoint` has them; ValueError says what is wrong."""
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1], 0, LAST_PORT
    host, colon, ports = text.rpartition(":")
    if not colon:
        return text, 0, LAST_PORT
    low, dash, high = ports.partition("-")
    host, first = split_host_port(f"{host}:{low}")
    if not dash:
        return host, first, 0
    _, last = split_host_port(f"[{host}]:{high}")
    if last < first:
        raise ValueError(f"'{text}' is a descending range (expected HOST:LOW-HIGH)")
    return host, first, last if last > first else 0


def join_host_ports(host: str, port: int, last_port: int) -> str:
    """The inverse of `split_host_ports`."""
    if not last_port:
        return join_host_port(host, port)
    if port:
        return f"{join_host_port(host, port)}-{last_port}"
    return f"[{host}]" if ":" in host else host


def reached_ports(
    port: int, last_port: int, vip_ports: Iterable[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """The ranges of ports that packets to VIPs of these ranges reach at a backend whose `port` and
    `last_port` are as in `Endpoint`: inclusive, in order, each once."""
    if not last_port:
        return ((port, port),)
    return tuple(dict.fromkeys(vip_ports)) if not port else ((port, last_port),)


def split_host_port(text: str) -> tuple[str, int]:
    """Split `host:port` or `[ipv6]:port`; ValueError says what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"'{text}' is not HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host and port == port.strip():
        raise ValueError(f"'{text}' needs brackets around its IPv6 address: [{host}]:{port}")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"port '{port}' is not a number from 1 to 65535")
    return host, int(port)


def join_host_port(host: str, port: int) -> str:
    """The inverse of `split_host_port`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True, order=True)
class Vip:
    """Where clients connect: an address, or the unspecified one for every address of this
    host, and an inclusive range of ports (usually one). All ports are 1 to 65535."""

    address: Address
    first_port: int
    last_port: int

    @property
    def wildcard(self) -> bool:
        """Whether it stands for every address of this host (0.0.0.0 or ::)."""
        return self.address.is_unspecified

    @property
    def all_ports(self) -> bool:
        """Whether it has the ports that no other VIP of its address has."""
        return (self.first_port, self.last_port) == (1, LAST_PORT)

    def covers(self, target: Endpoint) -> bool:
        """Whether a client that connects to this address and port meets it."""
        here = self.wildcard or self.address == target.address
        return here and self.first_port <= target.port <= self.last_port

    def __str__(self) -> str:
        return join_vip(str(self.address), self.first_port, self.last_port)


def join_vip(host: str, first_port: int, last_port: int) -> str:
    """A VIP as text: `host:port`, `host:low-high`, or `host:*` for all ports."""
    text = join_host_port(host, first_port)
    if (first_port, last_port) == (1, LAST_PORT):
        return f"{text.removesuffix(':1')}:*"
    return text if first_port == last_port else f"{text}-{last_port}"
