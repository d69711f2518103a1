"""Faults of custom schedulers must not affect traffic."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from featherlb.core.pools.schedulers import Member, NewFlow, Scheduler, UserScheduler
from tests.unit.core.pools.schedulers.pools import FLOW, KEY, make_flow, make_pool, picks


def make(code: Any) -> UserScheduler:
    return UserScheduler("mine", code, seed=1, key=KEY)


def test_a_function_gets_the_flow_and_the_members_with_a_weight() -> None:
    seen = []

    def pick(flow: NewFlow, backends: Sequence[Member]) -> Member:
        seen.append((flow, list(backends)))
        return backends[flow.client % len(backends)]

    pool = make_pool(1, 0, 2)
    scheduler = make(pick)
    scheduler.update(pool)
    assert picks(scheduler, [make_flow(0), make_flow(1)]) == [pool[0], pool[2]]
    assert [members for _, members in seen] == [[pool[0], pool[2]]] * 2
    assert scheduler.errors == 0
    assert scheduler.first_error is None


def test_a_function_is_not_called_without_usable_backends() -> None:
    scheduler = make(lambda flow, backends: backends[0])
    scheduler.update(make_pool(0))
    assert scheduler.pick(FLOW) is None
    assert scheduler.errors == 0


def raise_error(flow: NewFlow, backends: Sequence[Member]) -> Member:
    raise RuntimeError("no luck")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (raise_error, "pick() raised RuntimeError('no luck')"),
        (lambda flow, backends: None, "pick() returned None"),
        (lambda flow, backends: "10.0.1.1", "pick() returned '10.0.1.1'"),
        (lambda flow, backends: backends, "pick() returned (<Member"),
        (lambda flow, backends: [], "pick() raised TypeError"),
        (lambda flow, backends: make_pool(1)[0], "pick() returned <Member 10.0.1.1:80"),
        (lambda flow: None, "pick() raised TypeError"),
    ],
)
def test_faults_are_counted_and_made_up_for(code: Any, said: str) -> None:
    pool = make_pool(3, 0, 1)
    scheduler = make(code)
    scheduler.update(pool)
    drawn = picks(scheduler, [FLOW] * 400)
    assert set(drawn) == {pool[0], pool[2]}
    assert 240 < drawn.count(pool[0]) < 360
    assert scheduler.errors == 400
    assert scheduler.first_error is not None
    assert scheduler.first_error.startswith(said)
    assert f"({__file__}:{code.__code__.co_firstlineno + (code is raise_error)})" in (
        scheduler.first_error
    )


def test_members_that_left_or_have_weight_0_are_not_accepted() -> None:
    pool = make_pool(1, 1, 1)
    scheduler = make(lambda flow, backends: pool[flow.client % 3])
    pool[1].weight = 0
    scheduler.update(pool[:2])
    flows = [make_flow(number) for number in range(3)]
    assert {flow.client % 3 for flow in flows} == {0, 1, 2}
    assert picks(scheduler, flows) == [pool[0]] * 3
    assert scheduler.errors == 2


def line_of(trouble: str) -> int:
    """The line of this file that raises it."""
    lines = Path(__file__).read_text().splitlines()
    return 1 + next(n for n, line in enumerate(lines) if f'raise OSError("{trouble}")' in line)


class Moody(Scheduler):
    """Raises where its key says."""

    def __init__(self, *, seed: int, key: bytes) -> None:
        self.trouble = key
        if self.trouble == b"init":
            raise OSError("init")

    def update(self, members: Sequence[Member]) -> None:
        self.members = members
        if self.trouble == b"update":
            raise OSError("update")

    def pick(self, flow: NewFlow) -> Member:
        return self.members[0]


@pytest.mark.parametrize(
    ("trouble", "errors", "first"),
    [
        (b"", 0, None),
        (b"init", 1, f"starting it raised OSError('init') ({__file__}:{line_of('init')})"),
        (b"update", 1, f"update() raised OSError('update') ({__file__}:{line_of('update')})"),
    ],
)
def test_a_class_may_fail_anywhere(trouble: bytes, errors: int, first: str | None) -> None:
    pool = make_pool(1)
    scheduler = UserScheduler("moody", Moody, seed=1, key=trouble)
    scheduler.update(pool)
    assert scheduler.pick(FLOW) is pool[0]
    assert scheduler.errors == errors
    assert scheduler.first_error == first


def test_the_first_error_is_kept() -> None:
    scheduler = make(lambda flow, backends: flow.client)
    scheduler.update(make_pool(1))
    picks(scheduler, [make_flow(1), make_flow(2)])
    assert scheduler.first_error is not None
    assert str(make_flow(1).client) in scheduler.first_error


class Shy:
    """A value whose text can't be had."""

    def __repr__(self) -> str:
        raise RuntimeError


def test_an_error_deep_in_a_library_names_the_users_line() -> None:
    scheduler = make(lambda flow, backends: int("no number"))
    scheduler.update(make_pool(1))
    scheduler.pick(FLOW)
    assert scheduler.first_error is not None
    assert "int() with base 10" in scheduler.first_error
    assert f"({__file__}:" in scheduler.first_error


@pytest.mark.parametrize(
    ("value", "said"), [(Shy(), "returned a Shy, "), ("x" * 9999, f"returned 'xxx{'x' * 9}")]
)
def test_whatever_is_returned_is_shown_in_a_line(value: object, said: str) -> None:
    scheduler = make(lambda flow, backends: value)
    scheduler.update(make_pool(1))
    scheduler.pick(FLOW)
    assert scheduler.first_error is not None
    assert said in scheduler.first_error
    assert len(scheduler.first_error) < 500
