"""Threads for calls that block: asyncio's default executor, with two differences.

There is always room for one more call, and at the end nobody waits for one that doesn't return. A
configuration file on a dead server or a user's scheduler that loops keeps its thread for good; it
must not keep the host from being reverted, nor the process from ending.
"""

from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Any, ParamSpec, TypeVar

PATIENCE = 1.0
"""Seconds that the end waits for calls under way. A change to the host is none of these: what asked
for it has waited for it."""

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class Threads(ThreadPoolExecutor):
    """For `set_default_executor`, which accepts nothing but a ThreadPoolExecutor."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._idle = Semaphore(0)
        """The threads that wait for a call."""
        self._running: set[Future[Any]] = set()

    def submit(
        self,
        fn: Callable[_Parameters, _Result],
        /,
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> "Future[_Result]":
        """Call it in a thread. RuntimeError if this host has no room for another one."""
        if not self._idle.acquire(blocking=False):
            Thread(target=self._work, name="blocking calls", daemon=True).start()
        future: Future[_Result] = Future()
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        self._calls.put((future, partial(fn, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for the calls under way, but not for long."""
        if wait:
            futures.wait(list(self._running), timeout=PATIENCE)

    def _work(self) -> None:
        while True:
            _perform(*self._calls.get())
            self._idle.release()


def _perform(future: "Future[Any]", call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
