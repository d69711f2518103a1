"""Flows that a program in the kernel opens by itself, from tables that the core writes. The test
plays the program."""

import re
import struct
from dataclasses import replace
from typing import Any

import pytest

from featherlb.core.flows.entry import ENTRY_SIZE
from featherlb.core.flows.tcp_state import State
from featherlb.core.path import openings
from featherlb.core.path.openings import (
    MEMBER_SIZE,
    MEMBERS,
    ROWS,
    SERVICE_SIZE,
    SERVICES,
    Openings,
    Tables,
)
from featherlb.core.pools.explain import Decision
from featherlb.core.pools.turn import How, scrambled
from featherlb.model import (
    Datapath,
    Endpoint,
    Hook,
    Persistence,
    Protocol,
    Ramp,
    Role,
    Service,
    Verdict,
)
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
            services=memoryview(bytearray(SERVICES * SERVICE_SIZE)),
            members=memoryview(bytearray(MEMBERS * MEMBER_SIZE)),
            rows=memoryview(bytearray(ROWS * 8)),
            queue=memoryview(bytearray(8)),
            spare=memoryview(bytearray(SPARE * 8)),
            control=memoryview(bytearray(48)),
        )
        self.openings: Openings = world.balancer.openings
        self.openings.attach(self.tables_of)
        self.start(world)
        self.openings.update()

    def wheel(self, number: int = 1) -> tuple[How, list[str]]:
        """How flows of a service are opened, and the backends of its slots."""
        how, _, table = struct.unpack_from("=IIQ", self.tables_of.services, number * SERVICE_SIZE)
        first, size = table >> 32, table & 0xFFFFFFFF
        slots = self.tables_of.rows.cast("H")[first * 4 : first * 4 + size]
        return How(how), [self.member(slot - 1)[0] if slot else "" for slot in slots]

    def member(self, number: int) -> tuple[str, int, int, int]:
        """Endpoint, whether it is usable, its load and its weight."""
        at = number * MEMBER_SIZE
        address = ".".join(map(str, self.tables_of.members[at + 12 : at + 16]))
        port = int.from_bytes(self.tables_of.members[at + 16 : at + 18], "big")
        return (f"{address}:{port}", *struct.unpack_from("=HII", self.tables_of.members, at + 18))

    @property
    def spare(self) -> list[int]:
        """The entries that it may use."""
        head, tail = struct.unpack("=II", self.tables_of.queue)
        slots = self.tables_of.spare.cast("Q")
        return [slots[at % SPARE] for at in range(tail, head)]

    def take(self) -> int:
        (index, *_) = self.spare
        (tail,) = struct.unpack_from("=I", self.tables_of.queue, 4)
        struct.pack_into("=I", self.tables_of.queue, 4, tail + 1)
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
    # The VIP's service; the backends, which clients may talk to themselves; no client's address.
    assert sorted(program.openings.places.values()) == [0, 0, 0, 1]
    weighted = [backend(ONE, 4), backend(TWO, 2), backend(THREE, 0)]
    base = service(*weighted, datapath=EBPF)
    for scheduler, how, slots in (
        ("weighted-round-robin", How.IN_TURN, [ONE, TWO, ONE]),
        ("random", How.AT_RANDOM, [ONE, ONE, TWO]),
        ("two-choices", How.BY_LOAD, [ONE, ONE, TWO]),
    ):
        world.apply(replace(base, scheduler=scheduler))
        assert program.wheel() == (how, slots)
        assert reasons(program) == {"web": ""}
    world.apply()
    assert program.wheel()[0] is How.BY_WORKER
    assert program.openings.places == {}


def reasons(program: Opener) -> dict[str, str]:
    return program.openings.explain()


def test_what_came_again() -> None:
    world, program = opening()
    struct.pack_into("=II", program.tables_of.members, MEMBER_SIZE + 28, 3, 0xFFFFFFFF)
    program.openings.attach(program.tables_of)
    struct.pack_into("=II", program.tables_of.members, MEMBER_SIZE + 28, 5, 1)
    program.openings.refresh()
    (one, two) = world.statistics().backends
    assert (one.retransmits_forward, one.retransmits_reply) == (0, 0)
    assert (two.retransmits_forward, two.retransmits_reply) == (2, 2)


def test_loads() -> None:
    world, program = opening(scheduler="two-choices")
    program.open(SYN)
    assert program.member(0)[1:] == (1, 0, 1)
    program.openings.refresh()
    assert program.member(0)[1:] == (1, 1, 1)
    world.apply(service(backend(ONE, 0), TWO, datapath=EBPF))
    assert program.wheel() == (How.IN_TURN, [TWO])


def decision(world: World, of: str) -> Decision:
    """What a flow of this client would get."""
    ends = Endpoint.parse(of), Endpoint.parse(VIP)
    pool = world.balancer.views.find_pool(Protocol.TCP, ends[1])
    assert pool is not None
    found = world.balancer.views.explain(pool, Protocol.TCP, *ends, world.now)
    told: Decision = found.decision
    return told


