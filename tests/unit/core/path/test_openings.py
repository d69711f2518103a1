"""Flows that a program in the kernel opens by itself, from tables that the core writes. The test
plays the program."""

import struct
from dataclasses import replace
from typing import Any

import pytest

from featherlb.core.flows.entry import ENTRY_SIZE
from featherlb.core.flows.tcp_state import State
from featherlb.core.path.openings import SERVICES, Openings, Tables
from featherlb.core.pools.wheel import MAX_SLOTS, How
from featherlb.model import Datapath, Hook, Persistence, Protocol, Ramp, Role, Service, Verdict
from tests.builders import tcp, udp
from tests.unit.core.path.test_carrying import Program
from tests.world import CLIENT, ONE, THREE, TWO, VIP, Connection, World, backend, client, service

EBPF = Datapath.EBPF
SPARE = 16
SYN = tcp(CLIENT, VIP, "S", seq=100, options=[("WScale", 7)])


class Opener(Program):
    """A program that opens flows, too."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.tables_of = Tables(
            services=memoryview(bytearray(SERVICES * 16)),
            wheels=memoryview(bytearray(SERVICES * 2 * MAX_SLOTS * 8)),
            members=memoryview(bytearray(4096 * 32)),
            control=memoryview(bytearray(24)),
            spare=memoryview(bytearray(SPARE * 8)),
        )
        openings: Openings = world.balancer.openings
        self.openings = openings
        openings.attach(self.tables_of)
        self.start(world)
        openings.update()

    def wheel(self, number: int = 1) -> tuple[How, list[str]]:
        """How flows of a service are opened, and the backends of its slots."""
        how, word, _, _ = struct.unpack_from("=IIII", self.tables_of.services, number * 16)
        first = (number * 2 + (word >> 16)) * MAX_SLOTS
        slots = self.tables_of.wheels.cast("Q")[first : first + (word & 0xFFFF)]
        return How(how), [self.member(slot)[0] for slot in slots]

    def member(self, number: int) -> tuple[str, int, int, int]:
        """Endpoint, whether it is usable, its load and its weight."""
        at = number * 32
        address = ".".join(map(str, self.tables_of.members[at + 12 : at + 16]))
        port = int.from_bytes(self.tables_of.members[at + 16 : at + 18], "big")
        return (f"{address}:{port}", *struct.unpack_from("=HII", self.tables_of.members, at + 18))

    @property
    def spare(self) -> list[int]:
        """The entries that it may use."""
        head, tail = struct.unpack_from("=II", self.tables_of.control, 16)
        slots = self.tables_of.spare.cast("Q")
        return [slots[at % SPARE] for at in range(tail, head)]

    def take(self) -> int:
        (index, *_) = self.spare
        (tail,) = struct.unpack_from("=I", self.tables_of.control, 20)
        struct.pack_into("=I", self.tables_of.control, 20, tail + 1)
        return index

    def open(self, packet: bytes, endpoint: str = ONE, member: int = 0) -> int:
        """Open a flow to the member with this number; its entry."""
        # What the core writes into an entry for such a flow is what the program does.
        other = World(service(endpoint, datapath=EBPF, protocol=self._protocol(packet)))
        twin = Program()
        twin.start(other)
        other.handle(packet)
        twin.execute(other)
        (source,) = twin.live()
        index = self.take()
        at = index * ENTRY_SIZE
        copy = twin.memory[source * ENTRY_SIZE : (source + 1) * ENTRY_SIZE]
        self.memory[at : at + ENTRY_SIZE] = copy
        self.write(index, "member", 2, member)
        self.write(index, "packets", 4, 1)
        self.write(index, "bytes", 8, len(packet))
        for table in twin.tables.values():
            for key, ref in table.items():
                self.tables[len(key)][key] = index << 1 | ref & 1
        self.report(index, packet)
        return index

    def report(self, index: int, packet: bytes) -> None:
        headers = 28 if packet[9] == 17 else len(packet)
        self.world.balancer.attach(bytearray(packet[:headers] + bytes(112 - headers)))
        self.world.balancer.opened(index, len(packet), self.world.now)
        self.execute(self.world)

    @staticmethod
    def _protocol(packet: bytes) -> Protocol:
        return Protocol.UDP if packet[9] == 17 else Protocol.TCP


def opening(*backends: Any, **fields: Any) -> tuple[World, Opener]:
    world = World(replace(service(*(backends or (ONE, TWO)), datapath=EBPF), **fields))
    return world, Opener(world)


def test_a_flow_is_taken_over() -> None:
    world, program = opening()
    index = program.open(SYN)
    (flow,) = world.flows()
    assert (str(flow.client), str(flow.vip), str(flow.backend)) == (CLIENT, VIP, ONE)
    assert (flow.state, flow.bytes_forward) == (State.SYN_SENT, len(SYN))
    assert world.active() == {ONE: 1, TWO: 0}
    assert program.live() == {index}
    (one, _) = world.statistics().backends
    assert (one.flows, one.packets_forward) == (1, 1)
    # It goes on as one that was opened here.
    connection = Connection(world, sequence=101)
    connection.server, connection.source = ONE, CLIENT
    connection.reply("SA")
    connection.send("A")
    assert connection.state == "ESTABLISHED"


def test_datagrams() -> None:
    world = World(service(ONE, datapath=EBPF, protocol=Protocol.UDP))
    program = Opener(world)
    program.open(udp(CLIENT, VIP, b"question"))
    (flow,) = world.flows()
    assert (flow.state, str(flow.backend)) == (State.UDP_ONE_WAY, ONE)


def test_a_refused_connection_goes_to_another_backend() -> None:
    """The SYN was kept, as of any flow."""
    world, program = opening()
    program.open(SYN)
    outcome = world.handle(tcp(ONE, CLIENT, "RA", seq=0, ack=101), Hook.POSTROUTING)
    assert outcome.verdict is Verdict.DROP
    (again,) = outcome.sent_again
    assert again == SYN


def test_a_flow_that_cannot_be() -> None:
    """The program doesn't carry it on, and gets the entry back after a rest."""
    world, program = opening()
    index = program.open(SYN, member=77)
    assert world.flows() == []
    assert program.live() == set()
    assert program.indexes() == set()
    assert index not in program.spare
    for _ in range(2):
        world.balancer.carrying.sweep()
    while program.spare:
        program.take()
    program.openings.refresh()
    assert index in program.spare


