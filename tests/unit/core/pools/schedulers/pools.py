"""Members and flows for scheduler tests."""

from collections import Counter
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address

from featherlb import model
from featherlb.core.pools.schedulers import Member, NewFlow, Scheduler

KEY = bytes(range(16))
VIP = int(IPv4Address("10.0.0.10"))


def make_pool(*weights: int) -> list[Member]:
    """One member per weight, from 10.0.1.1:80 on."""
    first = IPv4Address("10.0.1.1")
    return [
        Member(model.Backend(model.Endpoint(first + index, 80), weight), index)
        for index, weight in enumerate(weights)
    ]


def make_flow(number: int) -> NewFlow:
    """TCP flows, each from an address of its own in 10.1.0.0/16 and beyond."""
    return NewFlow(6, 4, int(IPv4Address("10.1.0.0")) + number, 40000, VIP, 80)


FLOW = make_flow(0)


def picks(scheduler: Scheduler, flows: Iterable[NewFlow]) -> list[Member | None]:
    return [scheduler.pick(flow) for flow in flows]


def letters(scheduler: Scheduler, pool: Sequence[Member], count: int) -> str:
    """The next picks as letters: a is the pool's first member."""
    text = ""
    for _ in range(count):
        member = scheduler.pick(FLOW)
        assert member is not None
        text += "abcdefgh"[pool.index(member)]
    return text


def shares(scheduler: Scheduler, pool: Sequence[Member], count: int) -> list[float]:
    """Which part of so many flows each member gets."""
    counted = Counter(scheduler.pick(make_flow(number)) for number in range(count))
    assert sum(counted[member] for member in pool) == count
    return [counted[member] / count for member in pool]