def test_turns_are_shared() -> None:
    """The worker and the program take one slot after the other."""
    world, program = opening(THREE, ONE, TWO)
    assert decision(world, client(1)).backend == Endpoint.parse(THREE)
    struct.pack_into(
        "=I", program.tables_of.services, SERVICE_SIZE + 4, 4
    )  # as if it had opened four
    assert "its slot is the next in turn, number 2 of 3" in decision(world, client(1)).reasons[0]
    assert decision(world, client(1)).reasons[-1] == "the program in the kernel opens the flow"
    world.handle(tcp(client(1), VIP, "S", payload=b"x"))
    assert [str(flow.backend) for flow in world.flows()] == [ONE]
    assert struct.unpack_from("=I", program.tables_of.services, SERVICE_SIZE + 4) == (5,)
    # Who is next stays next.
    world.apply(service(THREE, TWO, datapath=EBPF))
    assert decision(world, client(1)).backend == Endpoint.parse(TWO)
    world.apply(service(THREE, TWO, datapath=EBPF, scheduler="least-connections"))
    assert decision(world, client(1)).reasons[-1].startswith("a worker opens the flow: the sched")


def test_draws_are_shared() -> None:
    """The worker knows what the program will draw."""
    world, program = opening(scheduler="random")
    (*_, state) = struct.unpack_from("=IIQ32s", program.tables_of.services, SERVICE_SIZE)
    slots = [ONE, TWO]
    for count in range(8):
        struct.pack_into("=I", program.tables_of.services, SERVICE_SIZE + 4, count)
        (seed,) = struct.unpack_from("=I", state)
        place = scrambled((seed + count) % (1 << 32)) % 2
        told = decision(world, CLIENT)
        assert told.backend == Endpoint.parse(slots[place])
        assert f"its slot is drawn next, number {place + 1} of 2" in told.reasons[0]
    world.apply(service(ONE, TWO, datapath=EBPF, scheduler="two-choices"))
    program.open(SYN)
    program.open(tcp(client(2), VIP, "S"))
    told = decision(world, client(3))
    places = {
        int(word) - 1 for word in re.findall(r"\d+", told.reasons[0].partition("next,")[2])[:2]
    }
    assert told.backend == Endpoint.parse(TWO if 1 in places else ONE)


def test_tables_of_hashes() -> None:
    world, program = opening(scheduler="maglev")
    how, owners = program.wheel()
    assert (how, len(owners), set(owners)) == (How.BY_TUPLE, 65537, {ONE, TWO})
    world.apply(service(ONE, TWO, datapath=EBPF, scheduler="source-hash"))
    assert program.wheel() == (How.BY_CLIENT, [""] * 65536)
    for _ in range(40):
        program.openings.refresh()
    how, owners = program.wheel()
    assert set(owners) == {ONE, TWO}
    # Only the rows of the one that has left are unknown.
    world.apply(service(TWO, datapath=EBPF, scheduler="source-hash"))
    before = [owner if owner == TWO else "" for owner in owners]
    assert program.wheel() == (How.BY_CLIENT, before)
    # The client's address places a flow.
    number = struct.unpack_from("=I", program.tables_of.services, SERVICE_SIZE)
    assert number == (How.BY_CLIENT,)


def test_tables_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of a table that was replaced rest for 0.1 s or more, and are used again."""
    monkeypatch.setattr(openings, "ROWS", 33000)  # two tables
    world, program = opening(scheduler="maglev")
    for weight in range(2, 5):
        world.apply(service(backend(ONE, weight), TWO, datapath=EBPF, scheduler="maglev"))
        assert reasons(program) == {"web": ""}
        program.openings.refresh()
        program.openings.refresh()
    for weight in range(2, 4):
        world.apply(service(backend(ONE, weight), TWO, datapath=EBPF, scheduler="maglev"))
    assert reasons(program) == {"web": "its table finds no room"}
    for _ in range(3):
        program.openings.refresh()
    assert reasons(program) == {"web": ""}


REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "scheduler": ({"scheduler": "least-connections"}, "the scheduler least-connections chooses"),
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
    assert reasons(program)["web"].startswith(reason)
    assert program.wheel() == (How.BY_WORKER, [])
    assert program.openings.places == {}


def test_a_slow_start_is_the_workers() -> None:
    ramp = Ramp(1000.0, 10.0)
    world, program = opening(backend(ONE, ramp=ramp), TWO)
    assert reasons(program) == {"web": "a backend starts slowly"}
    world.advance(11)
    for number in range(1, 4):
        world.handle(tcp(client(number), VIP, "S"))
    program.openings.refresh()
    assert reasons(program) == {"web": ""}


def test_all_flows_are_the_workers_for_a_while() -> None:
    _, program = opening()
    program.openings.suspend("packets are captured", frozenset())
    assert reasons(program) == {"web": "packets are captured"}
    assert program.wheel()[0] is How.BY_WORKER
    program.openings.suspend("", frozenset({Protocol.UDP}))
    assert reasons(program) == {"web": ""}
    program.openings.suspend("", frozenset({Protocol.TCP}))
    assert reasons(program) == {"web": "there is a flood of SYNs"}
    program.openings.suspend("", frozenset())
    assert program.wheel() == (How.IN_TURN, [ONE, TWO])


def test_another_datapath() -> None:
    world, program = opening()
    wanted: Service = service(ONE, TWO)
    world.apply(wanted)
    assert program.openings.places == {}
    assert program.wheel()[0] is How.BY_WORKER
