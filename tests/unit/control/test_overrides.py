"""Run-time changes as a list over a configuration."""

import pytest

from featherlb.config import Config
from featherlb.config.file import parse
from featherlb.config.writer import write
from featherlb.control.overrides import Action, Change, add, running, still_fit
from featherlb.model import Role
from featherlb.model.errors import ConfigError

FILE = """
services:
  - {name: web, vip: 10.0.0.10:80, backends: ['a:1', {address: 'b:1', weight: 4}]}
  - {name: mail, vip: 10.0.0.10:25, backends: ['a:1']}
"""
CONFIG = parse(FILE, "lb.yaml")


def change(action: str, host: str = "a", weight: int | None = None, **fields: object) -> Change:
    return Change(0, Action(action), "web", host, 1, weight, **fields)  # type: ignore[arg-type]


def made(*changes: Change, config: Config = CONFIG) -> tuple[Change, ...]:
    found: tuple[Change, ...] = ()
    for one in changes:
        found = add(config, found, one)
    return found


def pool(*changes: Change, config: Config = CONFIG) -> dict[str, int]:
    """The weights of web's backends; mail's never change."""
    web, mail = running(config, changes).services
    assert mail == config.services[1]
    return {str(backend.host): backend.weight for backend in web.backends}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], {"a": 1, "b": 4}),
        ([change("drain", "b")], {"a": 1, "b": 0}),
        ([change("drain", "b"), change("enable", "b")], {"a": 1, "b": 4}),
        ([change("drain", "b"), change("weight", "b", 9)], {"a": 1, "b": 0}),
        ([change("weight", "b", 9), change("drain", "b"), change("enable", "b")], {"a": 1, "b": 9}),
        ([change("remove")], {"b": 4}),
        ([change("add", "c")], {"a": 1, "b": 4, "c": 1}),
        ([change("add", "c", 7), change("drain", "c")], {"a": 1, "b": 4, "c": 0}),
        ([change("remove"), change("add", weight=5)], {"b": 4, "a": 5}),
        ([change("drain"), change("remove"), change("add")], {"b": 4, "a": 1}),
    ],
)
def test_changes_apply_in_turn(changes: list[Change], expected: dict[str, int]) -> None:
    assert pool(*made(*changes)) == expected


def test_what_is_added_has_the_role_and_the_limit_that_were_said() -> None:
    changes = made(change("add", "c", role=Role.SORRY, max_connections=9))
    config = running(CONFIG, changes)
    added = config.services[0].backends[-1]
    assert (added.role, added.max_connections) == (Role.SORRY, 9)
    assert parse(write(config), "saved") == config


def test_what_ends_leaves_what_the_others_say() -> None:
    drain = change("drain", "b", until=10.0)
    changes = made(change("weight", "b", 2), drain, change("weight", "b", 3))
    assert pool(*changes) == {"a": 1, "b": 0}
    assert pool(*(one for one in changes if one is not drain)) == {"a": 1, "b": 3}


def test_overridden_changes_are_forgotten() -> None:
    for _ in range(2):
        changes = made(*[change("weight", weight=weight) for weight in range(100)])
        assert len(changes) == 1
    assert made(change("drain"), change("weight", weight=2), change("remove")) == (
        change("remove"),
    )
    timed = change("weight", weight=2, until=9.0)
    assert made(change("weight", weight=1), timed) == (change("weight", weight=1), timed)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (change("add"), "a:1 is a backend of 'web' already"),
        (change("drain", "c"), "'web' has no backend c:1 (its backends: a:1, b:1)"),
        (change("remove", "c"), "'web' has no backend c:1"),
        (Change(0, Action.DRAIN, "dns", "a", 1), "no service 'dns' (there is: web, mail)"),
    ],
)
def test_what_does_not_fit_is_refused(wrong: Change, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        add(CONFIG, (), wrong)
    assert said in str(caught.value)


def test_another_configuration_keeps_what_fits() -> None:
    changes = made(change("drain", "b"), change("add", "c"), change("drain", "c"))
    other = parse(FILE.replace("{address: 'b:1', weight: 4}", "'c:1'"), "f")
    assert still_fit(other, changes) == (change("drain", "c"),)
    assert still_fit(CONFIG, changes) == changes
    assert still_fit(parse("services: []", "f"), changes) == ()


def test_the_running_configuration_can_be_written_and_read() -> None:
    config = running(CONFIG, made(change("drain", "b"), change("add", "c", 3)))
    assert parse(write(config), "saved") == config
