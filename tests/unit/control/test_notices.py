"""What the log says of the state in force, and doesn't repeat."""

import asyncio

import pytest

from featherlb import host
from featherlb.config.file import parse
from featherlb.config.resolve import resolve
from featherlb.control.events import Events
from featherlb.control.notices import Notices
from featherlb.control.transition import State

WEB = "- {name: web, vip: 10.0.0.10:80, backends: ['10.0.1.1:80'], prefer: {labels: {zone: b}}}"
EMPTY = "- {name: mail, vip: 10.0.0.10:25}"


def state(*services: str) -> State:
    config = parse("workers: 2\nservices:\n" + "\n".join(services), "lb.yaml")
    return State(config, services=resolve(config, lambda name: []))


def test_only_what_is_new_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "featherlb")
    notices = Notices(Events())

    def announced(*services: str) -> list[str]:
        caplog.clear()
        asyncio.run(notices.announce(state(*services), host.Options()))
        return [f"{one.levelname} {one.getMessage()}" for one in caplog.records]

    first = announced(WEB, EMPTY)
    assert [line.split()[:2] for line in first] == [
        ["WARNING", "lb.yaml:3:"],
        ["INFO", "web:"],
        ["INFO", "mail:"],
        ["WARNING", "mail"],
    ]
    assert announced(WEB, EMPTY) == []
    more = WEB.replace("'10.0.1.1:80'", "'10.0.1.1:80', '10.0.1.2:80'")
    assert announced(more, EMPTY) == [
        "INFO web: tcp on 10.0.0.10:80, round-robin, dnat, nfqueue to 10.0.1.1:80, 10.0.1.2:80"
    ]
    assert announced(more) == []
    # It is new again.
    assert announced(more, EMPTY) == first[2:]
