"""core/flows/lifecycle.py: what flows allocate and release, and eviction."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from featherlb.core.flows.tcp_state import TimeoutClass
from featherlb.model import (
    PRIVILEGED_SOURCE_PORTS,
    SOURCE_PORTS,
    Protocol,
    SynCookies,
    Timeouts,
    Verdict,
)
from featherlb.model.reason import Reason
from tests.builders import tcp, udp
from tests.world import BACKENDS, ONE, TWO, VIP, Connection, World, client, service

OTHER_VIP = "192.0.2.11:80"
TIMES = Timeouts(half_open=30, established=900, fin=120, closed=10)

both_modes = pytest.mark.parametrize("nat", ["dnat", "full"])


def make_world(
    *backends: str,
    nat: str = "dnat",
    capacity: int = 64,
    source_ports: range = range(1024, 32768),
) -> World:
    return World(
        replace(service(*(backends or BACKENDS), nat=nat), syn_cookies=SynCookies.OFF),
        capacity=capacity,
        timeouts=TIMES,
        source_ports=source_ports,
    )


def has_no_port(connection: Connection) -> bool:
    """Whether its SYN is dropped for want of a source port, without an answer."""
    outcome = connection.lose("S")
    return (outcome.verdict, outcome.reason, outcome.answers) == (
        Verdict.DROP,
        Reason.NO_SOURCE_PORT,
        (),
    )


def test_source_ports_run_out_and_are_reused() -> None:
    world = make_world(ONE, nat="full", source_ports=range(1024, 1028))
    connections = [world.connect(client(number)) for number in range(4)]
    assert {connection.source for connection in connections} == {
        f"10.1.0.254:{port}" for port in range(1024, 1028)
    }
    late = Connection(world, client(9))
    assert has_no_port(late)
    connections[2].send("FA")
    assert has_no_port(late)  # half closed is not closed
    connections[2].reply("FA")
    late.handshake()  # the closing flow is given up
    assert late.source == connections[2].source
    assert len(world.flows()) == 4


def test_a_closing_flow_keeps_its_source_port_while_others_are_free() -> None:
    world = make_world(ONE, nat="full", source_ports=range(1024, 1027))
    old = world.connect(client(1))
    old.send("R")
    new = world.connect(client(2))
    assert old.source != new.source
    assert old.state == "CLOSED"


@pytest.mark.parametrize(
    ("port", "privileged"), [(1, True), (511, True), (700, True), (1023, True), (1024, False)]
)
def test_a_privileged_port_becomes_one(port: int, privileged: bool) -> None:
    """And is free again afterwards."""
    world = make_world(ONE, nat="full")
    for _ in range(200):
        connection = world.connect(client(1, port))
        assert (int(connection.source.split(":")[1]) in PRIVILEGED_SOURCE_PORTS) == privileged
        connection.send("R")


def test_when_privileged_ports_run_out_any_port_is_better_than_none() -> None:
    world = make_world(ONE, nat="full", capacity=200)
    count = len(PRIVILEGED_SOURCE_PORTS)
    connections = [world.connect(client(number, 700)) for number in range(count + 1)]
    ports = [int(connection.source.split(":")[1]) for connection in connections]
    assert sorted(ports[:-1]) == list(PRIVILEGED_SOURCE_PORTS)
    assert ports[-1] in SOURCE_PORTS
    # One of a closing flow is better still.
    for connection in (connections[-1], connections[7]):
        connection.send("R")
    assert world.connect(client(count + 1, 701)).source == connections[7].source
    assert connections[-1].state == "CLOSED"


def test_expiry_releases_source_ports() -> None:
    world = make_world(ONE, nat="full", source_ports=range(1024, 1026))
    for turn in range(5):
        sources = {world.connect(client(turn * 2 + one)).source for one in (0, 1)}
        assert len(sources) == 2
        world.advance(TIMES.established)
        assert world.flows() == []


def half_open(world: World, number: int, answered: bool = False) -> Connection:
    """A connection whose handshake stops after the SYN, or after the backend's SYN-ACK."""
    connection = Connection(world, client(number))
    connection.send("S")
    if answered:
        connection.reply("SA")
    return connection


