"""Overrides: what operators change at run time, laid over the configuration.

Sans-IO. Overrides are a list in the order they were made; the running configuration is the file's
with all of them applied in turn. So one that expires or is reverted leaves exactly what the others
say. Times are seconds of a monotonic clock.
"""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from featherlb.config import BackendConfig, Config, ServiceConfig
from featherlb.config.expression import Condition
from featherlb.config.faults import Origin
from featherlb.config.types import BackendKey, MaxFlowsConfig, MaxNewConfig
from featherlb.config.values import closest, few, quote
from featherlb.model import CLIENT_PREFIX, Label, Network, Role, join_host_ports
from featherlb.model.errors import ConfigError

_ORIGIN = Origin("", 0, "run-time change")


class Action(StrEnum):
    """What can be done to a backend of a service, or to its conditions for clients."""

    ADD = "add"
    REMOVE = "remove"
    DRAIN = "drain"
    ENABLE = "enable"
    WEIGHT = "weight"
    ALLOW = "allow"
    DENY = "deny"
    MAX_FLOWS = "max-flows"
    MAX_NEW = "max-new"


WEIGHING = (Action.DRAIN, Action.ENABLE, Action.WEIGHT)
"""Those that change weights and nothing else: workers alone have to know of them."""

LISTS = (Action.ALLOW, Action.DENY)
LIMITS = (Action.MAX_FLOWS, Action.MAX_NEW)
LIMITING = (*LISTS, *LIMITS)
"""Those that change the conditions for clients."""

MOST_ON_TRIAL = 50
"""Per cent of a service's new flows that its canaries get, at most: the rest is what they are
compared with."""

_ASPECTS = {
    Action.ADD: "membership",
    Action.REMOVE: "membership",
    Action.DRAIN: "drain",
    Action.ENABLE: "drain",
    Action.WEIGHT: "weight",
}
"""Of two overrides of the same aspect of a backend, the later one wins."""


NO_BACKEND: BackendKey = ("", 0, 0)


@dataclass(frozen=True, slots=True)
class Limiting:
    """A change to a service's conditions for clients: more `networks` on a list, or a limit in
    place of the one for networks with this `prefix` (None: the default); without a limit, there is
    none for these."""

    networks: tuple[Network, ...] = ()
    limit: MaxFlowsConfig | MaxNewConfig | None = None
    prefix: int | None = None

    def __str__(self) -> str:
        if self.networks:
            return few(map(str, self.networks))
        if self.limit is not None:
            return str(self.limit)
        return "off" if self.prefix is None else f"off for /{self.prefix}"


@dataclass(frozen=True, slots=True)
class Canary:
    """A backend is on trial until a time, with a `share` of its service's new flows, in per cent.
    The trial fails once `abort_if` (`control.canary.condition`) is true."""

    share: float
    until: float
    abort_if: Condition


@dataclass(frozen=True, slots=True)
class Override:
    """A change to one backend, which is named as in the configuration, or to the conditions for
    clients.

    `number` is 0 if it isn't in force. `role`, `max_connections` and `labels` apply to a backend
    that is added. The override expires at `until`; at `deadline` the remaining flows of a drained
    backend are reset.
    """

    number: int
    action: Action
    service: str
    key: BackendKey
    """`NO_BACKEND` if it is about clients."""
    weight: int | None = None
    role: Role = Role.PRIMARY
    max_connections: int | None = None
    labels: tuple[Label, ...] = ()
    until: float | None = None
    deadline: float | None = None
    limiting: Limiting = Limiting()
    canary: Canary | None = None
    """With ADD."""
    reason: str = ""
    """Why featherlb has made the change itself."""

    @property
    def backend(self) -> str:
        """As in the configuration; empty if it is about clients."""
        if self.key == NO_BACKEND:
            return ""
        host, port, last_port = self.key
        return join_host_ports(str(host), port, last_port)

    def __str__(self) -> str:
        if self.action in LIMITING:
            return f"{self.action} {self.service} {self.limiting}"
        weight = "" if self.weight is None else f" {self.weight}"
        canary = "" if self.canary is None else f" as a canary, {self.canary.share:g} %"
        return f"{self.action} {self.service} {self.backend}{weight}{canary}"


