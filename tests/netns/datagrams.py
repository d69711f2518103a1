"""UDP sockets of the lab's nodes, and what they exchange through a VIP."""

import select
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple, Self

from featherlb.lab import Node

TIMEOUT = 30


def open_socket(
    node: Node, local: tuple[str, int], remote: tuple[str, int] | None = None
) -> socket.socket:
    """A bound UDP socket of this node, with a timeout of 30 s; connected if `remote` is given,
    so that it receives datagrams only from there, and ICMP errors."""
    new = node.new_socket(socket.AF_INET6 if ":" in local[0] else socket.AF_INET, socket.SOCK_DGRAM)
    new.bind(local)
    if remote is not None:
        new.connect(remote)
    return new


class Arrival(NamedTuple):
    """A datagram that a backend received: which backend, from where, what."""

    backend: str
    peer: tuple[str, int]
    data: bytes


class Receivers:
    """A UDP socket on one port of each node; they answer only on demand."""

    def __init__(self, nodes: Sequence[Node], port: int, family: int = socket.AF_INET) -> None:
        self._nodes = nodes
        self._address = ("::" if family == socket.AF_INET6 else "0.0.0.0", port)

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self.sockets = {
            node.name: self._stack.enter_context(open_socket(node, self._address))
            for node in self._nodes
        }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def receive(self) -> Arrival:
        """The next datagram that any of them gets."""
        ready, _, _ = select.select(list(self.sockets.values()), [], [], TIMEOUT)
        assert ready, f"no datagram within {TIMEOUT} s"
        data, peer = ready[0].recvfrom(1 << 16)
        name = next(name for name, own in self.sockets.items() if own is ready[0])
        return Arrival(name, peer[:2], data)

    def answer(self, arrival: Arrival, data: bytes) -> None:
        """Send `data` back from the socket that the datagram came to."""
        self.sockets[arrival.backend].sendto(data, arrival.peer)

    def exchange(self, client: socket.socket, query: bytes = b"query") -> Arrival:
        """Send a query from the connected `client`, let its receiver answer with its own name,
        and check that the answer gets to the client."""
        client.send(query)
        arrival = self.receive()
        assert arrival.data == query
        self.answer(arrival, arrival.backend.encode())
        assert client.recv(1 << 16) == arrival.backend.encode()
        return arrival
