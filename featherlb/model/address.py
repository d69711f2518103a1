"""Addresses, endpoints and VIPs. Frozen values of the standard library's address types."""

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


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """An address and a port (0 to 65535)."""

    address: Address
    port: int

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Read `10.0.0.1:80` or `[2001:db8::1]:80`; ValueError says what is wrong."""
        host, port = split_host_port(text)
        try:
            address = ip_address(host)
        except ValueError:
            raise ValueError(f"'{host}' is not an IP address") from None
        return cls(address, port)

    def __str__(self) -> str:
        return join_host_port(str(self.address), self.port)


def split_host_port(text: str) -> tuple[str, int]:
    """Split `host:port` or `[ipv6]:port`; ValueError says what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"'{text}' is not HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
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
    host, and an inclusive range of ports (usually one)."""

    address: Address
    first_port: int
    last_port: int

    @property
    def wildcard(self) -> bool:
        """Whether it stands for every address of this host (0.0.0.0 or ::)."""
        return self.address.is_unspecified

    def __str__(self) -> str:
        text = join_host_port(str(self.address), self.first_port)
        return text if self.first_port == self.last_port else f"{text}-{self.last_port}"