def alive(world: World, *connections: Connection) -> list[bool]:
    """Which of them still have their flow."""
    clients = {str(flow.client) for flow in world.flows()}
    return [connection.client in clients for connection in connections]


def reclaimed(world: World) -> int:
    return sum(one.ports_reclaimed for one in world.statistics().backends)


def test_a_half_open_flow_gives_its_source_port_to_a_new_one() -> None:
    """A spoofed SYN costs nothing: it must not hold what a real client needs."""
    world = make_world(ONE, nat="full", source_ports=range(1024, 1028))
    opened = world.connect(client(1))
    spoofed = []
    for number in (2, 3, 4):
        spoofed.append(half_open(world, number, answered=number % 2 == 0))
        world.advance(0.1)
    for lost in range(1, 4):
        real = world.connect(client(10 + lost))
        assert alive(world, opened, real, *spoofed) == [True, True, *(n >= lost for n in range(3))]
    assert reclaimed(world) == 3
    # Established connections keep theirs.
    assert has_no_port(Connection(world, client(20)))
    real.send("R")
    world.connect(client(20))
    assert reclaimed(world) == 3  # that was none that was half-open


def test_an_overdue_answer_gives_up_first_and_a_new_syn_last() -> None:
    world = make_world(ONE, nat="full", source_ports=range(1024, 1028))
    answered = half_open(world, 1, answered=True)
    world.advance(0.5)
    overdue = half_open(world, 2)
    world.advance(1.5)
    fresh = [half_open(world, number) for number in (3, 4)]
    half_open(world, 5)
    assert alive(world, overdue, answered, *fresh) == [False, True, True, True]
    # The backend may still answer those: what waits for its client has waited for longer.
    half_open(world, 6)
    assert alive(world, answered, *fresh) == [False, True, True]


def test_a_retransmitted_syn_keeps_its_place_and_an_open_flow_leaves_the_line() -> None:
    world = make_world(ONE, nat="full", source_ports=range(1024, 1027))
    first, second, third = (half_open(world, number) for number in (1, 2, 3))
    world.advance(0.5)
    first.lose("S")
    assert first.state == "SYN_RETRIED"
    second.reply("SA")
    second.send("A")
    half_open(world, 4)
    assert alive(world, first, second, third) == [False, True, True]
    half_open(world, 5)
    assert alive(world, second, third) == [True, False]


def test_datagrams_without_an_answer_give_up_their_source_port() -> None:
    world = World(service(ONE, nat="full", protocol=Protocol.UDP), source_ports=range(1024, 1026))
    (first, second, third) = (client(number) for number in range(3))
    answer = world.handle(udp(first, VIP))
    world.handle(udp(answer.destination, answer.source))
    world.handle(udp(second, VIP))
    world.handle(udp(third, VIP))
    assert {str(flow.client) for flow in world.flows()} == {first, third}


def test_where_source_ports_are_scarce_half_open_flows_end_early() -> None:
    world = make_world(ONE, nat="full", source_ports=range(1024, 1044))
    old = [half_open(world, number, answered=number % 2 == 0) for number in range(16)]
    world.advance(TIMES.half_open / 4)
    assert alive(world, *old) == [True] * 16
    half_open(world, 16)  # the first beyond 80 %
    assert alive(world, *old).count(False) == 4
    assert reclaimed(world) == 4
    (backend,) = world.statistics().backends
    assert (backend.ports, backend.ports_in_use) == (20, 13)
    # What is younger than an eighth of the time-out stays.
    world.advance(TIMES.half_open)
    young = [half_open(world, number) for number in range(20, 36)]
    world.advance(TIMES.half_open / 10)
    half_open(world, 36)
    assert alive(world, *young) == [True] * 16


def test_a_flood_towards_one_backend_takes_no_port_of_another() -> None:
    world = World(
        service(ONE, nat="full"),
        service(TWO, name="other", vips=OTHER_VIP, nat="full"),
        source_ports=range(1024, 1026),
    )
    bystander = Connection(world, client(1), OTHER_VIP)
    bystander.send("S")
    for number in range(2, 9):
        half_open(world, number)
    assert alive(world, bystander) == [True]
    (one, other) = world.statistics().backends
    assert (one.ports_reclaimed, other.ports_reclaimed) == (5, 0)


