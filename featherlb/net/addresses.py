"""Addresses in the packet path: two 64-bit words."""

from ipaddress import IPv4Address, IPv6Address

from featherlb.model import Address, Endpoint
from featherlb.net.protocols import MAPPED


def words_of(address: Address) -> tuple[int, int]:
    """The high and the low word, IPv4 in its mapped form."""
    if isinstance(address, IPv4Address):
        return 0, MAPPED | int(address)
    return int(address) >> 64, int(address) & 0xFFFFFFFFFFFFFFFF


def address_of(high: int, low: int) -> Address:
    """The inverse of `words_of`."""
    if not high and low >> 32 == 0xFFFF:
        return IPv4Address(low & 0xFFFFFFFF)
    return IPv6Address(high << 64 | low)


def endpoint_of(high: int, low: int, port: int) -> Endpoint:
    """The endpoint at the address in these words."""
    return Endpoint(address_of(high, low), port)
