"""A small HTTP server for the lab: `python httpd.py NAME FD` serves the listening socket FD.

Answers every request with its own name and the client's address as it saw it, and keeps the
connection unless told to close it. `GET /counters` tells how many requests and connections
there were, without counting itself. A script that imports only the standard library, so that it
starts fast.
"""

import json
import selectors
import socket
import sys


class Connection:
    """One client; `counters` are shared by all."""

    def __init__(self, client: socket.socket, name: str, counters: dict[str, int]) -> None:
        self._client = client
        self._counters = counters
        self._counted = False
        self._pending = b""
        self._answer = _response({"backend": name, "peer": client.getpeername()[0]})

    def serve(self) -> bool:
        """Answer what has arrived; False if the connection is to be closed."""
        data = self._client.recv(1 << 16)
        *requests, self._pending = (self._pending + data).split(b"\r\n\r\n")
        for request in requests:
            if request.startswith(b"GET /counters "):
                self._client.sendall(_response(self._counters))
            else:
                self._counters["requests"] += 1
                self._counters["connections"] += not self._counted
                self._counted = True
                self._client.sendall(self._answer)
            if b"\r\nconnection: close" in request.lower():
                return False
        return bool(data)


def _response(content: object) -> bytes:
    body = json.dumps(content).encode() + b"\n"
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def serve(name: str, listener: socket.socket) -> None:
    """Serve forever."""
    counters = {"connections": 0, "requests": 0}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                client = key.fileobj
                assert isinstance(client, socket.socket)
                try:
                    if client is listener:
                        client, _ = listener.accept()
                        connection = Connection(client, name, counters)
                        selector.register(client, selectors.EVENT_READ, connection)
                    elif not key.data.serve():
                        selector.unregister(client)
                        client.close()
                except OSError:
                    # A client that disconnects is no error.
                    if client is not listener:
                        if client in selector.get_map():
                            selector.unregister(client)
                        client.close()


if __name__ == "__main__":
    serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
