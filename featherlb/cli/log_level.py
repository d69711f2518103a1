"""`featherlb log-level`: changes what a running instance logs."""

import click

from featherlb.api import schema
from featherlb.api.client import connect
from featherlb.cli.asking import (
    DURATION,
    instance_option,
    output_option,
    print_json,
    short_time,
)
from featherlb.cli.help import Word, examples
from featherlb.control.log_level import LogLevel


@click.command(
    name="log-level",
    epilog=examples("featherlb log-level debug --for 10m", "featherlb log-level info"),
)
@click.argument("level", type=Word(LogLevel), metavar="LEVEL")
@click.option(
    "--for",
    "duration",
    type=DURATION,
    metavar="TIME",
    help="Return to the previous level after TIME, such as 10m.",
)
@instance_option
@output_option
def log_level(level: str, duration: float | None, instance: int | None, output: str) -> None:
    """Set the minimum LEVEL that a running instance logs: debug, info or warning.

    With debug it logs each new flow, and tracebacks.
    """
    request = schema.LogLevelRequest(level=LogLevel(level), duration=duration)
    answer = connect(instance).post("/v1/log-level", request, schema.LogLevelChange)
    if output == "json":
        print_json(answer)
        return
    ending = "" if answer.remaining is None else f", reverts in {short_time(answer.remaining)}"
    click.echo(f"done: log level {answer.level}{ending}")
