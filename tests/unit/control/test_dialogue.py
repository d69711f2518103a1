"""Questions to a worker and its answers, over a real pair of sockets."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from featherlb.control.dialogue import Dialogue
from featherlb.model.errors import HostError
from featherlb.worker.protocol import (
    Alarm,
    Applied,
    Apply,
    Channel,
    Ended,
    EndFlows,
    Failed,
    FromWorker,
    GetOutcomes,
    Outcomes,
)


@contextmanager
def pair(on_alarm: Callable[[], None] = lambda: None) -> Iterator[tuple[Dialogue, Channel]]:
    """A dialogue and the worker's end of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    worker = Channel(theirs, of_worker=True)
    dialogue = Dialogue(Channel(ours, of_worker=False), "worker 3", worker.close, on_alarm)
    try:
        yield dialogue, worker
    finally:
        dialogue.close()
        worker.close()


async def question(worker: Channel) -> object:
    """The next message to the worker, which waits for it."""
    while (message := worker.receive()) is None:
        await asyncio.sleep(0)
    return message


@pytest.mark.parametrize("answered", ["before", "after"])
def test_a_cancelled_question_keeps_its_answer_from_the_next(answered: str) -> None:
    """The answer to the cancelled one arrives before or after the next one has been asked."""

    async def run() -> list[FromWorker]:
        with pair() as (dialogue, worker):
            cancelled = asyncio.ensure_future(dialogue.ask(GetOutcomes()))
            assert await question(worker) == GetOutcomes()
            cancelled.cancel()
            if answered == "before":
                worker.send(Outcomes({}))
            following = asyncio.ensure_future(dialogue.ask(Apply((), 0)))
            await asyncio.sleep(0)
            third = asyncio.ensure_future(dialogue.ask(EndFlows((), reset=True)))
            if answered == "after":
                worker.send(Outcomes({}))
            assert isinstance(await question(worker), Apply)
            worker.send(Applied())
            assert isinstance(await question(worker), EndFlows)
            worker.send(Ended(5))
            return [await following, await third]

    assert asyncio.run(asyncio.wait_for(run(), 20)) == [Applied(), Ended(5)]


def test_every_question_to_a_dead_worker_says_so() -> None:
    async def run() -> None:
        with pair() as (dialogue, worker):
            asked = asyncio.ensure_future(dialogue.ask(GetOutcomes()))
            await question(worker)
            worker.close()
            for answer in (asked, dialogue.ask(GetOutcomes()), dialogue.ask(GetOutcomes())):
                with pytest.raises(HostError, match="worker 3 died"):
                    await answer
            assert dialogue.ended.is_set()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_silent_worker_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featherlb.control.dialogue.ANSWER_TIMEOUT", 0.01)

    async def run() -> None:
        with pair() as (dialogue, _):
            with pytest.raises(HostError, match="worker 3 does not answer"):
                await dialogue.ask(GetOutcomes())
            await dialogue.ended.wait()

    asyncio.run(asyncio.wait_for(run(), 20))


def test_a_refusal_is_an_error() -> None:
    async def run() -> None:
        with pair() as (dialogue, worker):
            asked = asyncio.ensure_future(dialogue.ask(GetOutcomes()))
            await question(worker)
            worker.send(Failed("the queue is taken"))
            with pytest.raises(HostError, match="the queue is taken"):
                await asked

    asyncio.run(asyncio.wait_for(run(), 20))


@pytest.mark.parametrize("sent", [b"\x03\x00\x00\x00abc", b"\xff\xff\xff\xff"])
def test_a_worker_that_sends_no_message_is_ended(sent: bytes) -> None:
    """Neither garbage nor a length that would fill the memory is taken."""

    async def run() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ended: list[str] = []
        dialogue = Dialogue(
            Channel(ours, of_worker=False), "worker 3", lambda: ended.append("yes"), lambda: None
        )
        theirs.sendall(sent)
        with pytest.raises(HostError, match="worker 3"):
            await dialogue.ask(GetOutcomes())
        assert dialogue.ended.is_set()
        assert ended == ["yes"]
        dialogue.close()
        theirs.close()

    asyncio.run(run())


def test_without_memory_it_tries_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And neither logs without end nor loses the answer."""
    receive = Channel.receive
    tries = 0

    def fails_twice(channel: Channel) -> object:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise MemoryError
        return receive(channel)

    async def run() -> FromWorker:
        with pair() as (dialogue, worker):
            asked = asyncio.ensure_future(dialogue.ask(GetOutcomes()))
            assert await question(worker) == GetOutcomes()
            worker.send(Outcomes({}))
            monkeypatch.setattr(Channel, "receive", fails_twice)
            return await asked

    monkeypatch.setattr("featherlb.control.dialogue.MEMORY_PAUSE", 0.01)
    assert asyncio.run(run()) == Outcomes({})
    assert caplog.messages == ["no memory to read what worker 3 has sent: trying again"] * 2


def test_an_alarm_is_no_answer() -> None:
    async def run() -> tuple[FromWorker, list[str]]:
        alarms: list[str] = []
        with pair(lambda: alarms.append("alarm")) as (dialogue, worker):
            asked = asyncio.ensure_future(dialogue.ask(GetOutcomes()))
            await question(worker)
            worker.send(Alarm())
            worker.send(Outcomes({}))
            return await asked, alarms

    assert asyncio.run(run()) == (Outcomes({}), ["alarm"])
