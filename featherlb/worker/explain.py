"""Answers what a packet would meet, without changing anything by that.

A custom scheduler may change anything when it picks, so it is asked in a copy of the process
(fork(2)), which ends with its answer.
"""

import os
import select
import signal
from collections.abc import Callable

from featherlb.core.path.export import Views
from featherlb.model.errors import HostError
from featherlb.worker.data import dump, load
from featherlb.worker.protocol import Explain, Explained

PATIENCE = 0.5
"""Seconds that a copy may take. Packets wait meanwhile, but they would wait for the scheduler as
well."""


def answer(views: Views, question: Explain, now: float) -> Explained:
    """The answer to a question, at this time (monotonic)."""
    pool = views.find_pool(question.protocol, question.vip)
    if pool is None:
        return Explained(None, f"the worker has no service {question.vip}/{question.protocol}")

    def ask() -> Explained:
        return Explained(views.explain(pool, question.protocol, question.client, question.vip, now))

    if pool.rewindable:
        return ask()
    try:
        return in_a_copy(ask)
    except HostError as error:
        return Explained(None, f"{pool.service.scheduler}: {error}")


def in_a_copy(compute: Callable[[], Explained]) -> Explained:
    """What this returns in a copy of the process; HostError if it fails there."""
    reader, writer = os.pipe()
    try:
        copy = os.fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        raise HostError(f"cannot copy the worker: {error.strerror}") from None
    if copy == 0:
        _compute(compute, writer)
    os.close(writer)
    try:
        data = _read(reader)
    finally:
        os.close(reader)
        os.kill(copy, signal.SIGKILL)
        os.waitpid(copy, 0)
    try:
        answer: Explained = load(data, Explained)
    except ValueError:
        raise HostError(f"the scheduler did not answer within {PATIENCE:g} s") from None
    return answer


def _compute(compute: Callable[[], Explained], writer: int) -> None:
    """In the copy: compute, write, end; nothing of the original's is flushed or closed."""
    try:
        data = dump(compute(), Explained)
        while data:
            data = data[os.write(writer, data) :]
    finally:
        os._exit(0)


def _read(reader: int) -> bytes:
    """All that the copy writes until it ends, or until it takes too long."""
    data = b""
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    while poller.poll(PATIENCE * 1000):
        if not (more := os.read(reader, 1 << 16)):
            break
        data += more
    return data
