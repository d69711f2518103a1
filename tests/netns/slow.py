"""Backends that are slow to answer: their SYN-ACKs wait in a queue. A server that accepts late
delays none, as its kernel sends them, and not every kernel has netem."""

import os
import select
import threading
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

from netfilterqueue import NetfilterQueue

from featherlb.lab import Node

QUEUE = "77"
RULE = ["OUTPUT", "-p", "tcp", "--tcp-flags", "SYN,ACK", "SYN,ACK"]
RULE += ["-j", "NFQUEUE", "--queue-num", QUEUE]


class Slow:
    """While the block runs, the node's SYN-ACKs leave `delay` seconds late."""

    def __init__(self, node: Node, delay: float) -> None:
        self.node = node
        self.delay = delay
        self._held: deque[tuple[float, Any]] = deque()
        self._thread = threading.Thread(target=self._run)
        self._wakeup, self._stop = os.pipe()

    def __enter__(self) -> Self:
        self._queue = self.node.call(NetfilterQueue)
        self._queue.bind(int(QUEUE), self._hold)
        self._thread.start()
        self.node.run(["iptables", "-A", *RULE])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.node.run(["iptables", "-D", *RULE])
        os.close(self._stop)
        self._thread.join()
        self._queue.unbind()
        os.close(self._wakeup)

    def _hold(self, packet: Any) -> None:
        packet.retain()
        self._held.append((time.monotonic() + self.delay, packet))

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._queue.get_fd(), select.POLLIN)
        poller.register(self._wakeup, select.POLLIN)
        while True:
            wait = 1000 * (self._held[0][0] - time.monotonic()) if self._held else None
            ready = poller.poll(None if wait is None else max(0.0, wait))
            if any(descriptor == self._wakeup for descriptor, _ in ready):
                break
            if ready:
                self._queue.run(block=False)
            while self._held and self._held[0][0] <= time.monotonic():
                self._held.popleft()[1].accept()
        for _, packet in self._held:
            packet.accept()
