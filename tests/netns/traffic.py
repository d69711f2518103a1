"""Clients: connections from the lab's nodes, and what the HTTP servers behind a VIP answer."""

import asyncio
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from featherlb.lab import Lab, Node
from featherlb.lab.namespaces import VIP
from tests.netns.command import run

REQUEST = b"GET / HTTP/1.1\r\nHost: vip\r\n\r\n"
REQUEST_AND_CLOSE = b"GET / HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    """Who answered, and the client's address as that server saw it."""

    backend: str
    peer: str


def parse(response: bytes) -> Answer:
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), response
    return Answer(**json.loads(body))


def ask_over(connection: socket.socket) -> Answer:
    """One request and its answer; the connection stays open."""
    connection.sendall(REQUEST)
    response = b""
    while not response.endswith(b"}\n"):
        part = connection.recv(4096)
        assert part, f"connection closed after {response!r}"
        response += part
    return parse(response)


class Session:
    """A client's kept connection to a VIP with HTTP servers behind it."""

    def __init__(
        self,
        node: Node,
        address: str = VIP,
        port: int = 80,
        source: tuple[str, int] | None = None,
        timeout: float = 30,
    ) -> None:
        self.socket = node.call(socket.create_connection, (address, port), timeout, source)

    def ask(self) -> Answer:
        return ask_over(self.socket)

    def close(self) -> None:
        """Close, and wait for the server to close as well."""
        self.socket.shutdown(socket.SHUT_WR)
        assert self.socket.recv(1) == b""
        self.socket.close()

    def reset(self) -> None:
        """Close with a RST."""
        reset(self.socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()


def ask(node: Node, address: str = VIP, port: int = 80) -> Answer:
    """Ask once, over a connection of its own."""
    with Session(node, address, port) as session:
        answer = session.ask()
        session.close()
    return answer


def ask_concurrently(node: Node, count: int, parallel: int, port: int = 80) -> list[Answer]:
    """Ask over `count` connections, `parallel` of them at a time; any error is raised."""

    async def one(turn: asyncio.Semaphore) -> Answer:
        async with turn, asyncio.timeout(30):
            reader, writer = await asyncio.open_connection(VIP, port)
            writer.write(REQUEST_AND_CLOSE)
            answer = parse(await reader.read())
            writer.close()
            await writer.wait_closed()
            return answer

    async def all_of_them() -> list[Answer]:
        turn = asyncio.Semaphore(parallel)
        return await asyncio.gather(*(one(turn) for _ in range(count)))

    return node.call(asyncio.run, all_of_them())


def reset(connection: socket.socket) -> None:
    """Close a connection with a RST: SO_LINGER with a time of 0."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def receive_all(connection: socket.socket) -> bytes:
    """What arrives until the other side closes its direction."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def plug_again(lab: Lab, name: str, address: str) -> None:
    """Put an interface of this name, and with this address, into the balancer, where one was."""
    balancer = lab.balancer.namespace
    net = balancer.removesuffix("lb") + "net"
    for command in (
        f"ip -n {net} link add again type veth peer name {name} netns {balancer}",
        f"ip -n {net} link set again master {name} up",
        f"ip address add {address} dev {name}",
        f"ip link set {name} up",
    ):
        lab.balancer.run(command.split())


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 30) -> None:
    """Poll until `condition()`; AssertionError names `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.01)


@contextmanager
def pair(
    lab: Lab, vip: str, backend_port: int, port: int = 80
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a connection through the VIP's port: the client's, and the one that the first
    backend accepted on `backend_port`."""
    everywhere = "::" if ":" in vip else "0.0.0.0"
    with lab.backends[0].listen(everywhere, backend_port) as listener:
        client = lab.client.connect(vip, port)
        server, _ = listener.accept()
    server.settimeout(30)
    with client, server:
        yield client, server


def let_forward(node: Node) -> None:
    """Let a node forward the packets of others, whatever ran on it before: what a stopped instance
    has left to the kernel goes, as the next one would put the setting back with it."""
    ended = run(node, "down")
    assert ended.returncode == 0, ended.stderr
    forward(node)


def forward(node: Node) -> None:
    """The same for a node where no instance has run."""
    node.sysctl("net.ipv4.ip_forward", 1)
    node.sysctl("net.ipv6.conf.all.forwarding", 1)


@contextmanager
def standing_still(node: Node) -> Iterator[None]:
    """Stop the node's processes, and continue them after the block."""
    deadline = time.monotonic() + 30
    while not still(stop_all(node), node):
        # A process that ended meanwhile can't be reaped by a parent that is stopped, and a parent
        # that waits for its child's exec can't stop before it: let them, and stop all once more.
        continue_all(node)
        assert time.monotonic() < deadline, "not within 30 s: the node stands still"
        time.sleep(0.05)
    try:
        yield
    finally:
        continue_all(node)


def stop_all(node: Node) -> list[int]:
    pids = node.pids()
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    return pids


def continue_all(node: Node) -> None:
    for pid in node.pids():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def still(pids: list[int], node: Node) -> bool:
    """Whether these are the node's processes, and all of them stop within a second."""
    deadline = time.monotonic() + 1
    while not all(map(is_stopped, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return set(node.pids()) == set(pids)


def is_stopped(pid: int) -> bool:
    try:
        states = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return False
    return all(state.rpartition(")")[2].split()[0] == "T" for state in states)