def test_source_ports_are_counted_per_backend() -> None:
    world = make_world(ONE, TWO, nat="full", source_ports=range(1024, 1026))
    connections = [world.connect(client(number)) for number in range(4)]
    assert {(connection.server, connection.source) for connection in connections} == {
        (server, f"10.1.0.254:{port}") for server in (ONE, TWO) for port in (1024, 1025)
    }


def test_two_services_with_one_backend_share_its_source_ports() -> None:
    world = World(
        service(ONE, nat="full"),
        service(ONE, name="other", vips=OTHER_VIP, nat="full"),
        source_ports=range(1024, 1026),
    )
    world.connect(client(1))
    world.connect(client(2), OTHER_VIP)
    assert has_no_port(Connection(world, client(3)))


def test_only_flows_with_a_port_of_this_backend_are_closed_for_one() -> None:
    world = World(
        service(ONE, nat="full"),
        service(TWO, name="other", vips=OTHER_VIP, nat="full"),
        service(ONE, name="kept source", vips="192.0.2.12:80"),
        timeouts=TIMES,
        source_ports=range(1024, 1026),
    )
    bystanders = [
        world.connect(client(1), OTHER_VIP),
        world.connect(client(2), "192.0.2.12:80"),
    ]
    for connection in bystanders:
        connection.send("R")
    held = [world.connect(client(number)) for number in (3, 4)]
    late = Connection(world, client(5))
    assert has_no_port(late)
    assert [connection.state for connection in bystanders] == ["CLOSED", "CLOSED"]
    held[0].send("R")
    late.handshake()
    assert [connection.state for connection in bystanders] == ["CLOSED", "CLOSED"]


def test_a_port_that_is_a_vip_is_never_a_source() -> None:
    """A reply to it would look like a client's packet."""
    world = World(
        service(ONE, nat="full"),
        service(TWO, name="front", vips="10.1.0.254:1024-1026"),
        source_ports=range(1024, 1028),
    )
    assert world.connect(client(1)).source == "10.1.0.254:1027"
    assert has_no_port(Connection(world, client(2)))


def test_a_wildcard_vips_port_is_never_a_source_either() -> None:
    world = World(
        service(ONE, nat="full"),
        service(TWO, name="all", vips="0.0.0.0:1024"),
        source_ports=range(1024, 1026),
    )
    assert world.connect(client(1)).source == "10.1.0.254:1025"
    assert has_no_port(Connection(world, client(2)))


def opened_in_every_class(world: World) -> dict[str, Connection]:
    """Established and closing first, half-open last: eviction must not go by age alone."""
    connections = {
        "ESTABLISHED": world.connect(client(1)),
        "FIN_WAIT": world.connect(client(2)),
        "CLOSED": world.connect(client(3)),
        "SYN_SENT": Connection(world, client(4)),
    }
    world.advance(1)
    connections["FIN_WAIT"].send("FA")
    connections["CLOSED"].send("R")
    world.advance(1)
    connections["SYN_SENT"].send("S")
    assert {name: one.state for name, one in connections.items()} == {
        name: name for name in connections
    }
    return connections


@both_modes
def test_a_full_table_evicts_the_least_valuable_flow(nat: str) -> None:
    """Closed flows are over; a half-open one may be a handshake in progress, and a flood of
    SYNs must not end what is established."""
    world = make_world(nat=nat, capacity=4)
    opened_in_every_class(world)
    survivors = []
    for number in range(10, 14):
        world.advance(0.1)
        world.connect(client(number))
        survivors.append([state for state in world.states() if state != "ESTABLISHED"])
    assert survivors == [["FIN_WAIT", "SYN_SENT"], ["FIN_WAIT"], [], []]
    assert world.statistics().evicted == 4
    # Of the established ones the longest idle went.
    assert client(1) not in [str(view.client) for view in world.flows()]


def test_a_flood_of_syns_ends_no_connection() -> None:
    world = make_world(capacity=8)
    connections = [world.connect(client(number)) for number in range(7)]
    for number in range(50):
        world.handle(tcp(client(100 + number), VIP, "S"))
    assert world.states() == ["ESTABLISHED"] * 7 + ["SYN_SENT"]
    for connection in connections:
        connection.send("PA", b"x")


