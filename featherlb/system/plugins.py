"""Loads custom schedulers from files and entry points, and registers them.

The core does no I/O, so a process calls this before it reads the configuration (entry points) or
applies services (files; entry points where needed).
"""

import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from featherlb.core.pools.schedulers import Scheduler, is_file_reference, scheduler
from featherlb.model.errors import ConfigError

ENTRY_POINT_GROUP = "featherlb.schedulers"


def read_files(names: Iterable[str]) -> dict[str, bytes]:
    """The code of each file that these scheduler names refer to, by reference, such as
    `/etc/my_sched.py:pick`. ConfigError if a file can't be read."""
    return {name: _read(name) for name in names if is_file_reference(name)}


def load(reference: str, code: bytes) -> None:
    """Run the code of a file, and register the class or function that the reference names as a
    scheduler of that name. ConfigError if it is unusable.

    The code is read once and passed on, so that all processes run the same.
    """
    path, attribute = _parts(reference)
    # Not through the import system: its bytecode cache misses an edit within a second and
    # would leave a directory owned by root beside the user's file.
    module = ModuleType(f"featherlb_user_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(code, path, "exec"), module.__dict__)
    except Exception as error:
        raise ConfigError(
            [f"scheduler '{reference}' fails to load ({error!r}): fix {path}"]
        ) from error
    if not hasattr(module, attribute):
        raise ConfigError([f"scheduler '{reference}': {path} defines no '{attribute}', add it"])
    _register(reference, getattr(module, attribute))


def load_entry_points() -> None:
    """Register the schedulers of installed packages by the names of their entry points (group
    `featherlb.schedulers`). ConfigError if one fails to load."""
    # It imports half of the standard library, which a worker needs for nothing else.
    from importlib.metadata import entry_points

    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            code = entry_point.load()
        except Exception as error:
            raise ConfigError(
                [
                    f"scheduler '{entry_point.name}' ({entry_point.value}) fails to load "
                    f"({error!r}): fix or uninstall its package"
                ]
            ) from error
        _register(entry_point.name, code)


def _parts(reference: str) -> tuple[Path, str]:
    """The file, and the name in it."""
    path, _, attribute = reference.rpartition(":")
    return Path(path), attribute


def _read(reference: str) -> bytes:
    path, _ = _parts(reference)
    try:
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(
            [f"scheduler '{reference}': {path} can't be read ({reason}): fix the path"]
        ) from None


def _register(name: str, code: object) -> None:
    """Check everything that needs no packet, then register."""
    fault = None
    if isinstance(code, type) and issubclass(code, Scheduler):
        if inspect.isabstract(code):
            fault = "lacks one of the methods __init__, update and pick: define it"
    elif isinstance(code, type) or not callable(code):
        fault = "is neither a Scheduler class nor a function pick(flow, backends): write either"
    else:
        try:
            inspect.signature(code).bind("flow", "backends")
        except TypeError:
            fault = "does not take two arguments: define it as pick(flow, backends)"
    if fault is not None:
        raise ConfigError([f"scheduler '{name}' {fault}"])
    try:
        scheduler(name)(code)  # type: ignore[type-var]  # checked above
    except ValueError as error:
        raise ConfigError([f"scheduler '{name}': {error}"]) from None
