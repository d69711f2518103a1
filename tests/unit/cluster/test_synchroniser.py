"""Synchronisers on this host's loopback, with real TLS; the tests are their workers."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from featherlb.cluster import keys
from featherlb.cluster.links import Link, Message, pair, unpack_nodes
from featherlb.cluster.synchroniser import Settings, Synchroniser
from featherlb.cluster.wire import NodeState, number_of
from featherlb.core.flows.record import RECORD_SIZE

pytest.importorskip("cryptography")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("keys")
    keys.make(made, ["a", "b", "c"])
    return made


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Node:
    """A synchroniser and its worker."""

    def __init__(self, name: str, port: int, peers: list[int], directory: Path) -> None:
        files = keys.KeyFiles(directory, name)
        self.name = name
        self.synchroniser = Synchroniser(
            Settings(
                name,
                ("127.0.0.1", port),
                tuple(("127.0.0.1", one) for one in peers),
                str(directory),
            ),
            keys.context(files, server=False),
            keys.context(files, server=True),
        )
        ours, theirs = pair()
        self.worker = Link(ours)
        self.synchroniser.set_worker(0, theirs)
        self.received: list[bytes] = []
        self.living: list[int] = []
        self.copies_wanted = 0

    def close(self) -> None:
        self.worker.close()

    def listen(self) -> None:
        """Take what has come."""
        with suppress(EOFError):
            for kind, content in self.worker.receive():
                if kind is Message.FLOWS:
                    self.received.append(content)
                elif kind is Message.LIVING:
                    self.living = unpack_nodes(content)
                elif kind is Message.COPY_WANTED:
                    self.copies_wanted += 1

    def peer(self) -> dict[str, object]:
        peers = self.synchroniser.report()["peers"]
        assert isinstance(peers, list)
        found: dict[str, object] = peers[0]
        return found


@asynccontextmanager
async def running(*nodes: Node) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for node in nodes:
            stack.callback(node.close)
            task = asyncio.create_task(node.synchroniser.run())
            stack.push_async_callback(_end, task)
        yield


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def until(condition: Callable[[], bool], *nodes: Node) -> None:
    async with asyncio.timeout(30):
        while not condition():
            for node in nodes:
                node.listen()
            await asyncio.sleep(0.01)


def two(directory: Path, names: str = "ab") -> tuple[Node, Node]:
    first, second = free_port(), free_port()
    return (
        Node(names[0], first, [second], directory),
        Node(names[1], second, [first], directory),
    )


async def announced_flows_arrive(directory: Path) -> None:
    a, b = two(directory)
    record = bytes(range(RECORD_SIZE))
    async with running(a, b):
        await until(lambda: a.living == [number_of("b")] and a.copies_wanted > 0, a, b)
        assert a.worker.send(Message.FLOWS, record * 3)
        await until(lambda: b.received == [record * 3], a, b)
        # A copy goes to who wants one, and its end is known there.
        assert a.worker.send(Message.COPIED, record)
        assert a.worker.send(Message.COPY_ENDS)
        await until(lambda: len(b.received) == 2, a, b)
        await until(lambda: b.peer()["copied"] is True, a, b)
        assert a.worker.send(Message.COPIED, record)
        assert a.worker.send(Message.FLOWS, record * 2)
        await until(lambda: b.received == [record * 3, record, record * 2], a, b)


def test_announced_flows_arrive(directory: Path) -> None:
    asyncio.run(announced_flows_arrive(directory))


async def a_worker_that_is_replaced_gets_all_flows_again(directory: Path) -> None:
    a, b = two(directory)
    async with running(a, b):
        await until(lambda: a.living == [number_of("b")] and b.copies_wanted > 0, a, b)
        assert b.worker.send(Message.COPY_ENDS)
        await until(lambda: a.peer()["copied"] is True, a, b)
        wanted = b.copies_wanted
        ours, theirs = pair()
        a.worker.close()
        a.worker = Link(ours)
        a.synchroniser.set_worker(0, theirs)
        assert a.peer()["copied"] is False
        await until(lambda: b.copies_wanted > wanted, a, b)
        assert b.worker.send(Message.COPIED, bytes(RECORD_SIZE))
        assert b.worker.send(Message.COPY_ENDS)
        await until(lambda: a.peer()["copied"] is True and a.received == [bytes(RECORD_SIZE)], a, b)


def test_a_worker_that_is_replaced_gets_all_flows_again(directory: Path) -> None:
    asyncio.run(a_worker_that_is_replaced_gets_all_flows_again(directory))


async def who_goes_is_missed(directory: Path) -> None:
    a, b = two(directory)
    async with running(a):
        async with running(b):
            await until(lambda: a.living == [number_of("b")], a, b)
            b.synchroniser.set_state(NodeState("digest", True))
            await until(lambda: a.peer().get("digest") == "digest", a, b)
            assert a.peer()["ready"] is True
        await until(lambda: a.living == [], a)
        assert a.peer()["state"] == "unreachable"
        assert a.peer()["trouble"]


def test_who_goes_is_missed(directory: Path) -> None:
    asyncio.run(who_goes_is_missed(directory))


async def strangers_are_refused(directory: Path, tmp_path: Path) -> None:
    keys.make(tmp_path, ["b"])
    first, second = free_port(), free_port()
    a = Node("a", first, [second], directory)
    stranger = Node("b", second, [first], tmp_path)
    async with running(a, stranger):
        await until(lambda: "certificate verify failed" in str(a.peer()["trouble"]), a)
        assert a.living == stranger.living == []
        assert a.peer()["state"] == "refused"


def test_who_has_another_authority_is_refused(directory: Path, tmp_path: Path) -> None:
    asyncio.run(strangers_are_refused(directory, tmp_path))


async def names_are_certified(directory: Path, tmp_path: Path) -> None:
    """Node c presents itself as b."""
    for name in ("ca.pem", "c.pem", "c.key"):
        target = tmp_path / name.replace("c.", "b.", 1)
        target.write_bytes((directory / name).read_bytes())
        target.chmod(0o600)
    first, second = free_port(), free_port()
    a = Node("a", first, [second], directory)
    impostor = Node("b", second, [first], tmp_path)
    async with running(a, impostor):
        await until(lambda: "its certificate says c" in str(a.peer()["trouble"]), a)
        await until(lambda: bool(a.synchroniser.report()["refused"]), a)
        assert a.living == []


def test_a_node_is_who_its_certificate_says(directory: Path, tmp_path: Path) -> None:
    asyncio.run(names_are_certified(directory, tmp_path))


async def one_name_twice(directory: Path) -> None:
    a, other = two(directory, "aa")
    async with running(a, other):
        await until(lambda: "both nodes are called a" in str(a.peer()["trouble"]), a, other)


def test_two_nodes_with_one_name_are_told(directory: Path) -> None:
    asyncio.run(one_name_twice(directory))


def test_keys_that_others_may_read_are_refused(directory: Path, tmp_path: Path) -> None:
    keys.make(tmp_path, ["a"])
    (tmp_path / "a.key").chmod(0o644)
    with pytest.raises(Exception, match=r"others may read .*a\.key: chmod 600 it"):
        keys.context(keys.KeyFiles(tmp_path, "a"), server=True)
    with pytest.raises(Exception, match="featherlb cluster keys"):
        keys.context(keys.KeyFiles(tmp_path, "b"), server=True)


def test_keys_that_exist_stay(directory: Path, tmp_path: Path) -> None:
    first = keys.make(tmp_path, ["a"])
    assert {path.name for path in first} == {"ca.pem", "ca.key", "a.pem", "a.key"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in first)
    again = keys.make(tmp_path, ["a", "b"])
    assert {path.name for path in again} == {"b.pem", "b.key"}
