"""The level of the log, which operators change at run time."""

import logging
from enum import StrEnum

log = logging.getLogger("featherlb")


class LogLevel(StrEnum):
    """The minimum level that is logged; `debug` logs each new flow."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"


def current() -> LogLevel:
    """The level in force."""
    return LogLevel(logging.getLevelName(log.getEffectiveLevel()).lower())


def use(level: LogLevel) -> None:
    log.setLevel(level.upper())
