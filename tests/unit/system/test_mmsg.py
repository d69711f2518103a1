"""Batches of datagrams, over real sockets."""

import socket
from collections.abc import Iterator

import pytest

from featherlb.system.mmsg import MessageBatch

SIZE = 1 << 16


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket whose buffer (twice what is set) takes some small datagrams, but none of 48 KiB; and
    its peer."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SIZE // 4)
    with one, other:
        yield one, other


def batch(end: socket.socket, lengths: list[int]) -> MessageBatch:
    """Pieces of these lengths, each filled with its number, at the beginning of a slot."""
    new = MessageBatch(len(lengths), SIZE)
    new.use(end)
    for number, length in enumerate(lengths):
        at = number * new.size
        new.buffer[at : at + length] = bytes([number]) * length
        new.add(at, length)
    return new


def test_pieces_are_one_datagram(ends: tuple[socket.socket, socket.socket]) -> None:
    end, peer = ends
    pieces = batch(end, [100, 200, 300])
    pieces.flush()
    assert peer.recv(SIZE) == bytes(100) + bytes([1]) * 200 + bytes([2]) * 300
    assert pieces.refused == []
    pieces.flush()
    with pytest.raises(BlockingIOError):
        peer.recv(1, socket.MSG_DONTWAIT)


def test_pieces_that_are_refused_together_are_sent_one_by_one(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    end, peer = ends
    pieces = batch(end, [2000, 48 << 10, 2000, 2000])
    pieces.flush()
    assert pieces.refused == [1]
    for number in (0, 2, 3):
        assert peer.recv(SIZE) == bytes([number]) * 2000
    # The next batch starts anew.
    pieces.add(0, 1)
    pieces.flush()
    assert pieces.refused == []
    assert peer.recv(SIZE) == bytes(1)
