"""Reads a configuration file into a checked `Config`."""

from dataclasses import replace
from pathlib import Path

from featherlb.config import (
    absolute_code,
    absolute_command,
    checks,
    loader,
    routes,
    schema,
    services,
)
from featherlb.config.faults import Fault, Origin, refuse
from featherlb.config.types import Config, ListedClients, NetworkFile, ServiceConfig
from featherlb.config.values import network_ranges
from featherlb.model import NetworkSet
from featherlb.model.errors import ConfigError

MAX_NETWORKS = 1_000_000
"""Of a file; as many as a set in the kernel takes (`system/ipset.py`)."""
_MOST_FAULTS = 20
"""Of one file of networks that are reported."""


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

    Relative paths of users' code, of scripts and of files with networks start at the file's
    directory.
    """
    config = parse(text, str(path))
    faults: list[Fault] = []
    found = (_with_files(service, path.parent, faults) for service in config.services)
    config = replace(config, services=tuple(found))
    refuse(faults)
    refuse(fault for service in config.services for fault in checks.lists(service))
    return config


def _with_files(service: ServiceConfig, directory: Path, faults: list[Fault]) -> ServiceConfig:
    """With absolute paths, and with what its files of networks have in them."""
    check = service.health
    if check is not None:
        check = replace(check, command=absolute_command(check.command, directory))
    return replace(
        absolute_code(service, directory),
        health=check,
        allow=_read_lists(service.allow, directory, faults),
        deny=_read_lists(service.deny, directory, faults),
    )


def _read_lists(clients: ListedClients, directory: Path, faults: list[Fault]) -> ListedClients:
    """The list with the content of its files, whose paths are made absolute."""
    return tuple(
        _read_list((directory / one.path).absolute(), faults)
        if isinstance(one, NetworkFile)
        else one
        for one in clients
    )


def _read_list(path: Path, faults: list[Fault]) -> NetworkFile:
    """A file with a network on each line; `#` begins a comment."""
    found: list[tuple[int, int]] = []
    ours: list[Fault] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this is not UTF-8 text"
        ours.append(Fault(Origin(str(path), 1, ""), f"cannot read the networks: {reason}"))
        lines = []
    for number, line in enumerate(lines, 1):
        word = line.partition("#")[0].strip()
        try:
            if word:
                found += network_ranges(word)
        except ValueError as error:
            ours.append(Fault(Origin(str(path), number, ""), str(error)))
            if len(ours) == _MOST_FAULTS:
                break
    if len(found) > MAX_NETWORKS:
        text = f"{len(found):,} networks are too many (expected at most {MAX_NETWORKS:,})"
        ours.append(Fault(Origin(str(path), 1, ""), text))
    faults += ours
    return NetworkFile(str(path), NetworkSet.of_ranges(found))


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
