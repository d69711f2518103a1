"""The other nodes of a cluster: the synchroniser's process, as the supervisor sees it, and whether
this node may be sent traffic.

If the process dies, the workers keep balancing, and what they announce meanwhile is lost; its
successor has all flows copied.
"""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from featherlb.cluster import keys
from featherlb.cluster.synchroniser import Control
from featherlb.config import Config
from featherlb.config.types import ClusterConfig
from featherlb.control.events import Events
from featherlb.control.serving import Serving
from featherlb.model import PeerState
from featherlb.model.errors import HostError

REPORT = 1.0
"""Seconds between two things that the supervisor tells, if nothing changes."""
SILENCE = 10.0
"""Seconds without a report after which the process is replaced."""


@dataclass(frozen=True, slots=True)
class PeerView:
    """What is known of a peer. `node` and `digest` are empty until it has told them. `copied`: it
    has sent all its flows since it was connected. `trouble`: why it isn't synchronised; empty if
    it is. `queued` are the bytes that wait for it, `dropped` counts how often they were too many.
    """

    address: str
    node: str = ""
    state: PeerState = PeerState.CONNECTING
    trouble: str = ""
    heard: bool = False
    copied: bool = False
    ready: bool = False
    digest: str = ""
    queued: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What is known of the cluster. `digest` is that of this node's services, `refused` counts why
    connections of others were refused."""

    node: str
    digest: str
    leaving: bool
    peers: tuple[PeerView, ...]
    refused: Mapping[str, int] = field(default_factory=dict)


class Cluster:
    """Runs the synchroniser, and knows what it reports."""

    def __init__(self, config: ClusterConfig, serving: Serving, events: Events) -> None:
        self._config = config
        self._serving = serving
        self._workers = serving.data.workers
        self._events = events
        self._peers = {str(one): PeerView(str(one)) for one in config.peers}
        self._refused: dict[str, int] = {}
        self._served: Config | None = None
        self._digest = ""
        self._joined = False
        """It has had all flows once. From then on, peers that come back are no reason to leave."""
        self.leaving = False
        """An operator wants no traffic here."""

    @property
    def digest(self) -> str:
        """Equal at nodes that serve the same."""
        running = self._serving.state.running
        if running is not self._served:
            # Imported on demand: most instances have no other nodes.
            from featherlb.config.writer import write

            self._served = running
            text = write(Config(services=running.services))
            self._digest = blake2b(text.encode(), digest_size=8).hexdigest()
        return self._digest

    def view(self) -> ClusterView:
        peers = tuple(self._peers.values())
        return ClusterView(self._config.node, self.digest, self.leaving, peers, self._refused)

    def obstacles(self) -> Iterator[str]:
        """Why this node should get no traffic for now, as far as its peers are concerned. One that
        can't be reached is no reason, and neither is another configuration: all nodes would
        withdraw from a change that comes to them one after the other."""
        if self.leaving:
            yield "it leaves the cluster"
        if not self._joined:
            yield from self._missing()

    def _missing(self) -> Iterator[str]:
        """Whose flows this node doesn't know yet."""
        for peer in self._peers.values():
            if peer.state is PeerState.CONNECTING:
                yield f"peer {peer.address} was not asked yet"
            elif peer.state is PeerState.SYNCHRONISED and not peer.copied:
                yield f"peer {peer.node} has not sent its flows yet"

    def leave(self, leaving: bool) -> None:
        """Have traffic sent elsewhere, or no longer."""
        if leaving != self.leaving:
            self.leaving = leaving
            what = "leaves" if leaving else "joins"
            self._events.emit(f"node-{what}", f"node {self._config.node} {what} the cluster")

    async def run(self) -> None:
        """Run one process to its end, which is HostError, unless this is cancelled."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = {
            "node": self._config.node,
            "listen": [str(self._config.listen.address), self._config.listen.port],
            "peers": [[str(one.address), one.port] for one in self._config.peers],
            "keys": self._config.keys,
        }
        isolation = "-I" if sys.flags.isolated else "-P"
        command = [sys.executable, isolation, "-m", "featherlb.cluster"]
        with ours:
            with theirs:
                process = subprocess.Popen(
                    [*command, str(theirs.fileno()), json.dumps(settings)],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
            try:
                await self._serve(ours)
            finally:
                ours.close()
                process.kill()
                await asyncio.to_thread(process.wait)
                self.take({"peers": [{"address": one} for one in self._peers], "refused": {}})

    async def _serve(self, ours: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        control = Control(ours)
        readable = asyncio.Event()
        loop.add_reader(ours.fileno(), readable.set)
        sent: dict[int, socket.socket] = {}
        last = loop.time()
        try:
            while True:
                for number, end in self._workers.syncs.items():
                    if sent.get(number) is not end:
                        socket.send_fds(
                            ours, [json.dumps({"worker": number}).encode()], [end.fileno()]
                        )
                        sent[number] = end
                control.send({"digest": self.digest, "ready": not any(self.obstacles())})
                with suppress(TimeoutError):
                    async with asyncio.timeout(REPORT):
                        await _first(readable, self._workers.replaced)
                readable.clear()
                self._workers.replaced.clear()
                with suppress(EOFError):
                    while (received := control.receive()) is not None:
                        last = loop.time()
                        self.take(received[0])
                    if loop.time() - last < SILENCE:
                        continue
                raise HostError("the synchroniser has ended, or hangs")
        finally:
            loop.remove_reader(ours.fileno())

    def take(self, report: dict[str, Any]) -> None:
        """Take what the synchroniser reports; HostError if it has failed."""
        if "failure" in report:
            raise HostError(f"flows can't be synchronised: {report['failure']}")
        self._refused = report["refused"]
        for fields in report["peers"]:
            state = PeerState(fields.pop("state", PeerState.CONNECTING))
            peer = PeerView(**fields, state=state)
            old = self._peers[peer.address]
            self._peers[peer.address] = peer
            if (old.state, old.trouble) != (peer.state, peer.trouble):
                self._tell(peer)
            if peer.digest != old.digest and peer.digest not in ("", self.digest):
                self._events.emit(
                    "peer-differs",
                    f"peer {peer.node} serves something else: compare the configurations",
                )
        self._joined = self._joined or not any(self._missing())

    def _tell(self, peer: PeerView) -> None:
        name = f"peer {peer.node or peer.address}"
        if peer.state is PeerState.SYNCHRONISED:
            self._events.emit("peer-up", f"{name} is synchronised")
        elif peer.state is not PeerState.CONNECTING:
            self._events.emit("peer-down", f"{name} is not synchronised: {peer.trouble}")


def check_keys(config: ClusterConfig) -> None:
    """HostError if the synchroniser couldn't use the node's keys."""
    keys.context(keys.KeyFiles(Path(config.keys), config.node), server=True)


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of them is set."""
    waiting = [asyncio.ensure_future(one.wait()) for one in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()
