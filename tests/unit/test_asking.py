"""What the commands print, and how they take durations."""

import click
import pytest
from click.testing import CliRunner

from featherlb.cli.asking import DURATION, short_number, short_time


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1.0k"),
        (9949, "9.9k"),
        (9951, "10k"),
        (999_499, "999k"),
        (35_000_000, "35M"),
        (2e15, "2000T"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short_number(value) == text
    assert len(text) <= 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (9.94, "9.9s"), (59, "59s"), (60, "1m00s"), (3661, "1h01m"), (90000, "1d1h")],
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert short_time(seconds) == text


@pytest.mark.parametrize(
    ("word", "seconds"), [("30", 30), ("1.5", 1.5), ("500ms", 0.5), ("10m", 600), ("1h", 3600)]
)
def test_durations(word: str, seconds: float) -> None:
    assert DURATION.convert(word, None, None) == seconds


def test_a_wrong_duration_is_a_usage_error() -> None:
    @click.command()
    @click.option("--for", "duration", type=DURATION)
    def command(duration: float) -> None: ...

    result = CliRunner().invoke(command, ["--for", "soon"])
    assert result.exit_code == 2
    assert "'soon' is not a duration" in result.output
