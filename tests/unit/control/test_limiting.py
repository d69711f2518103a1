"""Run-time changes of the conditions for clients, as a list over a configuration."""

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from featherlb.config.file import parse
from featherlb.config.types import MaxFlowsConfig, MaxNewConfig, ServiceConfig
from featherlb.config.values import rate
from featherlb.config.writer import write
from featherlb.control.overrides import (
    NO_BACKEND,
    Action,
    Limiting,
    Override,
    add,
    applicable,
    with_overrides,
)
from featherlb.model.errors import ConfigError

CONFIG = parse(
    "services:\n- {name: web, vip: 10.0.0.10:80, allow: 10.0.0.0/8, max_flows: 7}\n"
    "- {name: mail, vip: 10.0.0.10:25}",
    "lb.yaml",
)
PARTNERS, GUESTS = ip_network("192.0.2.0/24"), ip_network("198.51.100.0/24")


def override(action: Action, service: str = "web", **fields: Any) -> Override:
    return Override(0, action, service, NO_BACKEND, limiting=Limiting(**fields))


def with_all(*overrides: Override) -> ServiceConfig:
    found: tuple[Override, ...] = ()
    for one in overrides:
        found = add(CONFIG, found, one)
    return with_overrides(CONFIG, found).services[0]


def test_networks_join_the_lists() -> None:
    service = with_all(
        override(Action.ALLOW, networks=(PARTNERS,)), override(Action.DENY, networks=(GUESTS,))
    )
    assert service.allow == (ip_network("10.0.0.0/8"), PARTNERS)
    assert service.deny == (GUESTS,)


def test_a_list_that_does_not_exist_gets_no_exceptions() -> None:
    """It would refuse everybody else."""
    with pytest.raises(ConfigError, match="'mail' has no list of allowed clients: all are allowed"):
        add(CONFIG, (), override(Action.ALLOW, "mail", networks=(PARTNERS,)))


def test_a_limit_takes_the_place_of_the_one_for_the_same_networks() -> None:
    nine, wide = MaxFlowsConfig(9, 32), MaxFlowsConfig(100, 24)
    service = with_all(
        override(Action.MAX_FLOWS, limit=nine, prefix=32),
        override(Action.MAX_FLOWS, limit=wide, prefix=24),
    )
    assert service.max_flows == (nine, wide)
    assert with_all(override(Action.MAX_FLOWS)).max_flows == ()
    fast = MaxNewConfig(rate("5/s"))
    assert with_all(override(Action.MAX_NEW, limit=fast)).max_new == (fast,)


def test_a_later_limit_replaces_an_earlier_one_and_a_temporary_one_does_not() -> None:
    first = override(Action.MAX_FLOWS, limit=MaxFlowsConfig(8))
    second = override(Action.MAX_FLOWS, limit=MaxFlowsConfig(9))
    kept = add(CONFIG, (), first)
    assert add(CONFIG, kept, second) == (second,)
    for_now = replace(second, until=5.0)
    assert add(CONFIG, kept, for_now) == (first, for_now)
    # What the file says, or what changes nothing, is no change.
    assert add(CONFIG, kept, override(Action.MAX_FLOWS, limit=MaxFlowsConfig(7))) == ()
    assert add(CONFIG, (), override(Action.MAX_NEW)) == ()


def test_changes_survive_a_reload_as_far_as_they_apply() -> None:
    changes = (
        override(Action.ALLOW, networks=(PARTNERS,)),
        override(Action.DENY, networks=(GUESTS,)),
    )
    open_to_all = parse("services:\n- {name: web, vip: 10.0.0.10:80}", "lb.yaml")
    assert applicable(open_to_all, changes) == (changes[1],)


def test_what_is_saved_has_them() -> None:
    text = write(with_overrides(CONFIG, (override(Action.DENY, networks=(GUESTS,)),)))
    assert "deny:\n  - 198.51.100.0/24\n" in text


def test_they_are_named_by_what_they_change() -> None:
    assert str(override(Action.DENY, networks=(GUESTS,))) == "deny web 198.51.100.0/24"
    slow = MaxNewConfig(rate("5/m"), 2, 24)
    assert str(override(Action.MAX_NEW, limit=slow)) == "max-new web 5/m burst 2 per /24"
    assert str(override(Action.MAX_FLOWS, prefix=24)) == "max-flows web off for /24"
