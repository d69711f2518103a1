"""Changes made at run time: what an operator lays over the configuration, and for how long.

Sans-IO; imports `config` and `errors`. Changes are a list in the order they were made; the running
configuration is the file's with all of them applied in turn. So one that ends, by time or by
hand, leaves exactly what the others say. Times are seconds of a monotonic clock.
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
"""Of two changes of one aspect of a backend, the later decides."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one backend, which is named as in the configuration.

    `role` and `max_connections` are those of one that is added. It ends at `until`. At
    `deadline` the flows that a drained backend still has are reset.
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


def running(config: Config, changes: Iterable[Change]) -> Config:
    """The configuration with the changes applied. A drained backend has weight 0."""
    ordered = list(changes)
    return replace(
        config,
        services=tuple(
            _changed(service, [change for change in ordered if change.service == service.name])
            for service in config.services
        ),
    )


def drained(service: ServiceConfig, changes: Iterable[Change]) -> set[tuple[Host, int]]:
    """The backends of a service that a change drains."""
    found: set[tuple[Host, int]] = set()
    for change in changes:
        if change.service == service.name and change.action is Action.DRAIN:
            found.add((change.host, change.port))
        elif change.service == service.name and change.action is Action.ENABLE:
            found.discard((change.host, change.port))
    return found


def _changed(service: ServiceConfig, changes: Sequence[Change]) -> ServiceConfig:
    pool = {(backend.host, backend.port): backend for backend in service.backends}
    for change in changes:
        key = (change.host, change.port)
        match change.action:
            case Action.ADD:
                weight = 1 if change.weight is None else change.weight
                pool[key] = BackendConfig(
                    change.host, change.port, _ORIGIN, weight, change.role, change.max_connections
                )
            case Action.REMOVE:
                pool.pop(key, None)
            case Action.WEIGHT if key in pool and change.weight is not None:
                pool[key] = replace(pool[key], weight=change.weight)
    for key in drained(service, changes) & pool.keys():
        pool[key] = replace(pool[key], weight=0)
    return replace(service, backends=tuple(pool.values()))


def find_service(config: Config, name: str) -> ServiceConfig:
    """A service by its name or by one of its VIPs; ConfigError if there is none."""
    for service in config.services:
        if name == service.name or name in map(str, service.vips):
            return service
    known = ", ".join(service.name for service in config.services) or "none"
    raise ConfigError([f"there is no service '{name}' (there is: {known})"])


def add(config: Config, changes: Sequence[Change], change: Change) -> tuple[Change, ...]:
    """The list with another change at its end; ConfigError if it doesn't fit what runs.

    Earlier changes that it overrides for good are left out.
    """
    service = find_service(running(config, changes), change.service)
    there = any((b.host, b.port) == (change.host, change.port) for b in service.backends)
    if change.action is Action.ADD and there:
        raise ConfigError(
            [
                f"{change.backend} is a backend of '{service.name}' already: change its weight"
                f" with `featherlb backend weight`"
            ]
        )
    if change.action is not Action.ADD and not there:
        known = ", ".join(map(str, service.backends)) or "none"
        raise ConfigError(
            [f"'{service.name}' has no backend {change.backend} (its backends: {known})"]
        )
    if change.until is not None:
        return (*changes, change)
    membership = change.action in (Action.ADD, Action.REMOVE)
    kept = [
        old
        for old in changes
        if (old.service, old.host, old.port) != (change.service, change.host, change.port)
        or not (membership or _ASPECTS[old.action] == _ASPECTS[change.action])
    ]
    return (*kept, change)


def still_fit(config: Config, changes: Iterable[Change]) -> tuple[Change, ...]:
    """The changes that have something to change in another configuration."""
    kept: tuple[Change, ...] = ()
    for change in changes:
        try:
            add(config, kept, change)
        except ConfigError:
            continue
        kept = (*kept, change)
    return kept
