"""Packet sockets (packet(7)): their numbers, and whether they keep the kernel's offloads."""

import socket

# linux/if_packet.h
SOL_PACKET = 263
PACKET_STATISTICS, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 6, 15, 23


def supported() -> bool:
    """Whether this process can have packet sockets that keep checksum and segmentation offloads
    (PACKET_VNET_HDR); needs CAP_NET_RAW."""
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
            link.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    except OSError:
        return False
    return True
