"""core/path/restore.py: flows are restored from a predecessor's memory, after checks."""

import functools
import mmap
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherlb.core.flows.memory import HOP_SIZE, FlowMemory, anonymous, size_of
from featherlb.core.flows.next_hops import NextHops
from featherlb.core.flows.record import RECORD_SIZE, Records
from featherlb.model import (
    PRIVILEGED_SOURCE_PORTS,
    Datapath,
    Endpoint,
    Hook,
    Link,
    Persistence,
    Protocol,
    Service,
    Timeouts,
    Topology,
    Verdict,
)
from featherlb.model.reason import Reason
from featherlb.model.shard import Shard
from featherlb.net.addresses import words_of
from tests.builders import tcp, udp
from tests.ctnetlink import CREATE, messages
from tests.world import CLIENT, ONE, TWO, VIP, World, client, service

ALONE = Shard(0, 1, 0)
CLIENT6, VIP6, ONE6 = "[2001:db8:1::7]:40000", "[2001:db8::10]:80", "[fd00::1]:8080"
DNAT, FULL = service(ONE, TWO), service(ONE, TWO, nat="full")
SIX = service(ONE6, vips=VIP6, name="six")
DATAGRAMS = service(ONE, name="udp", protocol=Protocol.UDP)


def succeed(world: World, *services: Service, shard: Shard = ALONE, capacity: int = 64) -> World:
    """Another process that has these services, or the same, and takes over what it can."""
    successor = World(*(services or world.services), capacity=capacity, source_ports=shard.ports)
    successor.now = world.now
    successor.taken, successor.left = successor.balancer.restoration.restore(  # type: ignore[attr-defined]
        copy(world.memory), shard
    )
    successor.check()
    return successor


def copy(memory: FlowMemory) -> FlowMemory:
    """What a file of it would hold."""
    return FlowMemory(bytearray(b"".join(memory.parts())))


def taken(world: World) -> tuple[int, int]:
    return world.taken, world.left  # type: ignore[attr-defined]


@pytest.mark.parametrize("web", [DNAT, FULL], ids=["dnat", "full"])
def test_connections_continue_unchanged(web: Service) -> None:
    world = World(web, SIX, DATAGRAMS)
    open_ones = [world.connect(client(number)) for number in range(5)]
    closing = world.connect(client(6))
    closing.send("FA")
    six = world.connect(CLIENT6, VIP6)
    world.handle(udp(CLIENT, VIP))
    world.advance(12.3)
    open_ones[0].send("PA", b"request")
    before = sorted(world.flows(), key=str)

    successor = succeed(world)
    assert taken(successor) == (8, 0)
    assert sorted(successor.flows(), key=str) == before
    for connection in (*open_ones, six):
        connection.world = successor
        connection.reply("PA", b"answer")
        connection.send("PA", b"request")
    closing.world = successor
    closing.reply("FA")
    closing.send("A")
    assert closing.state == "CLOSING"
    # Timeouts go on; in the end nothing is held.
    successor.advance(Timeouts().established + 1)
    assert successor.flows() == []


def test_queues_are_in_the_order_of_time() -> None:
    world = World(DNAT)
    connections = []
    for number in range(4):
        connections.append(world.connect(client(number)))
        world.advance(2)
    connections[0].send()
    successor = succeed(world)
    oldest = min(successor.flows(), key=lambda flow: -flow.idle)
    successor.advance(Timeouts().established - oldest.idle)
    assert oldest.client not in {flow.client for flow in successor.flows()}
    assert len(successor.flows()) == 3


def test_each_worker_restores_its_shard() -> None:
    world = World(DNAT)
    for number in range(40):
        world.connect(client(number))
    shards = [Shard(number, 3, seed=7) for number in range(3)]
    successors = [succeed(world, shard=shard) for shard in shards]
    clients = [flow.client for one in successors for flow in one.flows()]
    assert sorted(clients, key=str) == sorted((flow.client for flow in world.flows()), key=str)
    assert all(one.flows() for one in successors)


