"""Configuration: YAML text or command-line options to a checked, frozen `Config`.

Two steps: `loader` turns text into plain data that knows its lines, `schema` and `checks`
turn data into meaning. `resolve` then replaces names by addresses. Every fault of an input is
reported together, as one ConfigError.

What reads YAML (`file`) and what writes it (`writer`) are not imported here: who does neither
starts sooner.
"""

import os
from pathlib import Path

from featherlb.config.checks import advise
from featherlb.config.command_line import from_command_line
from featherlb.config.resolve import resolve
from featherlb.config.types import (
    AUTO,
    ApiConfig,
    BackendConfig,
    Config,
    ServiceConfig,
    SourceConfig,
    VipConfig,
)
from featherlb.core.pools.schedulers import is_file_reference

__all__ = [
    "AUTO",
    "ApiConfig",
    "BackendConfig",
    "Config",
    "ServiceConfig",
    "SourceConfig",
    "VipConfig",
    "absolute_scheduler",
    "advise",
    "find_config",
    "from_command_line",
    "resolve",
]

SEARCH_PATH = (Path("featherlb.yaml"), Path("/etc/featherlb/featherlb.yaml"))


def find_config() -> Path | None:
    """The file that is read when none is named: the first that exists of `SEARCH_PATH`."""
    # Path.is_file would raise where this user may not enter the directory.
    return next((path for path in SEARCH_PATH if os.path.isfile(path)), None)


def absolute_scheduler(name: str, directory: Path) -> str:
    """The name of a scheduler with the path, if it is one of a user's file, made absolute."""
    return str((directory / name).absolute()) if is_file_reference(name) else name
