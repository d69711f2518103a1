"""Blocking calls: there is room for all of them, and the end waits for none that doesn't return."""

import asyncio
import subprocess
import sys
import threading

import pytest

from featherlb.control import threads
from featherlb.control.threads import Threads

CALLS = 100
"""More than asyncio's own pool has threads."""


def test_calls_that_do_not_return_keep_neither_others_waiting_nor_the_process() -> None:
    code = f"""
import asyncio, threading
from featherlb.control.threads import Threads

async def run():
    asyncio.get_running_loop().set_default_executor(Threads())
    for _ in range({CALLS}):
        asyncio.ensure_future(asyncio.to_thread(threading.Event().wait))
    await asyncio.sleep(0)
    print(await asyncio.to_thread(lambda: "answered"))

asyncio.run(run())
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["answered", "ended"]


def test_results_errors_and_threads_that_are_used_again() -> None:
    def fail() -> None:
        raise OSError(24, "Too many open files")

    async def run() -> tuple[set[int], int]:
        asyncio.get_running_loop().set_default_executor(Threads())
        with pytest.raises(OSError, match="Too many open files"):
            await asyncio.to_thread(fail)
        before = threading.active_count()
        used = {await asyncio.to_thread(threading.get_ident) for _ in range(CALLS)}
        return used, threading.active_count() - before

    used, more = asyncio.run(run())
    # A thread may take the next call just before it counts as idle.
    assert len(used) <= 1 + more < CALLS / 2


def test_the_end_waits_for_calls_that_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "PATIENCE", 60)
    begun, release = threading.Event(), threading.Event()
    done: list[str] = []

    def work() -> None:
        begun.set()
        release.wait()
        done.append("work")

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(Threads())
        task = asyncio.ensure_future(asyncio.to_thread(work))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        release.set()

    asyncio.run(run())
    assert done == ["work"]
