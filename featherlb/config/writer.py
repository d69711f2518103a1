"""Writes a configuration as YAML text that `loader` and `services` read back as an equal one.

Walks the dataclasses and writes each key whose value is not the default. A new field must have its
key's name.
"""

from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import yaml

from featherlb.config.expression import Condition
from featherlb.config.types import (
    BackendConfig,
    Config,
    NetworkFile,
    ServiceConfig,
    SourceConfig,
    VipConfig,
    default_name,
)
from featherlb.model import Endpoint, HashPart, Label, Protocol, Rate, StatusRange

_RENAMED = {"vips": "vip"}


def write(config: Config) -> str:
    """The text of an equal configuration file."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    match value:
        case VipConfig() | Endpoint() | StatusRange() | HashPart():
            return str(value)
        case Protocol() | IPv4Address() | IPv6Address() | IPv4Network() | IPv6Network() | Rate():
            return str(value)
        case NetworkFile():
            return {"file": value.path}
        case SourceConfig():
            return str(value.address)
        case BackendConfig():
            rest = _mapping(value, without=("host", "port", "last_port"))
            return {"address": str(value), **rest} if rest else str(value)
        case Condition():
            return value.text
        case Enum():
            return str(value)
        case (Label(), *_):
            return {label.key: label.value for label in value}
        case tuple() | list():
            return [_plain(item) for item in value]
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case ServiceConfig():
            named = value.name != default_name(value.vips[0], value.protocol)
            return _mapping(value, without=() if named else ("name",))
        case _ if is_dataclass(value):
            return _mapping(value)
    return value


def _mapping(value: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        _RENAMED.get(field.name, field.name): _plain(getattr(value, field.name))
        for field in fields(value)
        if field.compare
        and field.name not in without
        and (field.name == "services" or getattr(value, field.name) not in (None, _default(field)))
    }


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default
