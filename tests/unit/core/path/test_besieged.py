"""Honest clients among attackers, while flows and source ports are few: a state machine over the
whole core.

The model is what the honest ends know: which of their connections are open, and to whom. Whatever
others send, these stay as they are, new ones can be opened, and in the end nothing is held.
"""

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from featherlb.core.flows.tcp_state import State
from featherlb.model import Hook, Protocol, Service, Verdict
from tests.builders import tcp, udp
from tests.unit.core.path.test_forged import forge
from tests.world import BACKENDS, ONE, TWO, VIP, Connection, World, client, service

CAPACITY = 10
PORTS = range(2000, 2006)
HONEST = 4
"""Connections of honest clients: fewer than flows and ports, so there is always room for one."""
STRANGERS = st.integers(100, 160)


class Besieged(RuleBasedStateMachine):
    """Honest clients have the numbers below `HONEST`, attackers others."""

    @initialize(nat=st.sampled_from(["dnat", "full"]))
    def start(self, nat: str) -> None:
        self.nat = nat
        self.backends: tuple[str, ...] = BACKENDS[:2]
        self.world = World(*self.services(), capacity=CAPACITY, source_ports=PORTS)
        self.open: dict[int, Connection] = {}
        self.leaving: set[int] = set()
        """Open connections whose backend has left, perhaps to come back."""
        self.attacks: list[Connection] = []
        self.sequence = 0

    def services(self) -> tuple[Service, ...]:
        return (
            service(*self.backends, nat=self.nat),
            service(*self.backends, name="dns", nat=self.nat, protocol=Protocol.UDP),
        )

    # Honest clients

    @rule(number=st.integers(0, HONEST - 1))
    def connect(self, number: int) -> None:
        if number not in self.open:
            self.sequence += 1 << 24
            connection = Connection(self.world, client(number), sequence=self.sequence)
            connection.handshake()
            self.open[number] = connection

    @rule(number=st.integers(0, HONEST - 1), how=st.sampled_from(["client", "backend", "reset"]))
    def end(self, number: int, how: str) -> None:
        connection = self.open.pop(number, None)
        if connection is None:
            return
        self.leaving.discard(number)
        if how == "reset":
            connection.send("R")
        elif how == "client":
            connection.send("FA")
            connection.reply("FA")
            connection.send("A")
        else:
            connection.reply("FA")
            connection.send("FA")
            connection.reply("A")

    @rule(seconds=st.sampled_from([0.1, 5, 29, 60]))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)

    # The operator

    @rule(both=st.booleans())
    def reload(self, both: bool) -> None:
        self.backends = BACKENDS[: 2 if both else 1]
        self.world.apply(*self.services())
        # Whose backend has left lives on, but any SYN opens it anew, at another backend.
        if not both:
            self.leaving |= {number for number, one in self.open.items() if one.server == TWO}
        # The world tells a flow of a backend that has left from a later one by their ages.
        self.world.advance(0.1)

    # Attackers

    @rule(numbers=st.lists(STRANGERS, min_size=1, max_size=2 * CAPACITY))
    def flood(self, numbers: list[int]) -> None:
        for number in numbers:
            self.world.handle(tcp(client(number), VIP, "S", seq=number))

    @rule(numbers=st.lists(STRANGERS, min_size=1, max_size=2 * CAPACITY))
    def flood_with_datagrams(self, numbers: list[int]) -> None:
        for number in numbers:
            self.world.handle(udp(client(number), VIP, b"?"))

    @rule(number=STRANGERS)
    def open_half(self, number: int) -> None:
        """The backend answers, and the client never does."""
        attack = Connection(self.world, client(number, 41000), sequence=7)
        if attack.lose("S").verdict is Verdict.REWRITTEN:
            source, destination = attack.server, attack.source
            self.world.handle(tcp(source, destination, "SA", seq=1, ack=8), attack.reply_hook)

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(),
        flags=st.sampled_from(["S", "A", "PA", "FA", "R", "RA"]),
        reply=st.booleans(),
        distance=st.integers(1 << 21, (1 << 32) - (1 << 21)),
        other=st.integers(1 << 21, (1 << 32) - (1 << 21)),
    )
    def forge(
        self, data: st.DataObject, flags: str, reply: bool, distance: int, other: int
    ) -> None:
        """Knowing addresses and ports of a connection, and nothing of its numbers."""
        number = data.draw(st.sampled_from(sorted(self.open)))
        if flags == "S" and number in self.leaving:
            return
        connection = self.open[number]
        ours, theirs = connection.sent, connection.replied
        if reply:
            ours, theirs = theirs, ours
        forge(
            self.world,
            connection,
            flags,
            reply=reply and flags != "S",
            seq=(ours + distance) & 0xFFFFFFFF,
            ack=(theirs + other) & 0xFFFFFFFF,
        )

    @rule(seed=st.integers(0, 1 << 30), hook=st.sampled_from([Hook.PREROUTING, Hook.POSTROUTING]))
    def garbage(self, seed: int, hook: Hook) -> None:
        chance = random.Random(seed)
        packet = bytearray(tcp(client(chance.randrange(200)), VIP, "PA"))
        for _ in range(4):
            packet[chance.choice((0, 9, 20, 32, 33))] = chance.randrange(256)
        self.world.handle(bytes(packet[: chance.randrange(len(packet) + 1)]), hook)

    # What holds

    @invariant()
    def honest_connections_work(self) -> None:
        if not hasattr(self, "world"):
            return
        for connection in self.open.values():
            server, source = connection.server, connection.source
            connection.send("PA", b"ping")
            connection.reply("PA", b"pong")
            assert (connection.server, connection.source) == (server, source)
            assert connection.state == State.ESTABLISHED.name

    def teardown(self) -> None:
        """Once everybody has gone, all flows and ports are free again."""
        if not hasattr(self, "world"):
            return
        self.world.advance(4000)
        assert self.world.flows() == []
        for backend in (ONE, TWO):
            self.world.apply(service(backend, nat=self.nat))
            for number in range(len(PORTS)):
                self.world.connect(client(300 + number))
            assert len(self.world.flows()) == len(PORTS)
            self.world.advance(4000)


Besieged.TestCase.settings = settings(max_examples=12, stateful_step_count=30)
TestBesieged = Besieged.TestCase
