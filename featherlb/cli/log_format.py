"""The log of `featherlb up`, on stderr: featherlb's own, and what libraries have to say."""

import json
import logging
import sys
from datetime import UTC, datetime

from featherlb.control import log_level
from featherlb.control.log_level import LogLevel
from featherlb.system.failure import explain

OWN = "featherlb"


def set_up(log_format: str, level: LogLevel) -> None:
    """Log in this format, `text` or `json`, from this level on; libraries log warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logger = logging.getLogger()
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    log_level.use(level)


class TextFormatter(logging.Formatter):
    """Each line of a message is a line of the log, with time and level."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s ")

    def format(self, record: logging.LogRecord) -> str:
        record.asctime = self.formatTime(record)
        head = self.formatMessage(record)
        return "\n".join(head + line for line in _message(record).splitlines() or [""])


class JsonFormatter(logging.Formatter):
    """One JSON object per line, with an ISO 8601 time in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "message": _message(record)}
        return json.dumps(line)


def _message(record: logging.LogRecord) -> str:
    """The message, of a library with the logger's name, and the exception in one line."""
    text = record.getMessage()
    if record.name.split(".")[0] != OWN:
        text = f"{record.name}: {text}"
    if record.exc_info and record.exc_info[1] is not None:
        text = f"{text}: {explain(record.exc_info[1])}"
    return text
