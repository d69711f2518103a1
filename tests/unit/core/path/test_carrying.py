"""Flows that a program in the kernel carries: given, caught up with, taken back, adopted. The test
plays the program: it writes what the program would write into the entries."""

from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from featherlb.core.flows.carried import Carried, Keys
from featherlb.core.flows.entry import ENTRY, ENTRY_SIZE
from featherlb.core.flows.record import Field
from featherlb.core.flows.tcp_state import State
from featherlb.model import Datapath, Protocol, Service, Verdict
from featherlb.model.shard import WHOLE, Shard
from tests.builders import udp
from tests.world import BACKENDS, CLIENT, ONE, VIP, Connection, World, client, service

OFFSETS: dict[str, int] = {}
_at = 0
for _field in ENTRY.fields:
    assert isinstance(_field, Field)
    OFFSETS[_field.name] = _at
    _at += int("".join(filter(str.isdigit, str(_field.kind)))) // 8 * _field.count


class Program:
    """The memory that the program shares, and its tables."""

    def __init__(self, size: int = 64) -> None:
        self.memory = memoryview(bytearray(size * ENTRY_SIZE))
        self.tables: dict[int, dict[bytes, int]] = {16: {}, 40: {}}

    def start(self, world: World, shard: Shard = WHOLE) -> tuple[int, int]:
        outcome: tuple[int, int] = world.balancer.carrying.start(
            self.memory, shard, int(world.now * 10)
        )
        self.execute(world)
        return outcome

    def execute(self, world: World, refuse: int = 0) -> None:
        """What an engine does; the last `refuse` keys of each table find no room."""
        carried: Carried = world.balancer.carrying.carried
        while carried.pending():
            for keys in (carried.keys4, carried.keys6):
                table = self.tables[keys.size]
                for key in split(keys.deletes, keys, keys.gone):
                    table.pop(key, None)
                keys.gone = 0
                inserts = list(
                    zip(
                        split(keys.inserts, keys, keys.count),
                        list(keys.refs)[: keys.count],
                        strict=True,
                    )
                )
                keys.count = 0
                kept = len(inserts) - refuse
                table.update(inserts[:kept])
                for _, ref in inserts[kept:]:
                    carried.refuse(ref >> 1)

    def indexes(self) -> set[int]:
        """The entries that keys lead to."""
        return {ref >> 1 for table in self.tables.values() for ref in table.values()}

    def live(self) -> set[int]:
        """Those that are live."""
        return {
            index for index in range(len(self.memory) // ENTRY_SIZE) if self.read(index, "live", 1)
        }

    def read(self, index: int, field: str, size: int, number: int = 0) -> int:
        at = index * ENTRY_SIZE + OFFSETS[field] + number * size
        return int.from_bytes(self.memory[at : at + size], "little")

    def write(self, index: int, field: str, size: int, value: int, number: int = 0) -> None:
        at = index * ENTRY_SIZE + OFFSETS[field] + number * size
        self.memory[at : at + size] = value.to_bytes(size, "little")

    def carry(self, world: World, index: int, reply: int, size: int, state: State) -> None:
        """Count a packet of this size that has brought the flow into this state, and report it."""
        self.write(index, "packets", 4, self.read(index, "packets", 4, reply) + 1, reply)
        self.write(index, "bytes", 8, self.read(index, "bytes", 8, reply) + size, reply)
        self.write(index, "seen", 4, int(world.now * 10))
        word = self.read(index, "state", 4)
        self.write(index, "state", 4, word & ~0xFF | state)


def split(buffer: memoryview, keys: Keys, count: int) -> list[bytes]:
    """The keys at the beginning of a buffer."""
    content = bytes(buffer)
    return [content[i * keys.size : (i + 1) * keys.size] for i in range(count)]


def carried(*backends: str, **fields: object) -> Service:
    return service(*backends or BACKENDS, datapath=Datapath.EBPF, **fields)  # type: ignore[arg-type]


def begin(*services: Service) -> tuple[World, Program]:
    world, program = World(*services), Program()
    assert program.start(world) == (0, 0)
    return world, program


def opened(world: World, program: Program, name: str = CLIENT) -> tuple[Connection, int]:
    """A connection whose SYN has come, and the entry of its flow."""
    before = program.indexes()
    connection = Connection(world, name)
    connection.send("S")
    program.execute(world)
    (index,) = program.indexes() - before
    return connection, index


def notice(world: World, index: int, before: State = State.SYN_SENT) -> None:
    """The program reports another state, 20 ms ago."""
    world.balancer.carrying.noticed(index, before, State.SYN_RECEIVED, world.now - 0.02)


def test_answers_that_the_program_carries_are_timed() -> None:
    world, program = begin(carried(ONE))
    _, index = opened(world, program)
    world.now += 0.05
    program.carry(world, index, 1, 60, State.SYN_RECEIVED)
    notice(world, index)
    (stats,) = world.statistics().backends
    assert stats.latency == pytest.approx(0.03)


def test_the_program_gets_a_flow_with_its_first_packet() -> None:
    world, program = begin(carried(ONE))
    _, index = opened(world, program)
    assert program.live() == {index}
    assert program.read(index, "state", 4) == State.SYN_SENT
    (forward,) = (key for key, ref in program.tables[16].items() if ref == index << 1)
    (reply,) = (key for key, ref in program.tables[16].items() if ref == index << 1 | 1)
    assert forward == key_of(CLIENT, VIP, 6)
    assert reply == key_of(ONE, CLIENT, 6)
    for field, address in (("client", CLIENT), ("vip", VIP), ("backend", ONE), ("source", CLIENT)):
        at = index * ENTRY_SIZE + OFFSETS[field]
        packed = ip_address(address.rpartition(":")[0]).packed
        assert bytes(program.memory[at : at + 16]) == bytes(10) + b"\xff\xff" + packed


def key_of(source: str, destination: str, protocol: int) -> bytes:
    """The key of a packet between these endpoints of IPv4."""
    ends = [end.rpartition(":") for end in (source, destination)]
    return b"".join(
        (
            *(ip_address(host).packed for host, _, _ in ends),
            *(int(port).to_bytes(2, "big") for _, _, port in ends),
            bytes((protocol, 0, 0, 0)),
        )
    )


def test_what_the_program_has_seen_is_caught_up_with() -> None:
    world, program = begin(carried(ONE))
    _, index = opened(world, program)
    assert world.active() == {ONE: 1}
    world.now += 5
    for reply, size, state in (
        (1, 60, State.SYN_RECEIVED),
        (0, 52, State.ESTABLISHED),
        (0, 1000, State.FIN_WAIT),
        (1, 52, State.CLOSING),
    ):
        program.carry(world, index, reply, size, state)
    notice(world, index)
    (flow,) = world.flows()
    assert flow.state is State.CLOSING
    assert flow.idle == 0
    assert (flow.bytes_forward, flow.bytes_reply) == (40 + 1052, 112)
    (stats,) = world.statistics().backends
    assert (stats.packets_forward, stats.packets_reply) == (3, 2)
    assert (stats.bytes_forward, stats.bytes_reply) == (1092, 112)
    assert world.active() == {ONE: 0}
    world.advance(10)
    assert not world.flows()
    program.execute(world)
    assert not program.live()
    assert not program.indexes()


def test_a_flow_lives_as_long_as_the_program_carries_its_packets() -> None:
    world, program = begin(carried(ONE))
    _, index = opened(world, program)
    program.carry(world, index, 1, 60, State.SYN_RECEIVED)
    program.carry(world, index, 0, 52, State.ESTABLISHED)
    notice(world, index)
    for _ in range(5):
        # Nobody has looked at the entry when the timeout of the record has passed.
        world.now += 800
        program.carry(world, index, 0, 52, State.ESTABLISHED)
        world.advance(50)
        assert world.states() == ["ESTABLISHED"]
    world.advance(900)
    assert not world.flows()


def test_what_ends_late_is_counted() -> None:
    world, program = begin(carried(ONE))
    _, index = opened(world, program)
    world.advance(60)
    assert not world.flows()
    # A packet that was in the program when the flow ended.
    program.carry(world, index, 1, 60, State.SYN_RECEIVED)
    program.execute(world)
    world.balancer.carrying.sweep()
    world.balancer.carrying.sweep()
    (stats,) = world.statistics().backends
    assert (stats.packets_reply, stats.bytes_reply) == (1, 60)


def test_an_entry_rests_before_another_flow_gets_it() -> None:
    world, program = begin(carried(ONE))
    _, first = opened(world, program)
    world.advance(60)
    _, second = opened(world, program, client(2))
    assert second != first
    for _ in range(2):
        program.execute(world)
        world.balancer.carrying.sweep()
    _, third = opened(world, program, client(3))
    assert third == first


def test_a_packet_of_a_carried_flow_from_the_queue_is_handled_as_any() -> None:
    world, program = begin(carried(ONE))
    connection, index = opened(world, program)
    # The program has carried the SYN-ACK and more, which the record doesn't know yet.
    program.write(index, "expected", 4, connection.replied + 1, 0)
    program.write(index, "ends", 4, connection.replied + 1, 1)
    connection.replied += 1
    program.carry(world, index, 1, 60, State.SYN_RECEIVED)
    connection.send("A")
    assert world.states() == ["ESTABLISHED"]
    assert program.live() == {index}
    assert program.read(index, "state", 4) == State.ESTABLISHED


def test_sequence_numbers_of_the_same_moment_count_too() -> None:
    """Within a tick of 0.1 s nothing else tells that packets have passed."""
    world, program = begin(carried(ONE))
    connection, index = opened(world, program)
    program.carry(world, index, 1, 60, State.SYN_RECEIVED)
    program.carry(world, index, 0, 52, State.ESTABLISHED)
    for field, number, value in (
        ("expected", 0, 5001),
        ("ends", 1, 5001),
        ("expected", 1, connection.sent),
        ("ends", 0, connection.sent),
    ):
        program.write(index, field, 4, value & 0xFFFFFFFF, number)
    notice(world, index)
    # The backend has sent 1000 bytes, and the client has them.
    program.write(index, "expected", 4, 6001, 0)
    program.write(index, "ends", 4, 6001, 1)
    connection.replied = 6001
    connection.reply("R")
    assert world.states() == ["CLOSED"]


def test_a_change_of_state_while_a_packet_is_handled_counts() -> None:
    world, program = begin(carried(ONE))
    _, index = opened(world, program)
    carrying = world.balancer.carrying
    assert carrying.carried.active
    # As between `take` and `resume`: the word is not the one that was read.
    program.carry(world, index, 1, 60, State.SYN_RECEIVED)
    notice(world, index)
    assert world.states() == ["SYN_RECEIVED"]


@pytest.mark.parametrize("nat", ["dnat", "full"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_successor_adopts_what_the_program_carries(nat: str, workers: int) -> None:
    world, program = begin(carried(nat=nat))
    held = [opened(world, program, client(i)) for i in range(6)]
    for _, index in held:
        program.carry(world, index, 1, 60, State.SYN_RECEIVED)
        program.carry(world, index, 0, 52, State.ESTABLISHED)
    shards = [Shard(i, workers, 0) for i in range(workers)]
    successors = [World(carried(nat=nat), shard=shard) for shard in shards]
    adopted = [
        program.start(successor, shard) for successor, shard in zip(successors, shards, strict=True)
    ]
    assert sum(count for count, _ in adopted) == len(held)
    assert sum(ended for _, ended in adopted) == 0
    assert sum(len(one.flows()) for one in successors) == len(held)
    for one in successors:
        one.check()
        assert set(one.states()) <= {"ESTABLISHED"}
        connection, index = opened(one, program, client(77, 999 + shards[0].workers))
        assert index not in {other for _, other in held}
        connection.reply("SA")


def test_what_is_no_longer_served_ends_at_the_successor() -> None:
    world, program = begin(carried(ONE))
    opened(world, program)
    successor = World(carried(BACKENDS[1]))
    assert program.start(successor) == (0, 1)
    assert not successor.flows()
    assert not program.live()
    assert not program.indexes()


def test_without_room_a_flow_stays_here() -> None:
    world, program = begin(carried(ONE))
    connection = Connection(world)
    connection.send("S")
    program.execute(world, refuse=1)
    assert not program.live()
    assert not program.indexes()
    connection.reply("SA")
    connection.send("A")
    assert world.states() == ["ESTABLISHED"]


@pytest.mark.parametrize("datapath", [Datapath.NFQUEUE, Datapath.RAW])
def test_a_service_with_another_datapath_gets_its_flows_back(datapath: Datapath) -> None:
    world, program = begin(carried(ONE))
    _, index = opened(world, program)
    program.carry(world, index, 1, 60, State.SYN_RECEIVED)
    world.apply(service(ONE, datapath=datapath))
    program.execute(world)
    assert world.states() == ["SYN_RECEIVED"]
    assert not program.live()
    assert not program.indexes()


def test_datagrams_are_scheduled_anew_once_their_backend_has_left() -> None:
    services: Sequence[Service] = (carried(*BACKENDS[:2], protocol=Protocol.UDP),)
    world, program = begin(*services)
    assert world.handle(udp(CLIENT, VIP)).verdict is Verdict.REWRITTEN
    program.execute(world)
    assert len(program.live()) == 1
    world.apply(carried(BACKENDS[2], protocol=Protocol.UDP))
    world.balancer.carrying.recall()
    program.execute(world)
    assert not program.live()
    assert world.handle(udp(CLIENT, VIP)).destination == BACKENDS[2]


def test_an_operator_ends_a_carried_connection() -> None:
    world, program = begin(carried(ONE))
    _, index = opened(world, program)
    program.carry(world, index, 1, 60, State.SYN_RECEIVED)
    program.write(index, "expected", 4, 5001, 0)
    program.carry(world, index, 0, 52, State.ESTABLISHED)
    from featherlb.core.path.export import read_flows

    ((number, key, _),) = read_flows(world.balancer.views.copy_records(1, 10, world.now))
    assert world.balancer.termination.terminate(number, key, True, world.now)
    program.execute(world)
    assert not program.live()
    assert not program.indexes()
    assert len(world.balancer.outbox.take()) == 2
