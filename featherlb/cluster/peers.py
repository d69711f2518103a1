"""Connections with other nodes.

A node dials each of its peers and announces its own flows there; what the peers announce comes on
the connections that they dial. Both ends send their state every half second, so a silent death is
noticed within `SILENCE`.
"""

import asyncio
import os
import ssl
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict

from featherlb.cluster import wire
from featherlb.cluster.keys import name_of
from featherlb.cluster.wire import Frame, Greeting, NodeState, Reader, WireError
from featherlb.model import PeerState

HEARTBEAT = 0.5
"""Seconds between two states that a node sends."""
SILENCE = 2.0
"""Seconds without a word after which a node is dead."""
REDIAL = 1.0
"""Seconds between two attempts to reach a node."""
MAX_QUEUED = 16 << 20
"""Bytes that wait for a slow peer: some seconds of announcements. What comes then is dropped, and a
copy makes up for it."""
_PART = 1 << 18

Address = tuple[str, int]


class Outgoing:
    """The connection that this node dials to a peer."""

    def __init__(
        self,
        address: Address,
        greeting: Greeting,
        context: ssl.SSLContext,
        own_state: Callable[[], NodeState],
        on_change: Callable[[], None],
        want_copy: Callable[["Outgoing"], None],
    ) -> None:
        """`on_change` is called when `view` would differ, `want_copy` when the peer has missed
        something."""
        self.address = address
        self._greeting = greeting
        self._context = context
        self._own_state = own_state
        self._on_change = on_change
        self._want_copy = want_copy
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._wake = asyncio.Event()
        self._dropped = 0
        self._missed = False
        self.node = ""
        self.state = PeerState.CONNECTING
        self._trouble = ""
        self._there: NodeState | None = None

    @property
    def connected(self) -> bool:
        return self.state is PeerState.SYNCHRONISED

    def view(self) -> dict[str, object]:
        """What the supervisor shows: the fields of `control.cluster.PeerView`, as far as they are
        known here."""
        return {
            "address": wire_address(self.address),
            "node": self.node,
            "state": self.state,
            "trouble": self._trouble,
            "queued": self._queued,
            "dropped": self._dropped,
            **(asdict(self._there) if self._there else {}),
        }

    def send(self, frame: bytes) -> None:
        """Send a frame, or note that the peer misses it."""
        if not self.connected:
            return
        if self._queued + len(frame) > MAX_QUEUED:
            self._queue.clear()
            self._queued = 0
            self._dropped += 1
            self._missed = True
        if self._missed:
            return
        self._queue.append(frame)
        self._queued += len(frame)
        self._wake.set()

    async def run(self) -> None:
        """Be connected, again and again, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(SILENCE):
                    reader, writer = await asyncio.open_connection(
                        *self.address, ssl=self._context, ssl_handshake_timeout=SILENCE
                    )
                try:
                    await self._serve(reader, writer)
                finally:
                    writer.close()
                    with suppress(OSError, ssl.SSLError, TimeoutError):
                        async with asyncio.timeout(SILENCE):
                            await writer.wait_closed()
            except TimeoutError:
                self._fail(PeerState.UNREACHABLE, "it does not answer")
            except ssl.SSLError as error:
                reason = error.reason or str(error)
                self._fail(PeerState.REFUSED, f"TLS fails: {reason.lower().replace('_', ' ')}")
            except OSError as error:
                reason = os.strerror(error.errno) if error.errno else str(error)
                self._fail(PeerState.UNREACHABLE, reason.lower())
            except EOFError:
                self._fail(PeerState.UNREACHABLE, "it has closed the connection")
            except WireError as error:
                self._fail(PeerState.REFUSED, str(error))
            await asyncio.sleep(REDIAL)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = Reader()
        writer.write(wire.frame(Frame.GREETING, wire.dump(self._greeting)))
        pending = await _receive(reader, frames)
        kind, content = pending.pop(0)
        if kind is Frame.REFUSAL:
            raise WireError(content.decode(errors="replace")[:200])
        if kind is not Frame.GREETING:
            raise WireError("it sends no greeting")
        theirs = wire.load_greeting(content)
        check_name(theirs, writer)
        if refusal := theirs.refusal(self._greeting):
            raise WireError(refusal)
        self.node = theirs.node
        self._queue.clear()
        self._queued = 0
        self._missed = False
        self.state, self._trouble = PeerState.SYNCHRONISED, ""
        self._on_change()
        self._want_copy(self)
        await _until_one_fails(self._send(writer), self._listen(reader, frames, pending))

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        """Send what is queued, and a state every half second."""
        while True:
            writer.write(wire.frame(Frame.STATE, wire.dump(self._own_state())))
            await writer.drain()
            deadline = asyncio.get_running_loop().time() + HEARTBEAT
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    while True:
                        await self._wake.wait()
                        self._wake.clear()
                        await self._drain(writer)

    async def _drain(self, writer: asyncio.StreamWriter) -> None:
        while self._queue:
            batch = b"".join(self._queue)
            self._queue.clear()
            self._queued = 0
            writer.write(batch)
            await writer.drain()
        if self._missed:
            self._missed = False
            self._want_copy(self)

    async def _listen(
        self,
        reader: asyncio.StreamReader,
        frames: Reader,
        pending: list[tuple[Frame, bytes]],
    ) -> None:
        while True:
            for kind, content in pending:
                if kind is Frame.STATE:
                    there = wire.load_state(content)
                    if there != self._there:
                        self._there = there
                        self._on_change()
                elif kind is Frame.COPY_WANTED:
                    self._want_copy(self)
                else:
                    raise WireError(f"it sends a frame of the kind {kind.name} here")
            pending = await _receive(reader, frames)

    def _fail(self, state: PeerState, trouble: str) -> None:
        if (state, trouble) != (self.state, self._trouble):
            self.state, self._trouble = state, trouble
            self._there = None
            self._on_change()


class Incoming:
    """Takes the connections that peers dial."""

    def __init__(
        self,
        greeting: Greeting,
        own_state: Callable[[], NodeState],
        on_change: Callable[[], None],
        take: Callable[[bytes], "asyncio.Future[None] | None"],
        refused: Callable[[str], None],
    ) -> None:
        """`take` gets announcements; if it returns a future, the peer waits for that. `refused`
        gets the reason of each refusal."""
        self._greeting = greeting
        self._own_state = own_state
        self._on_change = on_change
        self._take = take
        self._refused = refused
        self.nodes: set[str] = set()
        """Those that are connected."""
        self.copied: set[str] = set()
        """Those that have sent all their flows since they were connected, or asked for them."""
        self._writers: set[asyncio.StreamWriter] = set()
        self._greeted: set[asyncio.StreamWriter] = set()

    def close(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def want_copies(self) -> None:
        """Ask all nodes for all their flows: a worker doesn't know them."""
        self.copied.clear()
        for writer in self._greeted:
            writer.write(wire.frame(Frame.COPY_WANTED))
        self._on_change()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        node = ""
        tasks: list[asyncio.Task[None]] = []
        self._writers.add(writer)
        try:
            frames = Reader()
            pending = await _receive(reader, frames)
            kind, content = pending.pop(0)
            if kind is not Frame.GREETING:
                raise WireError("it sends no greeting")
            theirs = wire.load_greeting(content)
            check_name(theirs, writer)
            refusal = theirs.refusal(self._greeting)
            if not refusal and theirs.node in self.nodes:
                refusal = f"a node called {theirs.node} is connected already"
            if refusal:
                writer.write(wire.frame(Frame.REFUSAL, refusal.encode()))
                raise WireError(refusal)
            writer.write(wire.frame(Frame.GREETING, wire.dump(self._greeting)))
            node = theirs.node
            self.nodes.add(node)
            self._greeted.add(writer)
            self._on_change()
            tasks.append(asyncio.create_task(self._beat(writer)))
            while True:
                for kind, content in pending:
                    if kind in (Frame.FLOWS, Frame.COPIED):
                        if waiting := self._take(content):
                            await waiting
                    elif kind is Frame.COPY_ENDS:
                        self.copied.add(node)
                        self._on_change()
                    elif kind is not Frame.STATE:
                        raise WireError(f"it sends a frame of the kind {kind.name} here")
                pending = await _receive(reader, frames)
        except WireError as error:
            host = writer.get_extra_info("peername", ("?",))[0]
            self._refused(f"{node or host}: {error}")
        except (OSError, EOFError, TimeoutError):
            pass  # it is dialled again, and the other direction says what is wrong
        finally:
            for task in tasks:
                task.cancel()
            if node:
                self.nodes.discard(node)
                self.copied.discard(node)
                self._on_change()
            self._writers.discard(writer)
            self._greeted.discard(writer)
            writer.close()

    async def _beat(self, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(wire.frame(Frame.STATE, wire.dump(self._own_state())))
            await writer.drain()
            await asyncio.sleep(HEARTBEAT)


def check_name(greeting: Greeting, writer: asyncio.StreamWriter) -> None:
    """A node may only say it is who its certificate says; WireError otherwise."""
    certified = name_of(writer.get_extra_info("peercert"))
    if certified != greeting.node:
        raise WireError(f"it says it is {greeting.node}, and its certificate says {certified}")


def wire_address(address: Address) -> str:
    """HOST:PORT."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _until_one_fails(*coroutines: Coroutine[object, object, None]) -> None:
    """Run all of them, which don't end by themselves, until one raises; that is raised."""
    tasks = [asyncio.ensure_future(one) for one in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _receive(reader: asyncio.StreamReader, frames: Reader) -> list[tuple[Frame, bytes]]:
    """The next frames, one at least. EOFError at the end, TimeoutError after `SILENCE`."""
    found: list[tuple[Frame, bytes]] = []
    async with asyncio.timeout(SILENCE):
        while not found:
            data = await reader.read(_PART)
            if not data:
                raise EOFError
            found = frames.feed(data)
    return found
