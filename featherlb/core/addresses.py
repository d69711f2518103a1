"""Addresses as the packet path has them: two 64-bit words. Imports `model`."""

from ipaddress import IPv4Address

from featherlb.model import Address

_MAPPED = 0xFFFF << 32  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2


def words_of(address: Address) -> tuple[int, int]:
    """The high and the low word, IPv4 in its mapped form."""
    if isinstance(address, IPv4Address):
        return 0, _MAPPED | int(address)
    return int(address) >> 64, int(address) & 0xFFFFFFFFFFFFFFFF
