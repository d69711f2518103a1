from collections import Counter

from featherlb.core.pools.schedulers import NewFlow, create
from tests.unit.core.pools.schedulers.pools import KEY, VIP, make_flow, make_pool, picks


def test_all_flows_of_a_client_go_to_one_member() -> None:
    pool = make_pool(*[1] * 20)
    scheduler = create("source-hash", seed=1, key=KEY)
    scheduler.update(pool)
    client = make_flow(1).client
    picked = {
        scheduler.pick(NewFlow(protocol, 4, client, port, vip, vip_port))
        for protocol in (6, 17)
        for port in (1024, 40000, 65535)
        for vip in (VIP, VIP + 1)
        for vip_port in (80, 443)
    }
    assert len(picked) == 1


def test_neighbouring_clients_spread() -> None:
    pool = make_pool(1, 1, 2)
    scheduler = create("source-hash", seed=1, key=KEY)
    scheduler.update(pool)
    counted = Counter(picks(scheduler, map(make_flow, range(10_000))))
    assert all(2250 <= counted[member] / member.weight <= 2750 for member in pool)


def test_only_clients_of_a_member_that_leaves_move_and_they_come_back() -> None:
    pool = make_pool(1, 1, 1, 1)
    flows = [make_flow(number) for number in range(2000)]
    scheduler = create("source-hash", seed=1, key=KEY)
    scheduler.update(pool)
    before = picks(scheduler, flows)
    scheduler.update(pool[1:])
    after = picks(scheduler, flows)
    moved = [old for old, new in zip(before, after, strict=True) if old is not new]
    assert set(moved) == {pool[0]}
    assert 400 < len(moved) < 600
    scheduler.update(pool)
    assert picks(scheduler, flows) == before


def test_ipv6_clients() -> None:
    pool = make_pool(1, 1)
    scheduler = create("source-hash", seed=1, key=KEY)
    scheduler.update(pool)
    net = 0x20010DB8 << 96
    counted = Counter(
        scheduler.pick(NewFlow(6, 6, net + number, 1024, 1, 80)) for number in range(1000)
    )
    assert all(420 <= counted[member] <= 580 for member in pool)
