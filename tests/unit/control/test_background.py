"""The background tasks of a controller, without a host."""

import asyncio

from featherlb.config import Config
from featherlb.control.background import Background
from featherlb.control.controller import Controller
from featherlb.control.events import Events
from featherlb.control.reload import Settings
from featherlb.control.tasks import Tasks


def test_a_task_behind_a_change_that_does_not_end_hangs() -> None:
    async def run() -> None:
        events = Events()
        tasks = Tasks(events, longest_round=0.01)
        controller = Controller(Settings(load=Config), events, tasks)
        controller.serving.health.changed.set()
        async with controller.serving._applying:
            with events.listen() as heard:
                Background(controller).start()
                while (event := await heard.get()).details != {"task": "health"}:
                    pass
            assert event.message.startswith("task health hangs: no progress for 0.01 s (control/")
            assert "health" in [one.name for one in tasks.states() if one.failing]
            assert not tasks.healthy
            await tasks.stop()
        assert tasks.healthy

    asyncio.run(asyncio.wait_for(run(), 60))
