"""Overrides: what operators change at run time, laid over the configuration.

Sans-IO. Overrides are a list in the order they were made; the running configuration is the file's
with all of them applied in turn. So one that expires or is reverted leaves exactly what the others
say. Times are seconds of a monotonic clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from featherlb.config import BackendConfig, Config, ServiceConfig
from featherlb.config.faults import Origin
from featherlb.config.types import Host
from featherlb.model import Role, join_host_port
from featherlb.model.errors import ConfigError

_ORIGIN = Origin("", 0, "run-time change")


class Action(StrEnum):
    """What can be done to a backend of a service."""

    ADD = "add"
    REMOVE = "remove"
    DRAIN = "drain"
    ENABLE = "enable"
    WEIGHT = "weight"


_ASPECTS = {
    Action.ADD: "membership",
    Action.REMOVE: "membership",
    Action.DRAIN: "drain",
    Action.ENABLE: "drain",
    Action.WEIGHT: "weight",
}
"""Of two overrides of the same aspect of a backend, the later one wins."""


@dataclass(frozen=True, slots=True)
class Override:
    """A change to one backend, which is named as in the configuration.

    `role` and `max_connections` apply to a backend that is added. The override expires at `until`;
    at `deadline` the remaining flows of a drained backend are reset.
    """

    number: int
    action: Action
    service: str
    host: Host
    port: int
    weight: int | None = None
    role: Role = Role.PRIMARY
    max_connections: int | None = None
    until: float | None = None
    deadline: float | None = None

    @property
    def backend(self) -> str:
        return join_host_port(str(self.host), self.port)

    def __str__(self) -> str:
        weight = "" if self.weight is None else f" {self.weight}"
        return f"{self.action} {self.service} {self.backend}{weight}"


def with_overrides(config: Config, overrides: Iterable[Override]) -> Config:
    """The configuration with the overrides applied. A drained backend has weight 0."""
    ordered = list(overrides)
    return replace(
        config,
        services=tuple(
            _changed(service, [one for one in ordered if one.service == service.name])
            for service in config.services
        ),
    )


def drained(service: ServiceConfig, overrides: Iterable[Override]) -> set[tuple[Host, int]]:
    """The backends of a service that an override drains."""
    found: set[tuple[Host, int]] = set()
    for override in overrides:
        if override.service == service.name and override.action is Action.DRAIN:
            found.add((override.host, override.port))
        elif override.service == service.name and override.action is Action.ENABLE:
            found.discard((override.host, override.port))
    return found


def _changed(service: ServiceConfig, overrides: Sequence[Override]) -> ServiceConfig:
    pool = {(backend.host, backend.port): backend for backend in service.backends}
    for override in overrides:
        key = (override.host, override.port)
        match override.action:
            case Action.ADD:
                weight = 1 if override.weight is None else override.weight
                pool[key] = BackendConfig(
                    *key, _ORIGIN, weight, override.role, override.max_connections
                )
            case Action.REMOVE:
                pool.pop(key, None)
            case Action.WEIGHT if key in pool and override.weight is not None:
                pool[key] = replace(pool[key], weight=override.weight)
    for key in drained(service, overrides) & pool.keys():
        pool[key] = replace(pool[key], weight=0)
    return replace(service, backends=tuple(pool.values()))


def find_service(config: Config, name: str) -> ServiceConfig:
    """A service by its name or by one of its VIPs; ConfigError if there is none."""
    for service in config.services:
        if name == service.name or name in map(str, service.vips):
            return service
    known = ", ".join(service.name for service in config.services) or "none"
    raise ConfigError([f"there is no service '{name}' (known: {known})"])


def add(config: Config, overrides: Sequence[Override], override: Override) -> tuple[Override, ...]:
    """The list with another override at its end; ConfigError if it doesn't fit what runs.

    Earlier ones that it replaces for good are left out.
    """
    service = find_service(with_overrides(config, overrides), override.service)
    there = any((b.host, b.port) == (override.host, override.port) for b in service.backends)
    if override.action is Action.ADD and there:
        raise ConfigError(
            [
                f"{override.backend} is already a backend of '{service.name}': change its weight"
                f" with `featherlb backend weight`"
            ]
        )
    if override.action is not Action.ADD and not there:
        known = ", ".join(map(str, service.backends)) or "none"
        raise ConfigError(
            [f"'{service.name}' has no backend {override.backend} (its backends: {known})"]
        )
    if override.until is not None:
        return (*overrides, override)
    membership = override.action in (Action.ADD, Action.REMOVE)
    kept = [
        old
        for old in overrides
        if (old.service, old.host, old.port) != (override.service, override.host, override.port)
        or not (membership or _ASPECTS[old.action] == _ASPECTS[override.action])
    ]
    return (*kept, override)


def applicable(config: Config, overrides: Iterable[Override]) -> tuple[Override, ...]:
    """The overrides that still apply to another configuration."""
    kept: tuple[Override, ...] = ()
    for override in overrides:
        try:
            add(config, kept, override)
        except ConfigError:
            continue
        kept = (*kept, override)
    return kept
