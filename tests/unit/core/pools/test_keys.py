"""Flows that are placed by a key in their first datagram."""

import time
from dataclasses import replace

import pytest

from featherlb.core.pools import connection_ids, keys
from featherlb.core.pools.connection_ids import ConnectionIds
from featherlb.core.pools.schedulers import Member
from featherlb.model import HashField, HashPart, Hook, Protocol, Verdict
from featherlb.model.reason import Reason
from tests.builders import dns_query, udp
from tests.world import BACKENDS, VIP, World, backend, client, endpoints, service

LENGTH = 8


def keyed(*names: str, scheduler: str = "maglev", **fields: object) -> World:
    """A service whose scheduler hashes these parts."""
    parts = tuple(
        HashPart(HashField(name))
        if name in list(HashField)
        else HashPart(HashField.PAYLOAD, key=name)
        for name in names
    )
    plain = service(*BACKENDS, scheduler=scheduler, protocol=Protocol.UDP)
    return World(replace(plain, hash_on=parts, **fields), capacity=512)  # type: ignore[arg-type]


def went(world: World, who: str, payload: bytes) -> str:
    """The backend that gets a client's datagram."""
    outcome = world.handle(udp(who, VIP, payload))
    assert outcome.verdict is Verdict.REWRITTEN
    return endpoints(outcome.packet)[1]


def places(world: World, payload: bytes, clients: int = 20, port: int = 40000) -> set[str]:
    """The backends that get a datagram of each of many clients."""
    return {went(world, client(number, port), payload) for number in range(clients)}


@pytest.mark.parametrize("scheduler", ["maglev", "source-hash", "five-tuple-hash"])
def test_the_same_key_leads_to_the_same_backend(scheduler: str) -> None:
    world = keyed("dns-name", scheduler=scheduler)
    found = [places(world, dns_query(f"{number}.org"), 4, number) for number in range(1, 20)]
    assert {len(one) for one in found} == {1}
    assert len(set.union(*found)) == len(BACKENDS)


def test_without_the_key_the_scheduler_hashes_what_it_does_by_default() -> None:
    plain = World(service(*BACKENDS, scheduler="source-hash", protocol=Protocol.UDP))
    for names in (("dns-name",), ("src", "dns-name")):
        world = keyed(*names, scheduler="source-hash")
        assert len(places(world, b"no query")) == len(places(plain, b"no query")) == 3
        for number in range(5):
            again = client(number, 50000)
            assert went(world, again, b"") == went(world, client(number), b"")


def test_other_parts_count_beside_the_key() -> None:
    world = keyed("src", "dns-name")
    assert len(places(world, dns_query("a.org"))) == len(BACKENDS)
    for number in range(20):
        who = [client(number, port) for port in (1000, 2000)]
        assert went(world, who[0], dns_query("b.org")) == went(world, who[1], dns_query("b.org"))


@pytest.mark.parametrize("result", [b"k", "k", 7, -7, None])
def test_what_a_users_key_may_return(result: object) -> None:
    keys.register("mine.py:key", lambda flow, payload: result, time.perf_counter)
    world = keyed("mine.py:key")
    assert len(places(world, b"x")) == (3 if result is None else 1)


@pytest.mark.parametrize("result", [1.5, True, 1 << 200, [b"k"]])
def test_what_a_users_key_may_not_return(result: object) -> None:
    keys.register("mine.py:key", lambda flow, payload: result, time.perf_counter)
    world = keyed("mine.py:key")
    assert len(places(world, b"x")) == 3
    (watched,) = world.balancer.views.guards().values()
    assert watched.off
    assert "not bytes, text, a number or None" in watched.reports[0]


def test_a_key_that_is_loaded_again_is_used() -> None:
    keys.register("mine.py:key", lambda flow, payload: b"k", time.perf_counter)
    world = keyed("mine.py:key")
    assert len(places(world, b"x")) == 1
    keys.register("mine.py:key", lambda flow, payload: payload, time.perf_counter)
    world.apply(*world.services)
    assert len({went(world, client(200), b"%d" % number) for number in range(20)}) == 1
    assert len({went(world, client(number, 999), b"%d" % number) for number in range(20)}) == 3


# QUIC


def long_header(destination: bytes, source: bytes) -> bytes:
    head = bytes([0xC0, 0, 0, 0, 1, len(destination)]) + destination
    return head + bytes([len(source)]) + source + bytes(20)


def short_header(destination: bytes) -> bytes:
    return bytes([0x40]) + destination + bytes(20)


def opened(world: World, who: str, chosen: bytes) -> str:
    """The backend of a connection, which has chosen this ID."""
    to = went(world, who, long_header(b"at-random" + chosen, b"client"))
    answer = udp(to, who, long_header(b"client", chosen))
    assert world.handle(answer, Hook.POSTROUTING).reason is Reason.REPLY
    return to


def test_a_connection_keeps_its_backend_from_another_port() -> None:
    world = keyed("quic-connection-id")
    for number in range(20):
        chosen = b"server%02d" % number
        to = opened(world, client(number), chosen)
        for port in (1, 2):
            assert went(world, client(number + 100, port), short_header(chosen)) == to


def test_it_stays_with_a_drained_backend_and_leaves_one_that_is_down() -> None:
    world = keyed("quic-connection-id")
    to = opened(world, client(0), b"chosen01")
    for changed, stays in (({"weight": 0}, True), ({"weight": 0, "down": True}, False)):
        pool = [backend(one, **(changed if one == to else {})) for one in BACKENDS]
        world.apply(replace(world.services[0], backends=tuple(pool)))
        port = 7 if stays else 8
        assert (went(world, client(1, port), short_header(b"chosen01")) == to) is stays


def test_only_packets_of_the_handshake_are_searched() -> None:
    world = keyed("quic-connection-id")
    to = opened(world, client(0), b"chosen01")
    later = udp(to, client(0), short_header(b"client"))
    world.handle(later, Hook.POSTROUTING)
    # From now on, nothing is read any more.
    world.handle(udp(to, client(0), long_header(b"client", b"another1")), Hook.POSTROUTING)
    pool = world.balancer.views.find_pool(Protocol.UDP, world.flows()[0].vip)
    assert pool is not None
    assert pool.connection_ids is not None
    assert len(pool.connection_ids) == 1


def test_ids_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_ids, "MAX_IDS", 3)
    table = ConnectionIds()
    member = Member(backend(BACKENDS[0]), 0)
    for number in range(3):
        table.learn(long_header(b"client", b"%08d" % number), member)
    assert table.find(short_header(b"%08d" % 0)) is member  # used last
    table.learn(long_header(b"client", b"longer-id"), member)
    assert len(table) == 3
    assert table.find(short_header(b"%08d" % 1)) is None
    assert table.find(short_header(b"%08d" % 0)) is member
    assert table.find(short_header(b"longer-id")) is member
    assert table.find(b"") is None
    table.learn(long_header(b"client", b""), member)
    assert len(table) == 3
