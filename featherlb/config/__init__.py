"""Configuration: YAML text or command-line options to a checked, frozen `Config`.

Two steps: `loader` turns text into plain data with line numbers; `schema` and `checks` validate
the data. `resolve` then replaces names with addresses. All faults of an input are reported
together, as one ConfigError.

`file` (reads YAML) and `writer` (writes it) are not imported here: commands that need neither start
faster.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featherlb.config.checks import advise
from featherlb.config.command_line import from_command_line
from featherlb.config.resolve import Place, Places, resolve
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
    "SEARCH_PATH",
    "ApiConfig",
    "BackendConfig",
    "Config",
    "Place",
    "Places",
    "ServiceConfig",
    "SourceConfig",
    "VipConfig",
    "absolute_code",
    "absolute_command",
    "absolute_reference",
    "advise",
    "find_config",
    "from_command_line",
    "resolve",
]

SEARCH_PATH = (Path("featherlb.yaml"), Path("/etc/featherlb/featherlb.yaml"))


def find_config() -> Path | None:
    """The default configuration file: the first of `SEARCH_PATH` that exists."""
    # Path.is_file would raise if this user may not enter the directory.
    return next((path for path in SEARCH_PATH if os.path.isfile(path)), None)


def absolute_command(command: Sequence[str], directory: Path) -> tuple[str, ...]:
    """A check's program and arguments; its path, if it isn't a name, is made absolute, and so are
    arguments that begin with `./` or `../`."""

    def absolute(word: str, is_path: bool) -> str:
        return os.path.normpath(directory.absolute() / word) if is_path else word

    return tuple(
        absolute(word, word.startswith(("./", "../")) or (at == 0 and "/" in word))
        for at, word in enumerate(command)
    )


def absolute_reference(name: str, directory: Path) -> str:
    """The name of a scheduler, or of other code; the path of a user's file is made absolute."""
    return str((directory / name).absolute()) if is_file_reference(name) else name


def absolute_code(service: ServiceConfig, directory: Path) -> ServiceConfig:
    """The service, with absolute paths of users' files."""
    return replace(
        service,
        scheduler=absolute_reference(service.scheduler, directory),
        on_open=absolute_reference(service.on_open, directory),
        on_close=absolute_reference(service.on_close, directory),
        on_backend_change=absolute_reference(service.on_backend_change, directory),
        hash_on=tuple(
            replace(part, key=absolute_reference(part.key, directory)) for part in service.hash_on
        ),
    )
