from collections import Counter

import pytest

from featherlb.core.pools.schedulers import create
from tests.unit.core.pools.schedulers.pools import KEY, make_flow, make_pool


def test_the_flows_of_one_client_spread_by_weight() -> None:
    pool = make_pool(1, 1, 2)
    scheduler = create("five-tuple-hash", seed=1, key=KEY)
    scheduler.update(pool)
    counted: Counter[object] = Counter()
    for port in range(20_000, 30_000):
        flow = make_flow(1)
        flow.client_port = port
        counted[scheduler.pick(flow)] += 1
    assert all(2250 <= counted[member] / member.weight <= 2750 for member in pool)


@pytest.mark.parametrize("field", ["protocol", "client", "client_port", "vip", "vip_port"])
def test_every_field_counts(field: str) -> None:
    pool = make_pool(*[1] * 20)
    scheduler = create("five-tuple-hash", seed=1, key=KEY)
    scheduler.update(pool)
    picked = set()
    for value in range(100):
        flow = make_flow(1)
        setattr(flow, field, value)
        picked.add(scheduler.pick(flow))
    assert len(picked) > 10
