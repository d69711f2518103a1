"""What the kernel says, as bytes; requests that fail, for the moment or for good."""

import errno
import socket
import struct
from ipaddress import ip_address

import pytest

from featherlb.model import Neighbour
from featherlb.system import netlink, rtnetlink
from featherlb.system.rtnetlink import parse_link, parse_neighbour

NEW, DELETED = 28, 29
REACHABLE, STALE, FAILED, PERMANENT = 0x02, 0x04, 0x20, 0x80
PROXY = 0x08
MAC = b"\x02\0\0\0\0\1"


def message(address: str, state: int, mac: bytes = MAC, flags: int = 0) -> bytes:
    """As in linux/neighbour.h: struct ndmsg, then attributes that are padded to 4 bytes."""
    packed = ip_address(address).packed
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    header = struct.pack("=BxxxiHBB", family, 7, state, flags, 1)
    attributes = b""
    for kind, value in ((1, packed), (2, mac)):
        if value:
            attributes += struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    return header + attributes


def test_states() -> None:
    for address in ("10.0.1.2", "fe80::1"):
        key = 7, ip_address(address)
        for state in (REACHABLE, STALE):
            assert parse_neighbour(NEW, message(address, state)) == Neighbour(*key, MAC)
        assert parse_neighbour(NEW, message(address, PERMANENT)) == Neighbour(*key, MAC, fixed=True)
        assert parse_neighbour(NEW, message(address, FAILED)) == Neighbour(*key, None)
        assert parse_neighbour(NEW, message(address, FAILED, mac=b"")) == Neighbour(*key, None)
        assert parse_neighbour(DELETED, message(address, REACHABLE)) == Neighbour(*key, None)


def test_what_is_no_neighbour() -> None:
    assert parse_neighbour(NEW, message("10.0.1.2", 0, b"", PROXY)) is None
    bridge = struct.pack("=BxxxiHBB", socket.AF_BRIDGE, 7, REACHABLE, 0, 0)
    assert parse_neighbour(NEW, bridge + struct.pack("=HH", 10, 2) + MAC + b"\0\0") is None
    bare = struct.pack("=BxxxiHBB", socket.AF_INET, 7, REACHABLE, 0, 0)
    assert parse_neighbour(NEW, bare) is None


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


@pytest.mark.parametrize(("master", "member"), [("vrf", False), ("bond", True), ("bridge", True)])
def test_a_member_of_a_vrf_keeps_its_packets(master: str, member: bool) -> None:
    """As in linux/if_link.h: struct ifinfomsg, then IFLA_IFNAME, _ADDRESS, _MTU, _MASTER and
    _LINKINFO with IFLA_INFO_SLAVE_KIND, nested."""
    info = attribute(0x8000 | 18, attribute(4, master.encode() + b"\0"))
    link = parse_link(
        struct.pack("=BxHiII", 0, 1, 7, 0x1 | 0x40, 0)
        + attribute(3, b"eth0\0")
        + attribute(1, MAC)
        + attribute(4, struct.pack("=I", 9000))
        + attribute(10, struct.pack("=I", 3))
        + info
    )
    assert (link.index, link.name, link.mac, link.mtu) == (7, "eth0", MAC, 9000)
    assert (link.up, link.running, link.bridge) == (True, True, False)
    assert link.member is member
    assert link.carries_frames is not member


class Scripted(rtnetlink.Connection):
    """A connection to a kernel whose answers are known before it is asked."""

    def __init__(self, *answers: bytes) -> None:
        super().__init__()
        self._socket.close()
        self._socket, self._kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(5)
        for answer in answers:
            self._kernel.send(answer)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._kernel.close()


MULTI, INTERRUPTED = 0x02, 0x10
ERROR, DONE = 2, 3


def part(request: int, content: bytes = b"", *, kind: int = NEW, flags: int = MULTI) -> bytes:
    """As in linux/netlink.h: struct nlmsghdr, and what follows."""
    header = struct.pack("=IHHII", 16 + len(content), kind, flags, request, 0)
    return header + content + bytes(-len(content) % 4)


def failure(request: int, number: int, kind: int = ERROR) -> bytes:
    return part(request, struct.pack("=i", -number), kind=kind, flags=0)


def raises(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, match=rf"^\[Errno {number}\]")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "PAUSES", (0, 0))


def test_an_interrupted_list_is_read_again() -> None:
    first = part(1, b"old1") + part(1, b"old2", flags=MULTI | INTERRUPTED) + failure(1, 0, DONE)
    second = part(2, b"new1") + failure(2, 0, DONE)
    with Scripted(first, second) as connection:
        assert connection.dump(30, b"") == [b"new1"]
    # The kernel may say so at the end alone.
    first = part(1, b"old1") + part(1, bytes(4), kind=DONE, flags=MULTI | INTERRUPTED)
    with Scripted(first, second) as connection:
        assert connection.dump(30, b"") == [b"new1"]


def test_a_list_that_never_rests_is_taken_as_it_is() -> None:
    answers = [
        part(n, b"%d" % n, flags=MULTI | INTERRUPTED) + failure(n, 0, DONE) for n in (1, 2, 3)
    ]
    with Scripted(*answers) as connection:
        assert connection.dump(30, b"") == [b"3"]


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM, errno.EINTR, errno.EAGAIN])
def test_what_fails_for_the_moment_is_asked_again(number: int) -> None:
    # An error may come instead of a list, or in the middle of one.
    broken = part(2, b"lost") + failure(2, number, DONE)
    answer = part(3, b"found") + failure(3, 0, DONE)
    with Scripted(failure(1, number), broken, answer) as connection:
        assert connection.dump(30, b"") == [b"found"]
    with Scripted(failure(1, number), part(2, b"found", flags=0)) as connection:
        assert connection.get(30, b"") == b"found"
    with Scripted(*(failure(n, number) for n in (1, 2, 3))) as connection, raises(number):
        connection.get(30, b"")


def test_what_fails_for_good_is_not_asked_again() -> None:
    with Scripted(failure(1, errno.ENODEV)) as connection, raises(errno.ENODEV):
        connection.dump(30, b"")
    # Nor is a change, of which nobody knows whether it can be repeated.
    with Scripted(failure(1, errno.ENOBUFS)) as connection, raises(errno.ENOBUFS):
        connection.change(28, 0, b"")


def test_the_rest_of_a_list_that_has_failed_is_left_out() -> None:
    failed = failure(1, errno.ENOBUFS) + part(1, b"rest")
    with Scripted(failed, part(1, b"rest"), part(2, b"new", flags=0)) as connection:
        assert connection.get(30, b"") == b"new"
