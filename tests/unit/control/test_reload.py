"""Reloads that can't be made."""

import asyncio
import threading

import pytest

from featherlb.config import Config
from featherlb.control.events import Events
from featherlb.control.reload import Reloader, Settings
from featherlb.control.serving import Serving
from featherlb.control.tasks import Tasks
from featherlb.control.threads import Threads
from featherlb.model.errors import HostError


def test_a_file_that_hangs_is_refused_and_the_next_reload_does_not_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("featherlb.control.reload.READ_TIMEOUT", 0.05)

    def load() -> Config:
        threading.Event().wait()
        raise AssertionError

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(Threads())
        events = Events()
        reloader = Reloader(Settings(load=load), Serving(events, Tasks(events)), events)
        for count in (1, 2):
            with pytest.raises(HostError, match=r"could not be read within 0.05 s: its file, or"):
                await reloader.reload()
            assert (reloader.outcome.done, reloader.outcome.refused) == (0, count)
        with pytest.raises(HostError, match="could not be read"):
            await reloader.preview()

    asyncio.run(asyncio.wait_for(run(), 60))
