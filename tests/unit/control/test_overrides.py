"""Overrides as a list over a configuration."""

from dataclasses import replace

import pytest

from featherlb.config import Config
from featherlb.config.file import parse
from featherlb.config.writer import write
from featherlb.control.overrides import (
    Action,
    Override,
    add,
    applicable,
    find_service,
    with_overrides,
)
from featherlb.model import Label, Role
from featherlb.model.errors import ConfigError

FILE = """
services:
  - {name: web, vip: 10.0.0.10:80, backends: ['a:1', {address: 'b:1', weight: 4}]}
  - {name: mail, vip: 10.0.0.10:25, backends: ['a:1']}
"""
CONFIG = parse(FILE, "lb.yaml")


def override(action: str, host: str = "a", weight: int | None = None, **fields: object) -> Override:
    return Override(0, Action(action), "web", (host, 1, 0), weight, **fields)  # type: ignore[arg-type]


def made(*overrides: Override, config: Config = CONFIG) -> tuple[Override, ...]:
    found: tuple[Override, ...] = ()
    for one in overrides:
        found = add(config, found, one)
    return found


def pool(*overrides: Override, config: Config = CONFIG) -> dict[str, int]:
    """The weights of web's backends; mail's never change."""
    web, mail = with_overrides(config, overrides).services
    assert mail == config.services[1]
    return {str(backend.host): backend.weight for backend in web.backends}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"a": 1, "b": 4}),
        ([override("drain", "b")], {"a": 1, "b": 0}),
        ([override("drain", "b"), override("enable", "b")], {"a": 1, "b": 4}),
        ([override("drain", "b"), override("weight", "b", 9)], {"a": 1, "b": 0}),
        (
            [override("weight", "b", 9), override("drain", "b"), override("enable", "b")],
            {"a": 1, "b": 9},
        ),
        ([override("remove")], {"b": 4}),
        ([override("add", "c")], {"a": 1, "b": 4, "c": 1}),
        ([override("add", "c", 7), override("drain", "c")], {"a": 1, "b": 4, "c": 0}),
        ([override("remove"), override("add", weight=5)], {"b": 4, "a": 5}),
        ([override("drain"), override("remove"), override("add")], {"b": 4, "a": 1}),
    ],
)
def test_overrides_apply_in_turn(overrides: list[Override], expected: dict[str, int]) -> None:
    assert pool(*made(*overrides)) == expected


def test_what_is_added_has_what_was_said() -> None:
    labels = (Label("zone", "a"), Label("rack", "r7"))
    wanted = override("add", "c", role=Role.SORRY, max_connections=9, labels=labels)
    overrides = made(wanted)
    config = with_overrides(CONFIG, overrides)
    added = config.services[0].backends[-1]
    assert (added.role, added.max_connections, added.labels) == (Role.SORRY, 9, labels)
    assert parse(write(config), "saved") == config


def test_what_ends_leaves_what_the_others_say() -> None:
    drain = override("drain", "b", until=10.0)
    overrides = made(override("weight", "b", 2), drain, override("weight", "b", 3))
    assert pool(*overrides) == {"a": 1, "b": 0}
    assert pool(*(one for one in overrides if one is not drain)) == {"a": 1, "b": 3}


def test_replaced_overrides_are_forgotten() -> None:
    for _ in range(2):
        overrides = made(*[override("weight", weight=weight) for weight in range(100)])
        assert len(overrides) == 1
    assert made(override("drain"), override("weight", weight=2), override("remove")) == (
        override("remove"),
    )
    timed = override("weight", weight=2, until=9.0)
    assert made(override("weight", weight=3), timed) == (override("weight", weight=3), timed)


@pytest.mark.parametrize(
    "overrides",
    [
        [override("drain"), override("enable")],
        [override("drain", until=9.0), override("enable")],
        [override("enable")],
        [override("enable", until=9.0)],
        [override("drain"), override("enable", until=9.0), override("enable")],
        [override("weight", "b", 9), override("weight", "b", 4)],
        [override("add", "c"), override("remove", "c")],
        [override("add", "c"), override("drain", "c"), override("remove", "c")],
        [override("remove", "b"), override("add", "b", 4)],
    ],
)
def test_a_change_and_its_opposite_leave_nothing_in_force(overrides: list[Override]) -> None:
    assert made(*overrides) == ()


def test_a_second_drain_takes_over_what_it_does_not_set() -> None:
    first = override("drain", until=100.0, deadline=50.0)
    assert made(first, override("drain")) == (first,)
    assert made(first, override("drain", until=7.0)) == (replace(first, until=7.0),)
    assert made(first, override("drain", deadline=7.0)) == (replace(first, deadline=7.0),)
    forever = override("drain")
    assert made(forever, override("drain", until=7.0)) == (override("drain", until=7.0),)
    assert made(forever, override("enable", until=7.0), forever) == (forever,)


def test_another_backend_at_the_place_of_a_removed_one_stays() -> None:
    overrides = made(override("remove"), override("add", weight=5))
    assert applicable(CONFIG, overrides) == overrides
    assert pool(*applicable(CONFIG, overrides)) == {"b": 4, "a": 5}
    timed = made(override("remove", until=9.0), override("add", weight=5))
    assert pool(*timed) == {"b": 4, "a": 5}
    assert applicable(CONFIG, timed) == timed


def test_what_the_file_says_now_is_no_change_any_more() -> None:
    overrides = made(override("weight", "b", 9), override("add", "c", 3), override("drain"))
    saved = parse(write(with_overrides(CONFIG, overrides[:2])), "f")
    assert applicable(saved, overrides) == (override("drain"),)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (override("add"), "a:1 is already a backend of 'web'"),
        (override("drain", "c"), "'web' has no backend c:1 (its backends: a:1, b:1)"),
        (override("remove", "c"), "'web' has no backend c:1"),
        (Override(0, Action.DRAIN, "dns", ("a", 1, 0)), "no service 'dns' (known: web, mail)"),
    ],
)
def test_what_does_not_fit_is_refused(wrong: Override, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        add(CONFIG, (), wrong)
    assert said in str(caught.value)


def test_of_many_names_only_some_are_listed() -> None:
    config = parse(
        "services:"
        + "".join(f"\n- {{name: site-{n}, vip: 10.0.{n // 250}.{n % 250}:80}}" for n in range(999)),
        "f",
    )
    with pytest.raises(ConfigError, match="site-9 and 989 more"):
        find_service(config, "blog")
    with pytest.raises(ConfigError, match="did you mean 'site-77'"):
        find_service(config, "sites-77")


def test_another_configuration_keeps_what_fits() -> None:
    overrides = made(override("drain", "b"), override("add", "c"), override("drain", "c"))
    other = parse(FILE.replace("{address: 'b:1', weight: 4}", "'c:1'"), "f")
    assert applicable(other, overrides) == (override("drain", "c"),)
    assert applicable(CONFIG, overrides) == overrides
    assert applicable(parse("services: []", "f"), overrides) == ()


def test_the_running_configuration_can_be_written_and_read() -> None:
    config = with_overrides(CONFIG, made(override("drain", "b"), override("add", "c", 3)))
    assert parse(write(config), "saved") == config


def test_a_backend_of_weight_0_is_not_enabled() -> None:
    with pytest.raises(ConfigError, match=r"^b:1 is not drained, it has weight 0: give it another"):
        made(override("weight", "b", 0), override("enable", "b"))
    # A drain on top of that can be ended.
    assert made(
        override("weight", "b", 0), override("drain", "b"), override("enable", "b")
    ) == made(override("weight", "b", 0))
