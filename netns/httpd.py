"""A small HTTP server for the lab: `python httpd.py NAME FD` serves the listening socket FD.

Answers every request with its own name and the client's address as it saw it, and keeps the
connection unless told to close it. `GET /counters` tells how many requests and connections
there were, without counting itself. A script that imports only the standard library, so that it
starts fast.
"""

import asyncio
import json
import socket
import sys


class Connection(asyncio.Protocol):
    """One client; `counters` are shared by all."""

    def __init__(self, name: str, counters: dict[str, int]) -> None:
        self._name = name
        self._counters = counters
        self._counted = False
        self._pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")[0]
        self._answer = _response({"backend": self._name, "peer": peer})

    def data_received(self, data: bytes) -> None:
        *requests, self._pending = (self._pending + data).split(b"\r\n\r\n")
        for request in requests:
            if request.startswith(b"GET /counters "):
                self._transport.write(_response(self._counters))
            else:
                self._counters["requests"] += 1
                self._counters["connections"] += not self._counted
                self._counted = True
                self._transport.write(self._answer)
            if b"\r\nconnection: close" in request.lower():
                self._transport.close()


def _response(content: object) -> bytes:
    body = json.dumps(content).encode() + b"\n"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def serve(name: str, listener: socket.socket) -> None:
    """Serve for ever."""
    counters = {"connections": 0, "requests": 0}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(name, counters), sock=listener)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2]))))
