"""Unexpected exceptions as text."""

import logging
import traceback
from pathlib import Path

import featherlb
from featherlb.model.errors import FeatherlbError

log = logging.getLogger("featherlb")

_PACKAGE = Path(featherlb.__file__).parent


def explain(error: BaseException) -> str:
    """An exception in one line: its type, its message, and the place in featherlb's code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _PACKAGE in Path(frame.filename).parents] or frames
    place = f" ({_shown(own[-1])})" if own else ""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if message else ''}{message}{place}"


def sentence(error: BaseException) -> str:
    """An exception for operators: a FeatherlbError is a sentence already."""
    return str(error) if isinstance(error, FeatherlbError) else explain(error)


def log_traceback(error: BaseException) -> None:
    """Log the whole traceback, at debug level."""
    if log.isEnabledFor(logging.DEBUG):
        # In the message: the JSON format has no other place for it.
        log.debug("%s", "".join(traceback.format_exception(error)).rstrip())


def _shown(frame: traceback.FrameSummary) -> str:
    path = Path(frame.filename)
    name = path.relative_to(_PACKAGE) if _PACKAGE in path.parents else path.name
    return f"{name}:{frame.lineno}"