def test_what_was_adopted_is_not_opened_again() -> None:
    world, program = opening()
    index = program.open(SYN)
    program.report(index, SYN)
    assert len(world.flows()) == 1
    assert program.live() == {index}


def test_entries_are_handed_out() -> None:
    world, program = opening()
    assert len(program.spare) == SPARE
    assert len(set(program.spare)) == SPARE
    for number in range(1, 6):
        program.open(tcp(client(number), VIP, "S"))
    assert len(program.spare) == SPARE - 5
    program.openings.refresh()
    assert len(program.spare) == SPARE
    used = program.live()
    assert not used & set(program.spare)
    # A successor takes back what was not used.
    program.openings.attach(program.tables_of)
    assert program.spare == []
    assert world.active()[ONE] == 5


def test_wheels() -> None:
    world, program = opening()
    assert program.wheel() == (How.IN_TURN, [ONE, TWO])
    # The VIP's service, and the backends, which clients may talk to themselves.
    assert sorted(program.openings.vips.values()) == [0, 0, 1]
    weighted = [backend(ONE, 4), backend(TWO, 2), backend(THREE, 0)]
    base = service(*weighted, datapath=EBPF)
    for scheduler, how, slots in (
        ("weighted-round-robin", How.IN_TURN, [ONE, TWO, ONE]),
        ("random", How.AT_RANDOM, [ONE, ONE, TWO]),
        ("two-choices", How.BY_LOAD, [ONE, ONE, TWO]),
    ):
        world.apply(replace(base, scheduler=scheduler))
        assert program.wheel() == (how, slots)
        assert program.openings.reasons == {}
    world.apply()
    assert program.wheel() == (How.BY_WORKER, [])
    assert program.openings.vips == {}


def test_loads() -> None:
    world, program = opening(scheduler="two-choices")
    program.open(SYN)
    assert program.member(0)[1:] == (1, 0, 1)
    program.openings.refresh()
    assert program.member(0)[1:] == (1, 1, 1)
    world.apply(service(backend(ONE, 0), TWO, datapath=EBPF))
    assert program.wheel() == (How.IN_TURN, [TWO])


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "scheduler": ({"scheduler": "maglev"}, "the scheduler maglev chooses"),
    "persistence": ({"persistence": Persistence(60, 32)}, "`persistence`"),
    "mss": ({"mss": 1400}, "`mss`"),
    "role": (
        {"backends": (backend(ONE), backend(TWO, role=Role.BACKUP))},
        "roles of backends",
    ),
    "limit": ({"backends": (backend(ONE, max_connections=5),)}, "`max_connections`"),
    "local": ({"backends": (backend(ONE, local=True),)}, "a backend is on this host"),
    "down": ({"backends": (backend(ONE, 0),)}, "no backend is usable"),
    "weights": (
        {"scheduler": "random", "backends": (backend(ONE, 1000), backend(TWO, 999))},
        "its weights would need 1999 slots",
    ),
}


@pytest.mark.parametrize("name", REASONS)
def test_why_a_worker_opens_them(name: str) -> None:
    fields, reason = REASONS[name]
    _, program = opening(**fields)
    assert program.openings.reasons["web"].startswith(reason)
    assert program.wheel() == (How.BY_WORKER, [])
    assert program.openings.vips == {}


def test_a_slow_start_is_the_workers() -> None:
    ramp = Ramp(1000.0, 10.0)
    world, program = opening(backend(ONE, ramp=ramp), TWO)
    assert program.openings.reasons == {"web": "a backend starts slowly"}
    world.advance(11)
    for number in range(1, 4):
        world.handle(tcp(client(number), VIP, "S"))
    program.openings.refresh()
    assert program.openings.reasons == {}


def test_all_flows_are_the_workers_for_a_while() -> None:
    _, program = opening()
    program.openings.suspend("packets are captured")
    assert program.openings.reasons == {"web": "packets are captured"}
    assert program.wheel()[0] is How.BY_WORKER
    program.openings.suspend("")
    assert program.wheel() == (How.IN_TURN, [ONE, TWO])


def test_another_datapath() -> None:
    world, program = opening()
    wanted: Service = service(ONE, TWO)
    world.apply(wanted)
    assert program.openings.vips == {}
    assert program.wheel() == (How.BY_WORKER, [])
