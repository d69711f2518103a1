"""system/conntrack.py: a table that the kernel doesn't list must not look empty."""

import errno
import socket
import struct

import pytest

from featherlb.system import conntrack, netlink

ERROR, DONE = 2, 3


def message(kind: int, number: int = 0) -> bytes:
    """As in linux/netlink.h: struct nlmsghdr, then an errno."""
    return struct.pack("=IHHIIi", 20, kind, 0, 0, 0, -number)


class Kernel:
    """Answers the requests of one connection after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: bytes) -> None:
        self.answers = list(answers)
        monkeypatch.setattr(conntrack, "open_socket", self.open)
        monkeypatch.setattr(netlink, "PAUSES", (0, 0))

    def open(self, *_: int) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with theirs:
            theirs.send(self.answers.pop(0))
            ours.settimeout(5)
            # Requests go nowhere.
            return _Deaf(fileno=ours.detach())


class _Deaf(socket.socket):
    def send(self, *_: object) -> int:
        return 0


def test_what_fails_for_the_moment_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(
        monkeypatch,
        message(ERROR, errno.ENOBUFS),
        message(DONE, errno.ENOMEM),
        message(DONE),
        message(DONE),
    )
    assert list(conntrack.dump()) == []
    assert kernel.answers == []


@pytest.mark.parametrize("kind", [ERROR, DONE])
def test_what_fails_for_good_is_an_error(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    Kernel(monkeypatch, message(kind, errno.EPERM))
    with pytest.raises(PermissionError):
        list(conntrack.dump())
    Kernel(monkeypatch, *[message(kind, errno.ENOBUFS)] * 3)
    with pytest.raises(OSError, match=rf"^\[Errno {errno.ENOBUFS}\]"):
        list(conntrack.dump())
