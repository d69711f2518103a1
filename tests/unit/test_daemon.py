"""The process around the controller: when it feeds the systemd watchdog, and what it logs."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from featherlb.control.events import Events
from featherlb.control.systemd import Notifier
from featherlb.control.tasks import GOOD_SPELL, MAX_FAILURES, Tasks
from featherlb.daemon import feed_watchdog, log_callback


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """In the place of systemd; its address is `notify`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        yield receiver


def test_the_watchdog_is_fed_while_no_vital_task_keeps_failing(
    manager: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    fail = asyncio.Event()
    failures = 0

    async def pause(seconds: float) -> None:
        await asyncio.sleep(0)

    async def task() -> None:
        nonlocal failures
        await fail.wait()
        if failures < MAX_FAILURES:
            failures += 1
            raise OSError(24, "Too many open files")
        await asyncio.Event().wait()

    async def heard() -> bytes:
        async with asyncio.timeout(20):
            return await asyncio.get_running_loop().sock_recv(manager, 100)

    async def run() -> None:
        nonlocal now
        tasks = Tasks(Events(), lambda: now, pause)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"}
        stop = asyncio.Event()
        feeding = asyncio.create_task(feed_watchdog(Notifier(environment), tasks, stop))
        tasks.start("names", task)
        assert await heard() == b"WATCHDOG=1"
        fail.set()
        async with asyncio.timeout(20):
            while "no longer fed" not in caplog.text:
                await asyncio.sleep(0.01)
        # What was sent before.
        with suppress(BlockingIOError):
            while manager.recv(100):
                pass
        # The task runs well again, and after a while it is believed.
        now += GOOD_SPELL - 1
        await asyncio.sleep(0.1)  # ten rounds of feeding, in which nothing is to happen
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        now += 1
        assert await heard() == b"WATCHDOG=1"
        stop.set()
        await feeding
        await tasks.stop()
        assert caplog.text.count("no longer fed") == 1

    with caplog.at_level(logging.ERROR, "featherlb"):
        asyncio.run(run())


def test_it_ends_at_once_without_systemd() -> None:
    async def run() -> None:
        stop = asyncio.Event()
        feeding = asyncio.create_task(feed_watchdog(Notifier({}), Tasks(Events()), stop))
        stop.set()
        await asyncio.wait_for(feeding, 20)

    asyncio.run(run())


def test_an_exception_in_a_callback_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log_callback)
        loop.call_soon([].pop)
        await asyncio.sleep(0)
        loop.call_exception_handler({"message": "something is odd"})

    with caplog.at_level(logging.ERROR, "featherlb"):
        asyncio.run(run())
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("Exception in callback list.pop")
    assert "IndexError: pop from empty list" in first
    assert "\n" not in first
    assert second == "something is odd"
