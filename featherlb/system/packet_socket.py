"""Packet sockets (packet(7)): numbers, filters, and whether they keep the kernel's offloads."""

import socket
import struct
from array import array

# linux/if_packet.h
SOL_PACKET = 263
PACKET_STATISTICS, PACKET_AUXDATA, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 6, 8, 15, 23
_SO_ATTACH_FILTER = 26  # include/uapi/asm-generic/socket.h


def supported() -> bool:
    """Whether this process can have packet sockets that keep checksum and segmentation offloads
    (PACKET_VNET_HDR); needs CAP_NET_RAW."""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
            link.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    except OSError:
        return False
    return True


def attach_filter(link: socket.socket, program: bytes) -> None:
    """Have the socket let in only what this filter does (an array of struct sock_filter)."""
    code = array("B", program)
    address, _ = code.buffer_info()
    fprog = struct.pack("HxxxxxxP", len(program) // 8, address)
    link.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