def with_overrides(config: Config, overrides: Iterable[Override]) -> Config:
    """The configuration with the overrides applied. A drained backend has weight 0."""
    ours: dict[str, list[Override]] = {}
    for override in overrides:
        ours.setdefault(override.service, []).append(override)
    if not ours:
        return config
    return replace(
        config,
        services=tuple(
            _changed(service, ours[service.name]) if service.name in ours else service
            for service in config.services
        ),
    )


def drained(service: ServiceConfig, overrides: Iterable[Override]) -> set[BackendKey]:
    """The backends of a service that an override drains."""
    found: set[BackendKey] = set()
    for override in overrides:
        if override.service == service.name and override.action is Action.DRAIN:
            found.add(override.key)
        elif override.service == service.name and override.action is Action.ENABLE:
            found.discard(override.key)
    return found


def _changed(service: ServiceConfig, overrides: Sequence[Override]) -> ServiceConfig:
    if not overrides:
        return service
    pool = _pool(service, overrides)
    for key in drained(service, overrides) & pool.keys():
        pool[key] = replace(pool[key], weight=0)
    return replace(
        _limited(service, overrides),
        backends=tuple(pool.values()),
    )


def _limited(service: ServiceConfig, overrides: Iterable[Override]) -> ServiceConfig:
    """The service with other conditions for clients."""
    for override in overrides:
        if override.service != service.name:
            continue
        limiting = override.limiting
        match override.action:
            case Action.ALLOW if service.allow:
                service = replace(service, allow=(*service.allow, *limiting.networks))
            case Action.DENY:
                service = replace(service, deny=(*service.deny, *limiting.networks))
            case Action.MAX_FLOWS:
                most = _with_limit(service, service.max_flows, limiting)
                service = replace(service, max_flows=most)
            case Action.MAX_NEW:
                fastest = _with_limit(service, service.max_new, limiting)
                service = replace(service, max_new=fastest)
    return service


def _with_limit(service: ServiceConfig, limits: Sequence[Any], limiting: Limiting) -> Any:
    """Limits with another one for networks of a size, or none for these."""
    wanted = _prefix(service, limiting.prefix)
    kept = [one for one in limits if _prefix(service, one.prefix) != wanted]
    return (*kept, *([limiting.limit] if limiting.limit is not None else ()))


def _prefix(service: ServiceConfig, prefix: int | None) -> int | None:
    """The prefix length of a limit; None if it depends on addresses that are not known yet."""
    hosts = (vip.host for vip in service.vips)
    family = next((host.version for host in hosts if not isinstance(host, str)), None)
    return CLIENT_PREFIX[family] if prefix is None and family is not None else prefix


def _pool(service: ServiceConfig, overrides: Iterable[Override]) -> dict[BackendKey, BackendConfig]:
    """The backends of a service by key, with their weights when they aren't drained."""
    pool = {backend.key: backend for backend in service.backends}
    for override in overrides:
        if override.service != service.name:
            continue
        key = override.key
        match override.action:
            case Action.ADD:
                weight = 1 if override.weight is None else override.weight
                host, port, last_port = key
                pool[key] = BackendConfig(
                    host,
                    port,
                    _ORIGIN,
                    weight,
                    override.role,
                    override.max_connections,
                    last_port,
                    override.labels,
                    0.0 if override.canary is None else override.canary.share,
                )
            case Action.REMOVE:
                pool.pop(key, None)
            case Action.WEIGHT if key in pool and override.weight is not None:
                pool[key] = replace(pool[key], weight=override.weight)
    return pool


def find_service(config: Config, name: str) -> ServiceConfig:
    """A service by its name or by one of its VIPs; ConfigError if there is none."""
    for service in config.services:
        if name == service.name:
            return service
    for service in config.services:
        if name in map(str, service.vips):
            return service
    known = [service.name for service in config.services]
    close = closest(name, known)
    hint = f"did you mean '{close}'?" if close else f"known: {few(known)}"
    raise ConfigError([f"there is no service {quote(name)} ({hint})"])


