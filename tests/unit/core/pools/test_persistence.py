"""Persistence: a client's flows go to the backend of its last one, until the timeout."""

from dataclasses import replace

import pytest

from featherlb.core.pools import persistence
from featherlb.core.pools.persistence import PersistenceTable
from featherlb.core.pools.pool import Pool
from featherlb.core.pools.schedulers import Member, NewFlow
from featherlb.model import Backend, Persistence, Protocol, Service
from tests.builders import tcp, udp
from tests.world import BACKENDS, ONE, TWO, VIP, World, backend, service

HOST = Persistence(timeout=300.0, prefix=32)


def sticky(
    *backends: str | Backend, persistence: Persistence | None = HOST, **how: object
) -> Service:
    return replace(service(*backends, **how), persistence=persistence)  # type: ignore[arg-type]


def go(world: World, client: str, vip: str = VIP) -> str:
    """Open a connection; the backend that got it."""
    return world.handle(tcp(client, vip, "S")).destination


def test_all_flows_of_a_client_go_to_the_same_backend() -> None:
    world = World(sticky(*BACKENDS))
    ones = {go(world, f"198.51.100.1:{port}") for port in range(40000, 40009)}
    others = {go(world, f"198.51.100.2:{port}") for port in range(40000, 40009)}
    assert len(ones) == len(others) == 1
    assert ones != others


@pytest.mark.parametrize(("prefix", "together"), [(24, True), (25, False), (32, False), (1, True)])
def test_clients_of_one_network_go_together(prefix: int, together: bool) -> None:
    world = World(sticky(ONE, TWO, persistence=Persistence(300, prefix)))
    first, second = go(world, "198.51.100.1:40000"), go(world, "198.51.100.129:40000")
    assert (first == second) is together


@pytest.mark.parametrize(("prefix", "together"), [(64, True), (65, False), (128, False)])
def test_networks_of_ipv6(prefix: int, together: bool) -> None:
    vip = "[2001:db8::10]:80"
    world = World(
        sticky("[fd00::1]:80", "[fd00::2]:80", vips=vip, persistence=Persistence(300, prefix))
    )
    first = go(world, "[2001:db8:1:2::7]:40000", vip)
    assert (go(world, "[2001:db8:1:2:8000::7]:40000", vip) == first) is together


def test_the_timeout_counts_from_the_last_new_flow() -> None:
    world = World(sticky(ONE, TWO))
    first = go(world, "198.51.100.1:40000")
    for port in range(40001, 40005):
        world.advance(299.9)
        assert go(world, f"198.51.100.1:{port}") == first
    world.advance(300)
    assert go(world, "198.51.100.1:50000") != first


def test_packets_of_a_flow_do_not_prolong_it() -> None:
    world = World(sticky(ONE, TWO))
    connection = world.connect("198.51.100.1:40000")
    for _ in range(3):
        world.advance(100)
        connection.send("PA", b"x")
    assert go(world, "198.51.100.1:40001") != connection.server


def test_a_drained_backend_gets_no_new_flows() -> None:
    world = World(sticky(ONE, TWO))
    assert go(world, "198.51.100.1:40000") == ONE
    world.apply(sticky(backend(ONE, 0), TWO))
    assert go(world, "198.51.100.1:40001") == TWO
    world.apply(sticky(ONE, TWO))
    assert go(world, "198.51.100.1:40002") == TWO


def test_a_removed_backend_gets_no_flows_even_after_its_return() -> None:
    world = World(sticky(ONE, TWO))
    assert go(world, "198.51.100.1:40000") == ONE
    world.apply(sticky(TWO))
    assert go(world, "198.51.100.1:40001") == TWO
    world.apply(sticky(ONE, TWO))
    assert go(world, "198.51.100.1:40002") == TWO


def test_it_survives_other_changes_and_ends_with_its_own() -> None:
    world = World(sticky(ONE, TWO))
    assert go(world, "198.51.100.1:40000") == ONE
    world.apply(sticky(TWO, ONE, scheduler="least-connections"))
    assert go(world, "198.51.100.1:40001") == ONE
    world.apply(sticky(TWO, ONE, scheduler="least-connections", persistence=None))
    assert go(world, "198.51.100.1:40002") == TWO
    world.apply(sticky(TWO, ONE, scheduler="least-connections"))
    assert go(world, "198.51.100.2:40003") == TWO


def test_services_do_not_share_it() -> None:
    other = "192.0.2.11:80"
    world = World(sticky(ONE, TWO), sticky(TWO, ONE, name="other", vips=other))
    assert go(world, "198.51.100.1:40000") == ONE
    assert go(world, "198.51.100.1:40000", other) == TWO


def test_datagrams_have_it_too() -> None:
    world = World(sticky(ONE, TWO, protocol=Protocol.UDP))
    went = {world.handle(udp(f"198.51.100.1:{port}", VIP)).destination for port in range(1, 9)}
    assert len(went) == 1


def test_connections_from_before_cannot_be_adopted() -> None:
    """Their backend was not only chosen by the scheduler."""
    assert not Pool(sticky(ONE, scheduler="maglev"), seed=1, key=b"").adopts


def flow(number: int) -> NewFlow:
    return NewFlow(6, 4, number, 40000, 1, 80)


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistence, "MAX_CLIENTS", 4)
    table = PersistenceTable(HOST)
    member = Member(backend(ONE), 0)
    for number in range(4):
        table.remember(flow(number), member, 0)
    table.remember(flow(0), member, 1)
    table.remember(flow(4), member, 1)
    assert [table.find(flow(number), 1) is member for number in range(5)] == [
        True,
        False,
        True,
        True,
        True,
    ]
    assert len(table) == 4


def test_expired_entries_leave_the_table() -> None:
    table = PersistenceTable(HOST)
    member = Member(backend(ONE), 0)
    for number in range(10):
        table.remember(flow(number), member, number)
    for number in range(10):
        table.remember(flow(100 + number), member, 5000)
    assert len(table) == 10
