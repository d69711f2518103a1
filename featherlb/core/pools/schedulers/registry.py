"""The registry of schedulers by name. A built-in registers its class with `@register`; a custom
class or function is registered with `@scheduler("name")`, or by `featherlb.system.plugins`.
"""

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar, cast

from featherlb.core.pools.schedulers.base import Scheduler
from featherlb.core.pools.schedulers.bounded_load import BoundedLoad
from featherlb.core.pools.schedulers.hash_scheduler import HashScheduler
from featherlb.core.pools.schedulers.hashing import FIVE_TUPLE
from featherlb.core.pools.schedulers.user import PickFunction, UserScheduler
from featherlb.model import HashPart, Service


class SchedulerFactory(Protocol):
    def __call__(self, *, seed: int, key: bytes) -> Scheduler: ...


_BuiltIn = TypeVar("_BuiltIn", bound=type[Scheduler])
_UserCode = TypeVar("_UserCode", bound=type[Scheduler] | PickFunction)

_factories: dict[str, SchedulerFactory] = {}
_canonical: dict[str, str] = {}
"""Every accepted spelling in lower case, with its canonical name."""
_user_names: set[str] = set()


def register(scheduler_class: _BuiltIn) -> _BuiltIn:
    """Class decorator: register a built-in by its `name` and `aliases`."""
    name = scheduler_class.name
    _factories[name] = scheduler_class
    for spelling in (name, *scheduler_class.aliases):
        if _canonical.setdefault(spelling, name) != name:
            raise ValueError(f"'{spelling}' names both {name} and {_canonical[spelling]}")
    return scheduler_class


def scheduler(name: str) -> Callable[[_UserCode], _UserCode]:
    """Decorator: register a custom `Scheduler` class, or a function `pick(flow, backends)`, as
    `name`.

    A later registration of the same name replaces the earlier one, so that a reload uses the edited
    code. ValueError for the name of a built-in.
    """
    if name in _canonical and name not in _user_names:
        raise ValueError(f"'{name}' is the name of a built-in scheduler: choose another one")

    def join(code: _UserCode) -> _UserCode:
        def factory(*, seed: int, key: bytes) -> Scheduler:
            return UserScheduler(name, code, seed=seed, key=key)

        _factories[name] = factory
        _canonical[name] = name
        _user_names.add(name)
        return code

    return join


def is_file_reference(name: str) -> bool:
    """Whether `name` refers to a user's file, as `./my_sched.py:pick` does."""
    path, _, attribute = name.rpartition(":")
    return path.endswith(".py") and attribute.isidentifier()


def canonical_name(name: str) -> str:
    """The canonical form of `name`: `rr` is `round-robin`; a file reference is unchanged.

    ValueError for an unknown one, with the known names and the closest match.
    """
    found = _canonical.get(name) or _canonical.get(name.lower().replace("_", "-"))
    if found is not None:
        return found
    if is_file_reference(name):
        return name
    if name.endswith(".py"):
        raise ValueError(f"'{name}' names no class or function of the file (expected FILE.py:NAME)")
    close = difflib.get_close_matches(name.lower(), _canonical, n=1)
    hint = f", did you mean '{close[0]}'?" if close else ""
    raise ValueError(f"unknown scheduler '{name}'{hint} (known: {', '.join(names())})")


def factory_of(name: str) -> SchedulerFactory:
    """The current factory of the scheduler with this name; another object once the name is
    registered again. ValueError as for `create`."""
    factory = _factories.get(canonical_name(name))
    if factory is None:
        raise ValueError(f"scheduler '{name}' has not been loaded")
    return factory


def is_consistent(name: str) -> bool:
    """Whether the built-in scheduler of this name is consistent; False for a custom one, which is
    not known before it runs."""
    return bool(getattr(_factories.get(_canonical.get(name, name)), "consistent", False))


def limits_by_weight(name: str) -> bool:
    """Whether weights are limits of open flows to the built-in scheduler of this name."""
    return bool(getattr(_factories.get(name), "weight_limits", False))


def goes_by_latency(name: str) -> bool:
    """Whether the built-in scheduler of this name picks by how soon members answer."""
    return bool(getattr(_factories.get(name), "by_latency", False))


def within_weights(service: Service) -> Service:
    """The service with its weights as limits of open flows, if its scheduler has them so."""
    if not limits_by_weight(service.scheduler):
        return service
    backends = (
        replace(one, max_connections=min(one.weight, one.max_connections or one.weight))
        for one in service.backends
    )
    return replace(service, backends=tuple(backends))


def create_for(service: Service, *, seed: int, key: bytes) -> Scheduler:
    """A new scheduler for a service, with its options; ValueError as for `create`."""
    factory = factory_of(service.scheduler)
    if not takes_hash_options(service.scheduler):
        return factory(seed=seed, key=key)
    scheduler = cast(type[HashScheduler], factory)(seed=seed, key=key, hash_on=service.hash_on)
    return BoundedLoad(scheduler, service.hash_balance) if service.hash_balance else scheduler


def hashed_parts(service: Service) -> tuple[HashPart, ...]:
    """What the service's scheduler hashes of a flow; the 5-tuple if it hashes nothing."""
    default = getattr(_factories.get(service.scheduler), "default_parts", FIVE_TUPLE)
    return service.hash_on or default


def takes_hash_options(name: str) -> bool:
    """Whether `hash_on` and `hash_balance` mean something to the scheduler of this name."""
    factory = _factories.get(name)
    return isinstance(factory, type) and issubclass(factory, HashScheduler)


def create(name: str, *, seed: int, key: bytes) -> Scheduler:
    """A new scheduler by any of its names; ValueError as for `canonical_name`, and for a file that
    `featherlb.system.plugins` has not loaded."""
    return factory_of(name)(seed=seed, key=key)


def names() -> list[str]:
    """The canonical names, built-ins first, each group in alphabetical order."""
    return sorted(_factories, key=lambda name: (name in _user_names, name))
