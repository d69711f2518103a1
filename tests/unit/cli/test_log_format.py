"""What the log looks like, whoever logs."""

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator

import pytest

from featherlb.cli.log_format import JsonFormatter, TextFormatter, set_up
from featherlb.control.log_level import LogLevel, current, use

HEAD = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    loggers = [logging.getLogger(), logging.getLogger("featherlb")]
    before = [(one, one.handlers, one.level) for one in loggers]
    yield
    logging.captureWarnings(False)
    for one, handlers, level in before:
        one.handlers, one.level = handlers, level
        logging.getLogger().manager._clear_cache()  # type: ignore[attr-defined]


def test_each_line_of_a_message_has_time_and_level(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("text", LogLevel.INFO)
    logging.getLogger("featherlb").error("refused: a.yaml:1: no\na.yaml:2: nor this")
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(HEAD + "ERROR refused: a.yaml:1: no", first)
    assert re.fullmatch(HEAD + "ERROR a.yaml:2: nor this", second)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_exception_of_a_library_is_one_line(
    capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    set_up(log_format, LogLevel.WARNING)
    try:
        int("no\nnumber")
    except ValueError:
        logging.getLogger("aiohttp.server").exception("Unhandled exception")
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)["message"] if log_format == "json" else line.partition("ERROR ")[2]
    assert said.startswith("aiohttp.server: Unhandled exception: ValueError: invalid literal")
    assert "test_log_format.py:" in said


def test_the_warnings_of_python_are_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        set_up("json", LogLevel.INFO)
        warnings.warn("this is old", stacklevel=1)
        logging.captureWarnings(False)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["level"] == "warning"
    assert "this is old" in json.loads(line)["message"]


def test_libraries_log_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("text", LogLevel.DEBUG)
    logging.getLogger("aiohttp.server").info("hello")
    logging.getLogger("featherlb").debug("a flow")
    assert [line.partition(",")[2][4:] for line in capsys.readouterr().err.splitlines()] == [
        "DEBUG a flow"
    ]


def test_levels_change_at_run_time(capsys: pytest.CaptureFixture[str]) -> None:
    set_up("text", LogLevel.INFO)
    log = logging.getLogger("featherlb")
    for level in LogLevel:
        use(level)
        assert current() is level
        log.info("at %s", level)
    assert re.findall("at [a-z]+", capsys.readouterr().err) == ["at debug", "at info"]


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_an_exception_without_one_is_none(formatter: logging.Formatter) -> None:
    record = logging.LogRecord("featherlb", logging.INFO, "", 1, "text", (), sys.exc_info())
    assert "None" not in formatter.format(record)
