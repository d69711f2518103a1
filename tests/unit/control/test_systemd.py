"""sd_notify, with a socket in the place of systemd's."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from featherlb.control.systemd import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The socket, and its address as NOTIFY_SOCKET has it."""
    name = f"{tmp_path}/notify" if request.param == "path" else f"@{tmp_path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0"))
        receiver.settimeout(5)
        yield receiver, name


def test_states_are_told(manager: tuple[socket.socket, str]) -> None:
    receiver, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"})
    for tell, said in (
        (notifier.ready, b"READY=1"),
        (notifier.alive, b"WATCHDOG=1"),
        (notifier.stopping, b"STOPPING=1"),
    ):
        tell()
        assert receiver.recv(100) == said
    assert notifier.watchdog_interval == 15


def test_without_systemd_nothing_happens(tmp_path: Path) -> None:
    assert Notifier({}).watchdog_interval is None
    Notifier({}).ready()
    Notifier({"NOTIFY_SOCKET": f"{tmp_path}/gone"}).ready()


def test_a_manager_that_does_not_read_holds_nothing_up(
    manager: tuple[socket.socket, str],
) -> None:
    _, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    # Far more than a socket holds (net.unix.max_dgram_qlen).
    for _ in range(10000):
        notifier.alive()
