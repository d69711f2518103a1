"""Worker processes as the supervisor sees them, without a queue."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest

from featherlb.control.workers import WorkerProcess, greet
from featherlb.datapaths.base import QueueOptions
from featherlb.model import Driver, Timeouts, Topology
from featherlb.model.shard import Shard
from featherlb.worker.protocol import Apply, SetTopology, Start, ToWorker
from tests.descriptors import descriptors_left, open_descriptors
from tests.world import ONE, service

START = Start(
    shard=Shard(0, 1, 0),
    queue=QueueOptions(0, Driver.NETLINK, 1, False),
    max_flows=16,
    timeouts=Timeouts(),
    hash_key=b"",
    cookie_key=bytes(16),
    save="",
)


def test_a_worker_that_can_not_be_started_keeps_no_descriptors() -> None:
    """It is tried again and again: what each attempt kept would make the next one fail, too."""

    async def run() -> int:
        before = open_descriptors()
        failures = 0
        for count in range(100):
            worker = None
            with descriptors_left(count), suppress(OSError):
                worker = WorkerProcess(START, lambda: None)
            if worker is not None:
                worker.stop()
                worker.forget()
                break
            failures += 1
            assert open_descriptors() == before, count
        assert open_descriptors() == before
        return failures

    assert asyncio.run(run()) > 3


def test_a_new_worker_gets_what_changes_while_it_starts() -> None:
    first, second = Apply((), 0), Apply((service(ONE),), 0)
    topology = SetTopology(Topology())
    greetings: list[Sequence[Apply | SetTopology]] = [
        [first, topology],
        [second, topology],
        [second, topology],
    ]
    sent: list[ToWorker] = []

    async def ask(message: ToWorker) -> None:
        sent.append(message)

    asyncio.run(greet(ask, lambda: greetings.pop(0)))
    assert sent == [first, topology, second]
    assert not greetings


def test_a_worker_that_dies_is_no_answer() -> None:
    async def run() -> None:
        worker = WorkerProcess(START, lambda: None)
        worker.process.kill()
        async with asyncio.timeout(20):
            await worker.gone.wait()
            with pytest.raises(Exception, match="worker 0 died"):
                await worker.ask(Apply((), 0))
        worker.stop()
        worker.forget()

    asyncio.run(run())
