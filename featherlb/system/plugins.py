"""Loads users' schedulers, keys and hooks from files, schedulers also from entry points, and
registers them.

The core does no I/O, so a process calls this before it reads the configuration (entry points) or
applies services (files; entry points where needed).
"""

import ast
import inspect
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType

from featherlb.core.pools import keys
from featherlb.core.pools.guard import Guard
from featherlb.core.pools.schedulers import Scheduler, scheduler
from featherlb.model.errors import ConfigError
from featherlb.model.user_code import CodeKind, UserCode

ENTRY_POINT_GROUP = "featherlb.schedulers"
_hooks: dict[str, Guard] = {}
"""By reference."""


def read(reference: str) -> bytes:
    """The code of the file in a reference such as `/etc/my_sched.py:pick`. ConfigError if it can't
    be read."""
    path, _ = _parts(reference)
    try:
        return path.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError([f"{path} can't be read ({reason}): fix the path"]) from None


def load(reference: str, code: UserCode) -> None:
    """Run the code of a file, and register the class or function that the reference names under
    that name. ConfigError with the line if it is unusable.

    The code is read once and passed on, so that all processes run the same.
    """
    path, attribute = _parts(reference)
    # Not through the import system: its bytecode cache misses an edit within a second and
    # would leave a directory owned by root beside the user's file.
    module = ModuleType(f"featherlb_user_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(code.text, path, "exec"), module.__dict__)
    except Exception as error:
        place = f"{path}:{_line_of_error(error, str(path))}"
        message = error.msg if isinstance(error, SyntaxError) else str(error)
        reason = " ".join(f"{type(error).__name__}: {message}".split())
        raise ConfigError([f"{place}: the {code.kind} does not load: {reason}"]) from error
    if not hasattr(module, attribute):
        raise ConfigError([f"{path} defines no '{attribute}': add it"])
    found = getattr(module, attribute)
    fault = _fault(found) if code.kind is CodeKind.SCHEDULER else _fault_of(code.kind, found)
    if fault:
        raise ConfigError([f"{path}:{_line_of(code.text, attribute)}: '{attribute}' {fault}"])
    if code.kind is CodeKind.SCHEDULER:
        _register(reference, found)
    elif code.kind is CodeKind.HOOK:
        _hooks[reference] = Guard(f"the hook {reference}", found, time.perf_counter)
    else:
        keys.register(reference, found, time.perf_counter)


def hook(reference: str) -> Guard:
    """The hook that was loaded from this reference."""
    return _hooks[reference]


def hooks() -> dict[str, Guard]:
    """All that were loaded, by their names."""
    return {one.name: one for one in _hooks.values()}


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
        if fault := _fault(code):
            raise ConfigError([f"scheduler '{entry_point.name}' {fault}"])
        _register(entry_point.name, code)


def _parts(reference: str) -> tuple[Path, str]:
    """The file, and the name in it."""
    path, _, attribute = reference.rpartition(":")
    return Path(path), attribute


def _line_of_error(error: Exception, path: str) -> int:
    """The line of a file that an error comes from."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno or 1
    frames = traceback.extract_tb(error.__traceback__)
    return next((one.lineno for one in reversed(frames) if one.filename == path), None) or 1


def _line_of(code: bytes, name: str) -> int:
    """The line that gives a global name its last value."""
    line = 1
    for node in ast.parse(code).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        names = [getattr(one, "name", getattr(one, "id", "")) for one in targets]
        line = node.lineno if name in names else line
    return line


def _fault(code: object) -> str:
    """What is wrong with a scheduler, as far as that shows without a packet; empty if nothing."""
    if isinstance(code, type) and issubclass(code, Scheduler):
        if inspect.isabstract(code):
            return "lacks one of the methods __init__, update and pick: define it"
    elif isinstance(code, type) or not callable(code):
        return "is neither a Scheduler class nor a function pick(flow, backends): write either"
    else:
        try:
            inspect.signature(code).bind("flow", "backends")
        except TypeError:
            return "does not take two arguments: define it as pick(flow, backends)"
    return ""


_SIGNATURES = {CodeKind.KEY: ("flow", "payload"), CodeKind.HOOK: ("about",)}
"""The arguments of a function."""


def _fault_of(kind: CodeKind, code: object) -> str:
    """What is wrong with a function of this kind; empty if nothing."""
    arguments = _SIGNATURES[kind]
    expected = f"define it as a function {kind}({', '.join(arguments)})"
    if isinstance(code, type) or not callable(code):
        return f"is no function: {expected}"
    try:
        inspect.signature(code).bind(*arguments)
    except TypeError:
        return f"does not take {len(arguments)} arguments: {expected}"
    return ""


def _register(name: str, code: object) -> None:
    try:
        scheduler(name)(code)  # type: ignore[type-var]  # `_fault` has checked it
    except ValueError as error:
        raise ConfigError([f"scheduler '{name}': {error}"]) from None