def add(config: Config, overrides: Sequence[Override], override: Override) -> tuple[Override, ...]:
    """The list with another override at its end, and without those that it replaces; ConfigError if
    it doesn't fit what runs.

    One that changes nothing and doesn't expire is left out itself. A drain of a drained backend
    takes over what it doesn't set: the earlier one's `until` and `deadline`.
    """
    configured = find_service(config, override.service)
    if override.action in LIMITING:
        return _add_limiting(configured, overrides, override)
    pool = _pool(configured, overrides)
    key = override.key
    if override.action is Action.ADD and key in pool:
        raise ConfigError(
            [
                f"{override.backend} is already a backend of '{configured.name}': change its weight"
                f" with `featherlb backend weight`"
            ]
        )
    if override.action is not Action.ADD and key not in pool:
        known = few(map(str, pool.values()))
        raise ConfigError(
            [f"'{configured.name}' has no backend {override.backend} (its backends: {known})"]
        )
    if override.canary is not None:
        _check_canary(configured.name, pool.values(), override.canary)
    earlier = [old for old in overrides if _place(old) == _place(override)]
    replaced = [old for old in earlier if _replaces(override, old)]
    if override.action is Action.DRAIN:
        for old in replaced:
            if old.action is Action.DRAIN:
                override = replace(
                    override,
                    until=old.until if override.until is None else override.until,
                    deadline=old.deadline if override.deadline is None else override.deadline,
                )
    kept = [old for old in overrides if old not in replaced]
    if override.action is Action.ADD and override.until is None and key in _pool(configured, kept):
        # Not the backend of the file, which was removed.
        last = next(old for old in reversed(replaced) if old.action is Action.REMOVE)
        changed = [*kept, replace(last, until=None), override]
    else:
        changed = [*kept, override]
    if override.action is Action.ENABLE and not replaced and not pool[key].weight:
        raise ConfigError(
            [
                f"{override.backend} is not drained, it has weight 0: give it another with"
                f" `featherlb backend weight`"
            ]
        )
    temporary = override.until is not None and override.action is not Action.ENABLE
    if not temporary and _effect(configured, changed) == _effect(configured, kept):
        return tuple(kept)
    return tuple(changed)


def _check_canary(service: str, pool: Collection[BackendConfig], canary: Canary) -> None:
    """ConfigError if there is no room for another canary in a service."""
    others = sum(backend.canary for backend in pool)
    if others + canary.share > MOST_ON_TRIAL:
        taken = f", of which its canaries have {others:g} %" if others else ""
        raise ConfigError(
            [f"a canary can get {MOST_ON_TRIAL} % of the new flows of '{service}'{taken}"]
        )
    if not any(backend.weight and not backend.canary for backend in pool):
        raise ConfigError([f"'{service}' has no other backend to compare a canary with"])


def _add_limiting(
    configured: ServiceConfig, overrides: Sequence[Override], override: Override
) -> tuple[Override, ...]:
    if override.action is Action.ALLOW and not configured.allow:
        raise ConfigError([f"'{configured.name}' has no list of allowed clients: all are allowed"])
    kept = tuple(
        old
        for old in overrides
        if override.until is not None
        or override.action not in LIMITS
        or (old.service, old.action) != (override.service, override.action)
        or _prefix(configured, old.limiting.prefix) != _prefix(configured, override.limiting.prefix)
    )
    changed = (*kept, override)
    if override.until is None and _limited(configured, changed) == _limited(configured, kept):
        return kept
    return changed


def _replaces(new: Override, old: Override) -> bool:
    """Whether an override of a backend ends an earlier one of the same backend."""
    if new.action is Action.DRAIN:
        return _ASPECTS[old.action] == "drain"
    if new.until is not None:
        return False
    membership = new.action in (Action.ADD, Action.REMOVE)
    return membership or _ASPECTS[old.action] == _ASPECTS[new.action]


def _place(override: Override) -> tuple[str, BackendKey]:
    return override.service, override.key


def _effect(service: ServiceConfig, overrides: Sequence[Override]) -> object:
    """What a service is with the overrides: equal ones make no difference."""
    return _pool(service, overrides), drained(service, overrides)


def applicable(config: Config, overrides: Iterable[Override]) -> tuple[Override, ...]:
    """The overrides that still apply to another configuration and change something in it."""
    kept: tuple[Override, ...] = ()
    for override in overrides:
        with suppress(ConfigError):
            kept = add(config, kept, override)
    return kept