def test_allocated_ports_stay_in_use() -> None:
    ports = Shard(0, 1000, 0).ports
    web = service(ONE, nat="full")
    world = World(web, source_ports=ports)
    for number in range(len(ports) - 1):
        world.connect(client(number))
    successor = World(web, source_ports=ports)
    successor.now = world.now
    assert successor.balancer.restoration.restore(world.memory, ALONE) == (len(ports) - 1, 0)
    successor.check()
    successor.connect(client(100))
    outcome = successor.handle(tcp(client(101), VIP, "S"))
    assert outcome.reason is Reason.NO_SOURCE_PORT


def test_privileged_ports_stay_in_use_too() -> None:
    world = World(service(ONE, nat="full"))
    ports = {world.connect(client(number, 700)).source for number in range(50)}
    successor = succeed(world, capacity=256)
    assert taken(successor) == (50, 0)
    others = [successor.connect(client(number, 700)).source for number in range(50, 153)]
    assert not ports.intersection(others)
    assert all(int(port.split(":")[1]) in PRIVILEGED_SOURCE_PORTS for port in (*ports, *others))


def test_a_flow_with_another_port_than_its_clients_needs_its_replies() -> None:
    """With other workers than before, they may meet another one."""
    world = World(service(ONE, vips=[VIP, "192.0.2.11:80"]))
    world.connect(CLIENT)
    moved = world.connect(CLIENT, "192.0.2.11:80")
    source = Endpoint.parse(moved.source)
    high, low = words_of(source.address)
    successor = succeed(world)
    assert taken(successor) == (2, 0)
    moved.world = successor
    moved.reply("PA", b"answer")
    moved.send("A")
    for seed in range(8):
        for shard in (Shard(number, 2, seed) for number in (0, 1)):
            if shard.has(high, low, int(CLIENT.split(":")[1])):
                found = shard.has(high, low, source.port)
                assert taken(succeed(world, shard=shard)) == (1 + found, 1 - found)


@pytest.mark.parametrize(
    "now",
    [
        service(TWO),
        service(ONE, vips="192.0.2.11:80"),
        service(ONE, nat="full"),
        service(ONE, protocol=Protocol.UDP),
    ],
    ids=["backend", "vip", "mode", "protocol"],
)
def test_flows_of_removed_services_and_backends_are_not_restored(now: Service) -> None:
    world = World(service(ONE))
    connection = world.connect()
    successor = succeed(world, now)
    assert taken(successor) == (0, 1)
    assert successor.handle(connection.segment()).verdict is not Verdict.REWRITTEN


def test_a_source_address_that_is_no_longer_ours() -> None:
    world = World(service(ONE, nat="full"))
    world.connect()
    successor = succeed(world, service(ONE, nat="full", sources=["10.1.0.253"]))
    assert taken(successor) == (0, 1)


def test_the_table_may_be_smaller() -> None:
    world = World(DNAT)
    for number in range(5):
        world.connect(client(number))
        world.advance(1)
    assert taken(succeed(world, capacity=3)) == (3, 2)


def test_restoring_a_memory_twice_restores_each_flow_once() -> None:
    world = World(DNAT)
    world.connect()
    successor = succeed(world)
    assert successor.balancer.restoration.restore(world.memory, ALONE) == (0, 1)
    successor.check()


def test_datagrams_that_are_all_scheduled() -> None:
    one_packet = replace(service(ONE, TWO, protocol=Protocol.UDP), one_packet=True)
    world = World(one_packet)
    queries = [world.handle(udp(CLIENT, VIP)) for _ in range(2)]
    assert queries[0].destination != queries[1].destination
    successor = succeed(world)
    assert taken(successor) == (2, 0)
    for query in queries:
        answer = successor.handle(udp(query.destination, CLIENT), Hook.POSTROUTING)
        assert (answer.reason, answer.source) == (Reason.REPLY, VIP)


def test_expected_responses_are_still_expected() -> None:
    counted = replace(service(ONE, protocol=Protocol.UDP), responses=2)
    world = World(counted)
    query = world.handle(udp(CLIENT, VIP))
    world.handle(udp(query.destination, CLIENT), Hook.POSTROUTING)
    successor = succeed(world)
    assert len(successor.flows()) == 1
    successor.handle(udp(query.destination, CLIENT), Hook.POSTROUTING)
    assert successor.flows() == []


