"""Configuration: YAML text or command-line options to a checked, frozen `Config`.

Two steps: `loader` turns text into plain data that knows its lines, `schema` and `checks`
turn data into meaning. `resolve` then replaces names by addresses. Every fault of an input is
reported together, as one ConfigError.
"""

import os
from dataclasses import replace
from pathlib import Path

from featherlb.config import checks, loader, routes, schema, services
from featherlb.config.checks import advise
from featherlb.config.command_line import from_command_line
from featherlb.config.faults import Fault, refuse
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
from featherlb.core.scheduler import is_file_reference
from featherlb.errors import ConfigError

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
    "load",
    "parse",
    "resolve",
]

SEARCH_PATH = (Path("featherlb.yaml"), Path("/etc/featherlb/featherlb.yaml"))


def find_config() -> Path | None:
    """The file that is read when none is named: the first that exists of `SEARCH_PATH`."""
    # Path.is_file would raise where this user may not enter the directory.
    return next((path for path in SEARCH_PATH if os.path.isfile(path)), None)


def load(path: Path) -> Config:
    """Read a configuration file; ConfigError if it can't be read or has faults.

    Users' schedulers that it names by a relative path are looked for beside it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: this is not UTF-8 text"]) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError([f"{path}: the configuration can't be read: {reason}"]) from None
    config = parse(text, str(path))
    services = (
        replace(service, scheduler=absolute_scheduler(service.scheduler, path.parent))
        for service in config.services
    )
    return replace(config, services=tuple(services))


def absolute_scheduler(name: str, directory: Path) -> str:
    """The name of a scheduler with the path, if it is one of a user's file, made absolute."""
    return str((directory / name).absolute()) if is_file_reference(name) else name


def parse(text: str, source: str) -> Config:
    """Read the text of a configuration file; ConfigError with all its faults, by line.

    `source` is the name of the file in the faults.
    """
    document = loader.read(text, source)
    faults = document.faults
    if not isinstance(document.data, dict):
        refuse([schema.unknown_file(document)])
    if "routes" in document.data and "services" in document.data:
        text = "stands beside 'services' (expected one of the two)"
        refuse([*faults, Fault(document.origin(("routes",)), text)])
    read = routes.read if "routes" in document.data else services.read
    config = read(document, faults)
    refuse([*faults, *checks.check(config)])
    return config
