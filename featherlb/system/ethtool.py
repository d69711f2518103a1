"""What an interface merges before the kernel sees it: the ethtool ioctl (linux/ethtool.h)."""

import array
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_GET_FLAGS, _FLAG_LRO = 0x25, 1 << 15
_GET_GRO = 0x2B


def merges_in_hardware(interface: str) -> bool:
    """Large receive offload: the device merges segments irreversibly; False if unknown."""
    return bool((_get(interface, _GET_FLAGS) or 0) & _FLAG_LRO)


def merges(interface: str) -> bool | None:
    """Generic receive offload: the kernel merges segments reversibly; None if unknown."""
    value = _get(interface, _GET_GRO)
    return None if value is None else bool(value)


def _get(interface: str, command: int) -> int | None:
    """The result of a single-value query (struct ethtool_value)."""
    value = array.array("B", struct.pack("=II", command, 0))
    address, _ = value.buffer_info()
    request = struct.pack("16sP16x", interface.encode(), address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as carrier:
        try:
            fcntl.ioctl(carrier, _SIOCETHTOOL, request)
        except OSError:
            return None
    return int(struct.unpack("=II", value)[1])