def test_handshakes_complete_in_a_table_full_of_closed_flows() -> None:
    """As it is whenever connections end faster than their last state times out."""
    world = make_world(capacity=8)
    for number in range(8):
        world.connect(client(number)).send("R")
    handshakes = [Connection(world, client(100 + number)) for number in range(4)]
    for connection in handshakes:
        connection.send("S")
    for connection in handshakes:
        connection.reply("SA")
        connection.send("A")
    assert world.states() == ["CLOSED"] * 4 + ["ESTABLISHED"] * 4


def test_the_order_of_timeout_classes_is_the_order_of_eviction() -> None:
    tcp_classes = ["CLOSED", "HALF_OPEN", "FIN", "ESTABLISHED"]
    assert [kind.name for kind in TimeoutClass if kind.name in tcp_classes] == tcp_classes


@both_modes
def test_a_table_of_one_flow(nat: str) -> None:
    world = make_world(ONE, nat=nat, capacity=1, source_ports=range(1024, 1026))
    for number in range(5):
        world.connect(client(number))
        assert [str(view.client) for view in world.flows()] == [client(number)]
    assert world.active() == {ONE: 1}
    assert world.statistics().evicted == 4


def test_the_timer_ends_a_thousand_flows_at_once_and_says_that_more_are_due() -> None:
    world = make_world(capacity=1500)
    for number in range(1500):
        packet = bytearray(tcp(client(number % 400, 1000 + number), VIP, "S"))
        world.balancer.attach(packet)
        assert world.balancer.handle_packet(0, len(packet), 0, 0, world.now) == Verdict.REWRITTEN
        world.received += 1
    world.now += TIMES.half_open
    assert world.balancer.handle_timer(world.now) is True
    assert 0 < world.statistics().flows < 1500
    assert world.balancer.handle_timer(world.now) is False
    world.check()
    assert world.flows() == []
    assert world.balancer.handle_timer(world.now) is False


class Scarce(RuleBasedStateMachine):
    """Clients and a spoofer who compete for six source ports. The model: which connections are
    open, and so must keep theirs."""

    PORTS = 6

    def __init__(self) -> None:
        super().__init__()
        self.world = make_world(ONE, nat="full", source_ports=range(2000, 2000 + self.PORTS))
        self.count = 0
        self.opening: list[Connection] = []
        self.opened: list[Connection] = []

    def new(self) -> Connection | None:
        """A connection after its SYN; None if it found no port."""
        self.count += 1
        connection = Connection(self.world, client(self.count))
        outcome = connection.lose("S")
        if outcome.reason is Reason.NO_SOURCE_PORT:
            # Only those that are open may keep a client out.
            assert len(self.opened) == self.PORTS
            return None
        connection.sent = (connection.sent + 1) & 0xFFFFFFFF
        return connection

    def lives(self, connection: Connection) -> bool:
        return alive(self.world, connection) == [True]

    @rule(answered=st.booleans())
    def spoof(self, answered: bool) -> None:
        connection = self.new()
        if connection is not None and answered:
            connection.reply("SA")

    @rule()
    def connect(self) -> None:
        connection = self.new()
        if connection is not None:
            connection.reply("SA")
            self.opening.append(connection)

    @precondition(lambda self: self.opening)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        connection = self.opening.pop(data.draw(st.integers(0, len(self.opening) - 1)))
        if self.lives(connection):
            connection.send("A")
            self.opened.append(connection)

    @precondition(lambda self: self.opened)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        connection = self.opened.pop(data.draw(st.integers(0, len(self.opened) - 1)))
        connection.send("R")

    @rule(seconds=st.sampled_from([0.1, 1, 4, 31]))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)

    @invariant()
    def what_is_open_keeps_its_port(self) -> None:
        flows = self.world.flows()
        established = {str(flow.client) for flow in flows if flow.state.name == "ESTABLISHED"}
        assert established == {connection.client for connection in self.opened}
        (backend,) = self.world.statistics().backends
        assert (backend.ports, backend.ports_in_use) == (self.PORTS, len(flows))
        assert len({flow.source for flow in flows}) == len(flows)


Scarce.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestScarce = Scarce.TestCase
