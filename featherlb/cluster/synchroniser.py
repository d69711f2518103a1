"""The process that synchronises this node's flows with those of its peers.

It stands between the workers and the network, so that neither a slow peer nor TLS ever delays a
packet, and it has no privileges: whoever takes it over can lie about flows, which the cluster's
nodes can do anyway, and nothing else. Announcements pass as bytes.
"""

import asyncio
import json
import logging
import signal
import socket
import ssl
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from featherlb.cluster import keys, wire
from featherlb.cluster.links import Link, Message, pack_nodes, parts
from featherlb.cluster.peers import Address, Incoming, Outgoing
from featherlb.cluster.wire import Frame, Greeting, NodeState
from featherlb.system import privileges

RETRY = 0.02
"""Seconds until the next attempt to give a worker what it had no room for."""
REPORT = 1.0
"""Seconds between two reports to the supervisor, if nothing changes."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the supervisor tells it at the start."""

    node: str
    listen: Address
    peers: tuple[Address, ...]
    keys: str


class Synchroniser:
    """Passes announcements on, in both directions."""

    def __init__(self, settings: Settings, client: ssl.SSLContext, server: ssl.SSLContext) -> None:
        self._settings = settings
        self._greeting = Greeting(settings.node)
        self._server_context = server
        self._own = NodeState(digest="", ready=False)
        self._workers: dict[int, Link] = {}
        self._known: set[int] = set()
        """The numbers of the workers that there have been."""
        self._copying: set[Outgoing] = set()
        self._copied_by: set[int] = set()
        """The workers that have sent all flows of the copy under way."""
        self._refusals: dict[str, int] = {}
        self.changed = asyncio.Event()
        self._incoming = Incoming(
            self._greeting, lambda: self._own, self._change, self._take, self._refuse
        )
        self._outgoing = [
            Outgoing(
                address,
                self._greeting,
                client,
                lambda: self._own,
                self._change,
                self._want_copy,
            )
            for address in settings.peers
        ]

    # The supervisor's

    def set_worker(self, number: int, end: socket.socket) -> None:
        """Serve a worker, in place of its predecessor."""
        loop = asyncio.get_running_loop()
        replaced = number in self._known
        self._known.add(number)
        if number in self._workers:
            self._drop_worker(number)
        link = self._workers[number] = Link(end)
        loop.add_reader(end.fileno(), self._read_worker, number, link)
        link.send(Message.LIVING, pack_nodes(self._living()))
        if replaced:  # what its predecessor knew of other nodes' flows, they know
            self._incoming.want_copies()
        for node in self._outgoing:
            if node.connected:
                self._want_copy(node)

    def set_state(self, state: NodeState) -> None:
        """What this node says of itself from now on."""
        self._own = state

    def report(self) -> dict[str, object]:
        """What the supervisor shows."""
        peers = []
        for one in self._outgoing:
            view = one.view()
            view["copied"] = one.node in self._incoming.copied
            view["heard"] = one.node in self._incoming.nodes
            peers.append(view)
        return {"peers": peers, "refused": self._refusals}

    async def run(self) -> None:
        """Run until cancelled; OSError if it can't listen."""
        host, port = self._settings.listen
        server = await asyncio.start_server(
            self._incoming.serve, host, port, ssl=self._server_context
        )
        tasks = [asyncio.create_task(peer.run()) for peer in self._outgoing]
        try:
            await asyncio.gather(*tasks, server.serve_forever())
        finally:
            for task in tasks:
                task.cancel()
            self._incoming.close()
            for number in list(self._workers):
                self._drop_worker(number)

    def _drop_worker(self, number: int) -> None:
        link = self._workers.pop(number)
        asyncio.get_running_loop().remove_reader(link.fileno())
        link.close()

    # From workers to peers

    def _read_worker(self, number: int, link: Link) -> None:
        try:
            for kind, content in link.receive():
                if kind is Message.FLOWS:
                    frame = wire.frame(Frame.FLOWS, content)
                    for peer in self._outgoing:
                        peer.send(frame)
                elif kind is Message.COPIED:
                    frame = wire.frame(Frame.COPIED, content)
                    for peer in self._copying:
                        peer.send(frame)
                elif kind is Message.COPY_ENDS:
                    self._end_copy(number)
        except (EOFError, ValueError):
            if self._workers.get(number) is link:
                self._drop_worker(number)

    def _want_copy(self, peer: Outgoing) -> None:
        """Have the workers send all their flows, again if they are at it."""
        self._copying.add(peer)
        self._copied_by.clear()
        for link in self._workers.values():
            link.send(Message.COPY_WANTED)

    def _end_copy(self, number: int) -> None:
        self._copied_by.add(number)
        if self._copied_by >= self._workers.keys():
            for peer in self._copying:
                peer.send(wire.frame(Frame.COPY_ENDS))
            self._copying.clear()

    # From peers to workers

    def _take(self, content: bytes) -> "asyncio.Task[None] | None":
        """Give announcements to the workers; something to wait for if one has no room."""
        left = [
            (link, piece)
            for link in self._workers.values()
            for piece in parts(content)
            if not link.send(Message.FLOWS, piece)
        ]
        return asyncio.create_task(self._insist(left)) if left else None

    async def _insist(self, left: list[tuple[Link, memoryview]]) -> None:
        while left:
            await asyncio.sleep(RETRY)
            left = [
                (link, piece)
                for link, piece in left
                if link in self._workers.values() and not link.send(Message.FLOWS, piece)
            ]

    # Who is there

    def _living(self) -> Iterable[int]:
        names = self._incoming.nodes | {one.node for one in self._outgoing if one.connected}
        return {wire.number_of(name) for name in names}

    def _change(self) -> None:
        living = pack_nodes(self._living())
        for link in self._workers.values():
            link.send(Message.LIVING, living)
        self.changed.set()

    def _refuse(self, reason: str) -> None:
        if len(self._refusals) < 64 or reason in self._refusals:
            self._refusals[reason] = self._refusals.get(reason, 0) + 1
        self.changed.set()


