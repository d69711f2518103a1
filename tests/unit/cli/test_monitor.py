"""`featherlb monitor`."""

import pytest
from click.testing import CliRunner

from featherlb.api import schema
from featherlb.cli import monitor


def test_each_fault_is_a_line_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answering:
        def events(self) -> list[schema.Event]:
            message = "reload refused, nothing changed: lb.yaml:1: no\nlb.yaml:2: nor this"
            return [
                schema.Event(kind="reload-refused", message=message, time="T", missed=3, details={})
            ]

    monkeypatch.setattr(monitor, "connect", lambda instance: Answering())
    result = CliRunner().invoke(monitor.monitor)
    assert result.stdout.splitlines() == [
        "T reload refused, nothing changed: lb.yaml:1: no",
        "T lb.yaml:2: nor this",
    ]
    assert "(3 events lost" in result.stderr
    assert str(result.exception) == "featherlb has stopped"