def test_a_client_comes_back_to_its_backend() -> None:
    sticky = replace(service(ONE, TWO), persistence=Persistence(60.0, 32))
    world = World(sticky)
    world.connect(client(1))
    connection = world.connect(client(2))
    successor = succeed(world)
    again = successor.connect(client(2, port=50000))
    assert again.server == connection.server


def test_flows_migrate_to_another_datapath() -> None:
    world = World(service(ONE))
    world.connect()
    carried = succeed(world, service(ONE, datapath=Datapath.OFFLOAD))
    (entered,) = messages(carried)
    assert entered["header"]["type"] == CREATE
    # Those that the kernel carries are found there.
    assert not carried.balancer.restoration.has_flows()
    assert taken(succeed(carried)) == (0, 0)
    assert world.balancer.restoration.has_flows()


def test_next_hops_are_restored() -> None:
    """The links have other link_ids in the next process."""
    memories = [anonymous(2), anonymous(2)]
    before, after = (NextHops(memory, 1) for memory in memories)
    front, back = Link(7, "front", b"\2" * 6, 1500), Link(9, "back", b"\4" * 6, 1500)
    before.set_topology(Topology(links=(front, back)))
    hop = before.link_ids[9] << 48 | 0x020000000001
    before.ingress = hop
    before.learn(1, 0, 0xFFFF << 32 | 1)
    after.set_topology(Topology(links=(back,)))
    link_ids = [after.link_id_of(index) for index in memories[0].links]
    after.recall(2, memories[0].hops[1], link_ids)
    assert after.towards_client(2, 0, 0xFFFF << 32 | 1) == after.link_ids[9] << 48 | 0x020000000001


@functools.cache
def eight_flows() -> tuple[World, bytes]:
    """Of two services, and their records."""
    world = World(DNAT, replace(FULL, name="full", vips=service(ONE, vips="192.0.2.11:80").vips))
    for number in range(4):
        world.connect(client(number))
        world.connect(client(number), "192.0.2.11:80")
    return world, Records(world.memory.records).copy(0, 9)


@given(
    records=st.lists(st.binary(min_size=RECORD_SIZE, max_size=RECORD_SIZE), max_size=8),
    used=st.integers(0, 1 << 31),
    data=st.data(),
)
def test_whatever_the_memory_holds(records: list[bytes], used: int, data: st.DataObject) -> None:
    """A process may have died in the middle of a change, and a file may hold anything."""
    world, before = eight_flows()
    memory = FlowMemory(bytearray(size_of(len(records) + 8)))
    block = before + b"".join(records)
    memory.records[: len(block)] = block
    for _ in range(data.draw(st.integers(0, 20))):
        at = data.draw(st.integers(0, len(memory.records) - 1))
        memory.records[at] = data.draw(st.integers(0, 255))
    memory.used[0] = used
    successor = World(*world.services)
    successor.now = world.now
    successor.balancer.restoration.restore(memory, ALONE)
    successor.check()
    successor.advance(1e9)
    assert successor.flows() == []
    assert successor.active() == {ONE: 0, TWO: 0}


def test_the_parts_of_a_memory() -> None:
    block = mmap.mmap(-1, size_of(1000))
    memory = FlowMemory(block)
    assert memory.capacity == 1000
    memory.used[0] = 3
    smaller = copy(memory)
    assert (smaller.capacity, smaller.used[0]) == (3, 3)
    assert len(b"".join(memory.parts())) == size_of(3)
    assert memory.hops.nbytes == 1001 * HOP_SIZE


def test_addresses_of_both_families_are_distinct() -> None:
    """The shard of an IPv6 client depends on all its words."""
    world = World(SIX)
    for number in range(1, 21):
        world.connect(f"[2001:db8:{number}::7]:40000", VIP6)
    shards = [Shard(number, 2, seed=3) for number in range(2)]
    found = [succeed(world, shard=shard).flows() for shard in shards]
    assert sum(map(len, found)) == 20
    for shard, flows in zip(shards, found, strict=True):
        for flow in flows:
            assert flow.client.address.version == 6
            assert shard.has(*words_of(flow.client.address), flow.client.port)
