"""Unexpected exceptions as text."""

import logging
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import featherlb
from featherlb.model.errors import FeatherlbError

if TYPE_CHECKING:
    # Workers need none of it, and it would be a large part of their start.
    import asyncio

log = logging.getLogger("featherlb")

_PACKAGE = Path(featherlb.__file__).parent


def explain(error: BaseException) -> str:
    """An exception in one line: its type, its message, and the place in featherlb's code."""
    place = _place(traceback.extract_tb(error.__traceback__))
    place = f" ({place})" if place else ""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if message else ''}{message}{place}"


def whereabouts(task: "asyncio.Task[Any]") -> str:
    """The place in featherlb's code where a task waits; empty if it can't be told."""
    frames = []
    waiting: Any = task.get_coro()
    while frame := getattr(waiting, "cr_frame", None):
        frames.append(traceback.FrameSummary(frame.f_code.co_filename, frame.f_lineno, ""))
        waiting = waiting.cr_await
    return _place(frames)


def sentence(error: BaseException) -> str:
    """An exception for operators: a FeatherlbError is a sentence already."""
    return str(error) if isinstance(error, FeatherlbError) else explain(error)


def log_traceback(error: BaseException) -> None:
    """Log the whole traceback, at debug level."""
    if log.isEnabledFor(logging.DEBUG):
        # In the message: the JSON format has no other place for it.
        log.debug("%s", whole(error))


def whole(error: BaseException) -> str:
    """The traceback, in many lines."""
    return "".join(traceback.format_exception(error)).rstrip()


def _place(frames: Sequence[traceback.FrameSummary]) -> str:
    """File and line of the innermost frame, of featherlb's code if there is one."""
    own = [frame for frame in frames if _PACKAGE in Path(frame.filename).parents] or frames
    if not own:
        return ""
    path = Path(own[-1].filename)
    name = path.relative_to(_PACKAGE) if _PACKAGE in path.parents else path.name
    return f"{name}:{own[-1].lineno}"
