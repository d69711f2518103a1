from collections import Counter

from featherlb.core.pools.schedulers import NewFlow, create
from tests.unit.core.pools.schedulers.pools import KEY, VIP, make_pool


def test_all_flows_to_an_address_go_to_one_member() -> None:
    pool = make_pool(*[1] * 20)
    scheduler = create("dh", seed=1, key=KEY)
    scheduler.update(pool)
    picked = {
        scheduler.pick(NewFlow(protocol, 4, client, port, VIP, vip_port))
        for protocol in (6, 17)
        for client in range(50)
        for port in (1024, 65535)
        for vip_port in (80, 443)
    }
    assert len(picked) == 1


def test_addresses_spread_by_weight() -> None:
    pool = make_pool(1, 1, 2)
    scheduler = create("dh", seed=1, key=KEY)
    scheduler.update(pool)
    counted = Counter(
        scheduler.pick(NewFlow(6, 4, 1, 1024, VIP + number, 80)) for number in range(10_000)
    )
    assert all(2250 <= counted[member] / member.weight <= 2750 for member in pool)
