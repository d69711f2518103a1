"""The servers of a backend: `python echo.py NUMBER PORT...` echoes on these ports, TCP and UDP.

A frame is its length in four bytes (network byte order) and that many bytes; a datagram is one
frame without the length. The answer is the same, with NUMBER as the first byte: so the client knows
who answered. A script that imports only the standard library, so that it starts fast.
"""

import asyncio
import socket
import struct
import sys
from typing import cast

LENGTH = struct.Struct("!I")


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: bytes) -> None:
    """One connection, to its end."""
    try:
        while True:
            (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
            body = await reader.readexactly(length)
            writer.write(LENGTH.pack(length) + number + body[1:])
            await writer.drain()
    except (OSError, EOFError):
        pass
    finally:
        writer.close()


class Datagrams(asyncio.DatagramProtocol):
    """Answers each datagram."""

    def __init__(self, number: bytes) -> None:
        self._number = number

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(self._number + data[1:], addr)


async def main(number: bytes, ports: list[int]) -> None:
    """Serve for ever."""
    loop = asyncio.get_running_loop()
    for port in ports:
        for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            await asyncio.start_server(
                lambda reader, writer: serve(reader, writer, number),
                everywhere,
                port,
                family=family,
                backlog=1024,
            )
            one = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((everywhere, port))
            await loop.create_datagram_endpoint(lambda: Datagrams(number), sock=one)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(bytes((int(sys.argv[1]),)), list(map(int, sys.argv[2:]))))
