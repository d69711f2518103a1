"""Questions to a worker process and its answers, over their socketpair."""

import asyncio
import logging
from collections.abc import Callable

from featherlb.model.errors import HostError
from featherlb.worker.protocol import Alarm, Channel, Failed, FromWorker, Log, ToWorker

log = logging.getLogger("featherlb")

ANSWER_TIMEOUT = 20.0
"""Seconds a worker may take to answer, on a machine that is busy with everything else."""
MEMORY_PAUSE = 1.0
"""Seconds until the next try where there is no memory for a message."""


class Dialogue:
    """One question at a time. A worker answers each with one message, in order, may log, and may
    raise an alarm."""

    def __init__(
        self,
        channel: Channel,
        name: str,
        on_silence: Callable[[], None],
        on_alarm: Callable[[], None],
    ) -> None:
        """`name` is what messages call the worker; `on_silence` ends one that does not answer."""
        self.ended = asyncio.Event()
        """The worker has died, and with it its end of the pair."""
        self._name = name
        self._on_silence = on_silence
        self._on_alarm = on_alarm
        self._channel = channel
        self._lock = asyncio.Lock()
        self._answers: asyncio.Queue[FromWorker] = asyncio.Queue()
        asyncio.get_running_loop().add_reader(channel.fileno(), self._read)

    async def ask(self, message: ToWorker) -> FromWorker:
        """Send a message and wait for its answer; HostError if the worker can't give one."""
        # If the caller is cancelled, the answer is still taken out before the next question is
        # sent, which would otherwise get it.
        answer = await asyncio.shield(self._exchange(message))
        if isinstance(answer, Failed):
            raise HostError(answer.reason)
        return answer

    def close(self) -> None:
        """Close this end, upon which the worker ends."""
        if self._channel.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            asyncio.get_running_loop().remove_writer(self._channel.fileno())
            self._channel.close()

    async def _exchange(self, message: ToWorker) -> FromWorker:
        async with self._lock:
            if self.ended.is_set():
                return Failed(f"{self._name} died")
            if not self._channel.send(message):
                asyncio.get_running_loop().add_writer(self._channel.fileno(), self._write)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    return await self._answers.get()
            except TimeoutError:
                self._on_silence()
                return Failed(f"{self._name} does not answer")

    def _write(self) -> None:
        if self._channel.flush():
            asyncio.get_running_loop().remove_writer(self._channel.fileno())

    def _read(self) -> None:
        try:
            while (message := self._channel.receive()) is not None:
                if isinstance(message, Log):
                    log.log(message.level, message.text)
                elif isinstance(message, Alarm):
                    self._on_alarm()
                else:
                    assert not isinstance(message, ToWorker)
                    self._answers.put_nowait(message)
        except ValueError as error:
            log.error("%s sent what is no message (%s): ending it", self._name, error)
            self._on_silence()
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self.ended.set()
            self._answers.put_nowait(Failed(f"{self._name} sent what is no message"))
        except MemoryError:
            # Whatever waits there keeps waiting.
            log.error("no memory to read what %s has sent: trying again", self._name)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._channel.fileno())
            loop.call_later(MEMORY_PAUSE, self._read_again)
        except EOFError:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self.ended.set()
            self._answers.put_nowait(Failed(f"{self._name} died"))

    def _read_again(self) -> None:
        if self._channel.fileno() >= 0 and not self.ended.is_set():
            asyncio.get_running_loop().add_reader(self._channel.fileno(), self._read)
