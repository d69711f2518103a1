"""The differences between two configurations, as text for operators."""

from collections.abc import Iterator

from featherlb.config import Config, ServiceConfig

_FIXED = (
    "queue",
    "workers",
    "fail_open",
    "assign",
    "driver",
    "hash_key",
    "max_flows",
    "timeouts",
    "api",
    "cluster",
)
"""What a running instance can't change."""
_SERVICE = (
    "vips",
    "protocol",
    "scheduler",
    "hash_on",
    "hash_balance",
    "nat",
    "datapath",
    "source_addresses",
    "mss",
    "syn_cookies",
    "sync",
    "one_packet",
    "responses",
    "deny_action",
    "max_flows",
    "max_new",
    "on_backend_down",
    "on_open",
    "on_close",
    "on_backend_change",
    "slow_start",
    "panic_threshold",
)
_SECTIONS = {
    "allow": "list of allowed clients",
    "deny": "list of denied clients",
    "persistence": "persistence",
    "prefer": "preference",
    "redispatch": "redispatch",
    "health": "health check",
    "passive_health": "passive health check",
}
"""Sections of a service, of which only is said that they changed."""
_BACKEND = ("weight", "role", "max_connections", "labels")


def describe(before: Config, after: Config) -> list[str]:
    """What differs, one line each; empty if the two mean the same."""
    old = {service.name: service for service in before.services}
    new = {service.name: service for service in after.services}
    lines = [f"service {name} removed" for name in old if name not in new]
    for name, service in new.items():
        if name not in old:
            lines.append(f"service {name} added")
        else:
            lines += _service(old[name], service)
    if before.resolve_interval != after.resolve_interval:
        lines.append(
            f"resolve interval {before.resolve_interval:g} s -> {after.resolve_interval:g} s"
        )
    if before.restore != after.restore:
        lines.append(f"restore {plain(before.restore)} -> {plain(after.restore)}")
    if before.recorder.dump_when != after.recorder.dump_when:
        lines.append(f"recorder: saved when {after.recorder.dump_when or 'asked'}")
    if before.recorder.size != after.recorder.size:
        lines.append("recorder: size takes effect at the next start only")
    lines += [
        f"{key} takes effect at the next start only"
        for key in _FIXED
        if getattr(before, key) != getattr(after, key)
    ]
    return lines


def _service(old: ServiceConfig, new: ServiceConfig) -> Iterator[str]:
    for key in _SERVICE:
        was, now = getattr(old, key), getattr(new, key)
        if was != now:
            yield f"{new.name}: {key.replace('_', ' ')} {plain(was)} -> {plain(now)}"
    for key, title in _SECTIONS.items():
        if getattr(old, key) != getattr(new, key):
            yield f"{new.name}: {title} changed"
    had = {str(backend): backend for backend in old.backends}
    has = {str(backend): backend for backend in new.backends}
    for name in had:
        if name not in has:
            yield f"{new.name}: backend {name} removed"
    for name, backend in has.items():
        if name not in had:
            yield f"{new.name}: backend {name} added with weight {backend.weight}"
            continue
        for key in _BACKEND:
            was, now = getattr(had[name], key), getattr(backend, key)
            if was != now:
                title = f"backend {name} {key.replace('_', ' ')}"
                yield f"{new.name}: {title} {plain(was)} -> {plain(now)}"


def plain(value: object) -> str:
    """A value as the configuration has it."""
    match value:
        case tuple():
            return ", ".join(map(str, value)) or "none"
        case dict():
            return "; ".join(f"{key}: {plain(one)}" for key, one in value.items()) or "none"
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g} s"
    return str(value)
