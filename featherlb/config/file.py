"""Reads a configuration file into a checked `Config`."""

from dataclasses import replace
from pathlib import Path

from featherlb.config import absolute_scheduler, checks, loader, routes, schema, services
from featherlb.config.faults import Fault, refuse
from featherlb.config.types import Config
from featherlb.model.errors import ConfigError


def load(path: Path) -> Config:
    """Read a configuration file; ConfigError if it can't be read or has faults."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: this is not UTF-8 text"]) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError([f"{path}: cannot read the configuration: {reason}"]) from None
    return load_text(text, path)


def load_text(text: str, path: Path) -> Config:
    """The configuration in the text of a file with this path; ConfigError if it has faults.

    Relative paths of custom schedulers start at the file's directory.
    """
    config = parse(text, str(path))
    services = (
        replace(service, scheduler=absolute_scheduler(service.scheduler, path.parent))
        for service in config.services
    )
    return replace(config, services=tuple(services))


def parse(text: str, source: str) -> Config:
    """Parse the text of a configuration file; ConfigError with all its faults, by line.

    `source` names the file in the faults.
    """
    document = loader.read(text, source)
    faults = document.faults
    if not isinstance(document.data, dict):
        refuse([schema.unknown_file(document)])
    if "routes" in document.data and "services" in document.data:
        text = "can't be combined with 'services' (expected one of them)"
        refuse([*faults, Fault(document.origin(("routes",)), text)])
    read = routes.read if "routes" in document.data else services.read
    config = read(document, faults)
    refuse([*faults, *checks.check(config)])
    return config
