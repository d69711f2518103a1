"""datapaths/nfqueue/netlink.py: what a new socket is told before it is ready."""

import errno
import socket
import struct

import pytest

from featherlb.datapaths.base import QueueOptions
from featherlb.datapaths.nfqueue import netlink
from featherlb.model import Driver

OPTIONS = QueueOptions(5, Driver.NETLINK, 1024, False)
NLMSG_ERROR, PACKET, VERDICT = 2, 3 << 8, 3 << 8 | 1


def answer(number: int = 0) -> bytes:
    return struct.pack("=IHHIIi", 20, NLMSG_ERROR, 0, 0, 0, -number)


def packet(number: int) -> bytes:
    """An NFQNL_MSG_PACKET: struct nfgenmsg, and NFQA_PACKET_HDR."""
    header = struct.pack("=HH", 11, 1) + struct.pack("!IHB", number, 0x0800, 0) + b"\0"
    body = struct.pack("!BBH", 2, 0, 5) + header
    return struct.pack("=IHHII", 16 + len(body), PACKET, 0, 0, 0) + body


def bind(monkeypatch: pytest.MonkeyPatch, *answers: bytes) -> list[bytes]:
    """Bind a queue with a kernel that gives these answers; what it is sent."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        ours.settimeout(5)
        theirs.setblocking(False)
        for one in answers:
            theirs.send(one)
        monkeypatch.setattr(netlink, "open_socket", lambda *_: ours)
        netlink.NetlinkDriver(OPTIONS)
        sent = []
        while True:
            try:
                sent.append(theirs.recv(4096))
            except BlockingIOError:
                return sent


def test_packets_that_come_before_the_answer_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that would wait for a verdict fill the queue."""
    sent = bind(monkeypatch, answer(), packet(7), packet(8), answer())
    kinds = [struct.unpack_from("=H", one, 4)[0] for one in sent]
    assert kinds == [3 << 8 | 2, 3 << 8 | 2, VERDICT, VERDICT]
    # NFQA_VERDICT_HDR: NF_DROP, and the packet's number.
    assert [one[24:] for one in sent[2:]] == [struct.pack("!II", 0, n) for n in (7, 8)]


def test_a_queue_that_is_taken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=rf"^\[Errno {errno.EBUSY}\]"):
        bind(monkeypatch, answer(errno.EBUSY))
    with pytest.raises(OSError, match=rf"^\[Errno {errno.ENOMEM}\]"):
        bind(monkeypatch, answer(), packet(1), answer(errno.ENOMEM))
