"""Buffers of sockets past the limits of net.core.rmem_max and wmem_max."""

import socket

_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # include/uapi/asm-generic/socket.h


def enlarge(end: socket.socket, receive: int, send: int) -> None:
    """Give a socket so many bytes of kernel memory each way. OSError without CAP_NET_ADMIN."""
    end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive)
    end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, send)
