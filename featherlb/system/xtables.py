"""The size of a table of iptables' legacy variant, straight from the kernel: a glance at its rules
without the start of a program.

The nf_tables variant announces its changes instead (`nft_monitor`). Structures and numbers are
those of include/uapi/linux/netfilter_ipv4/ip_tables.h and netfilter_ipv6/ip6_tables.h.
"""

import ctypes
import socket

_GET_INFO = 64  # IPT_SO_GET_INFO, IP6T_SO_GET_INFO
_NAME_LENGTH = 32
_INFO_LENGTH = 84
"""Bytes of struct ipt_getinfo: the name, and how many rules of how many bytes begin where."""
_LEVELS = {4: (socket.AF_INET, socket.IPPROTO_IP), 6: (socket.AF_INET6, socket.IPPROTO_IPV6)}

_libc = ctypes.CDLL(None, use_errno=True)


def outline(family: int, table: str) -> bytes:
    """The number and size of a table's rules and the places of its hooks: differs after a rule
    was added or removed, but not after one was replaced by another of its size. Empty if the kernel
    has no such table. OSError without CAP_NET_RAW.

    A table that nobody has used comes into being by the question.
    """
    version, level = _LEVELS[family]
    buffer = ctypes.create_string_buffer(table.encode(), _INFO_LENGTH)
    length = ctypes.c_uint32(_INFO_LENGTH)
    with socket.socket(version, socket.SOCK_RAW, socket.IPPROTO_RAW) as asking:
        failed = _libc.getsockopt(
            asking.fileno(), level, _GET_INFO, ctypes.byref(buffer), ctypes.byref(length)
        )
    return b"" if failed else buffer.raw[_NAME_LENGTH:]