class Control:
    """The supervisor's end of the process: JSON in messages, with descriptors of workers."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, message: object) -> None:
        """Send it, or leave it if there is no room: another one follows."""
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._end.send(json.dumps(message).encode())

    def receive(self) -> tuple[dict[str, object], list[int]] | None:
        """The next message and its descriptors, None if none waits; EOFError at the end."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._end, 1 << 16, 1)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            data, descriptors = b"", []
        if not data:
            raise EOFError
        return json.loads(data), descriptors


async def serve(synchroniser: Synchroniser, control: Control) -> None:
    """Obey the supervisor until it ends, or the network fails."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def read() -> None:
        try:
            while (received := control.receive()) is not None:
                message, descriptors = received
                if "worker" in message:
                    number = message["worker"]
                    assert isinstance(number, int)
                    synchroniser.set_worker(number, socket.socket(fileno=descriptors[0]))
                else:
                    synchroniser.set_state(NodeState(**message))  # type: ignore[arg-type]
        except EOFError:
            loop.remove_reader(control.fileno())
            ended.set()

    loop.add_reader(control.fileno(), read)
    running = asyncio.create_task(synchroniser.run())
    ending = asyncio.create_task(ended.wait())
    while not ending.done():
        control.send(synchroniser.report())
        synchroniser.changed.clear()
        waiting = asyncio.create_task(synchroniser.changed.wait())
        await asyncio.wait(
            {running, ending, waiting}, timeout=REPORT, return_when=asyncio.FIRST_COMPLETED
        )
        waiting.cancel()
        if running.done():
            control.send({"failure": _explain(running.exception())})
            return
        await asyncio.sleep(0.05)  # changes come in groups
    running.cancel()


def _explain(error: BaseException | None) -> str:
    return getattr(error, "strerror", None) or str(error)


def main() -> None:
    """Entry of `python -m featherlb.cluster FD SETTINGS`, with the supervisor's socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)  # what matters is in the reports
    control = Control(socket.socket(fileno=int(sys.argv[1])))
    fields = json.loads(sys.argv[2])
    settings = Settings(
        node=fields["node"],
        listen=(fields["listen"][0], fields["listen"][1]),
        peers=tuple((host, port) for host, port in fields["peers"]),
        keys=fields["keys"],
    )
    files = keys.KeyFiles(Path(settings.keys), settings.node)
    try:
        client, server = keys.context(files, server=False), keys.context(files, server=True)
    except Exception as error:
        control.send({"failure": str(error)})
        return
    privileges.confine(kept=())
    synchroniser: Synchroniser | None = None

    async def begin() -> None:
        nonlocal synchroniser
        synchroniser = Synchroniser(settings, client, server)
        await serve(synchroniser, control)

    asyncio.run(begin())
