"""Netlink sockets to netfilter."""

import socket

from featherlb.system import socket_buffers
from featherlb.system.netlink import NETLINK_NETFILTER, NETLINK_NO_ENOBUFS, SOL_NETLINK


def open_socket(receive_buffer: int, send_buffer: int) -> socket.socket:
    """A bound socket with so many bytes of kernel memory each way, past net.core.rmem_max and
    wmem_max, that doesn't fail where messages were lost. OSError if the kernel refuses it."""
    new = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    new.bind((0, 0))
    socket_buffers.enlarge(new, receive_buffer, send_buffer)
    new.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
    return new
