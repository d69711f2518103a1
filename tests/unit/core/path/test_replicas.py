"""Several nodes: any of them carries a connection on, whoever opened it."""

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from featherlb.core.flows.record import RECORD_SIZE
from featherlb.core.flows.tcp_state import State
from featherlb.model import Protocol, Service, Sync
from featherlb.model.reason import Reason
from featherlb.model.shard import WHOLE
from tests.builders import udp
from tests.world import BACKENDS, CLIENT, ONE, THREE, TWO, VIP, Connection, World, client, service

SOURCES = ("10.1.0.251", "10.1.0.252", "10.1.0.253")


def _own(node: int, nat: str) -> Service:
    """The service as this node has it: with its own source address, and those of the others."""
    found = service(*BACKENDS, nat=nat, sources=[SOURCES[node]])
    others = tuple(ip_address(one) for one in SOURCES if one != SOURCES[node])
    backends = (
        replace(one, peer_sources=others if nat == "full" else ()) for one in found.backends
    )
    return replace(found, backends=tuple(backends))


class Cluster:
    """Nodes that tell one another about their flows. Node 0 has number 1, and so on."""

    def __init__(self, *services: Service, nodes: int = 3, nat: str = "dnat") -> None:
        """Without `services`, one of round-robin, where each node has its own source address."""
        self.worlds = []
        self.dead: set[int] = set()
        for node in range(nodes):
            world = World(*(services or (_own(node, nat),)))
            world.balancer.announcer.start(node + 1, int(world.now * 10))
            self.worlds.append(world)
        self.see()

    def see(self) -> None:
        """Let all know who is alive."""
        for node, world in enumerate(self.worlds):
            others = (one + 1 for one in self.living() if one != node)
            world.balancer.replicas.set_living(others)

    def living(self) -> list[int]:
        return [node for node in range(len(self.worlds)) if node not in self.dead]

    def kill(self, node: int) -> None:
        self.dead.add(node)
        self.see()

    def exchange(self) -> None:
        """Deliver what is announced until nobody has more to say."""
        while sent := {node: self.take(node) for node in self.living() if self.pending(node)}:
            for node, announcements in sent.items():
                self.deliver(announcements, (one for one in self.living() if one != node))

    def pending(self, node: int) -> int:
        return self.worlds[node].balancer.announcer.count

    def take(self, node: int) -> bytes:
        return self.worlds[node].balancer.announcer.take()

    def deliver(self, announcements: bytes, nodes: Iterable[int]) -> None:
        for node in nodes:
            world = self.worlds[node]
            world.balancer.replicas.receive(bytearray(announcements), int(world.now * 10))
            world.check()

    def advance(self, seconds: float) -> None:
        """Let time pass, with a timer and an exchange every 0.1 s at first."""
        for step in (*[0.1] * min(3, round(seconds * 10)), max(0, seconds - 0.3)):
            for node in self.living():
                self.worlds[node].advance(step)
            self.exchange()

    def states(self, node: int) -> list[str]:
        return self.worlds[node].states()


def through(connection: Connection, world: World) -> Connection:
    """The connection's packets go to this node from now on."""
    connection.world = world
    return connection


@pytest.fixture(params=["dnat", "full"])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    return Cluster(nat=request.param)


def test_a_connection_goes_on_at_another_node(cluster: Cluster) -> None:
    first, second, third = cluster.worlds
    connection = first.connect()
    cluster.exchange()
    assert cluster.states(1) == cluster.states(2) == ["REPLICA"]
    cluster.kill(0)
    server = connection.server
    through(connection, second).send("PA", b"question")
    assert connection.server == server
    connection.reply("PA", b"answer")
    assert cluster.states(1) == ["ESTABLISHED"]
    cluster.exchange()
    assert cluster.states(2) == ["REPLICA"]
    through(connection, third).send("PA", b"more")
    cluster.exchange()
    assert (cluster.states(1), cluster.states(2)) == (["REPLICA"], ["ESTABLISHED"])
    assert second.balancer.replicas.yielded == 1


def test_a_server_that_speaks_first_is_heard_after_a_death(cluster: Cluster) -> None:
    connection = cluster.worlds[0].connect()
    cluster.exchange()
    cluster.kill(0)
    through(connection, cluster.worlds[1]).reply("PA", b"news")
    assert cluster.states(1) == ["ESTABLISHED"]


def test_replies_by_another_way_leave_the_flow_where_it_is(cluster: Cluster) -> None:
    first, second, _ = cluster.worlds
    connection = first.connect()
    cluster.exchange()
    for _ in range(3):
        through(connection, first).send("PA", b"question")
        through(connection, second).reply("PA", b"answer")
        cluster.exchange()
    assert (cluster.states(0), cluster.states(1)) == (["ESTABLISHED"], ["REPLICA"])
    assert second.balancer.replicas.taken_over == 0


def test_an_end_is_an_end_everywhere(cluster: Cluster) -> None:
    connection = cluster.worlds[0].connect()
    cluster.exchange()
    connection.send("R")
    # It is no load of its backend any more, nowhere.
    cluster.exchange()
    assert [cluster.states(node) for node in range(3)] == [["CLOSED"], [], []]
    cluster.advance(11)
    assert [cluster.states(node) for node in range(3)] == [[], [], []]


def test_the_next_connection_from_a_port_replaces_one_whose_end_was_lost() -> None:
    cluster = Cluster()
    first = cluster.worlds[0]
    before = first.connect()
    cluster.exchange()
    before.send("R")
    cluster.take(0)  # which is lost
    for _ in range(11):
        cluster.advance(1)
    after = first.connect()
    assert after.server != before.server
    cluster.exchange()
    (view,) = cluster.worlds[1].flows()
    assert str(view.backend) == after.server


def test_a_port_of_another_node_is_neither_taken_nor_given_back() -> None:
    cluster = Cluster(nat="full")
    first, second, _ = cluster.worlds
    connection = first.connect()
    cluster.exchange()
    through(connection, second).send("PA", b"question")
    cluster.exchange()
    assert connection.source.startswith(SOURCES[0])
    connection.send("R")
    cluster.exchange()
    cluster.advance(11)
    assert cluster.states(0) == cluster.states(1) == []
    assert second.connect(client(1)).source.startswith(SOURCES[1])


def test_a_successor_restores_its_own_flows_and_gets_the_others_again() -> None:
    cluster = Cluster()
    first, second, _ = cluster.worlds
    mine, theirs = first.connect(client(1)), second.connect(client(2))
    cluster.exchange()
    successor = World(*first.services)
    successor.now = first.now
    successor.balancer.announcer.start(1, int(first.now * 10))
    restored, _ = successor.balancer.restoration.restore(first.memory, WHOLE)
    assert restored == 1
    cluster.worlds[0] = successor
    second.balancer.announcer.begin_copy()
    while second.balancer.announcer.copy():
        cluster.exchange()
    cluster.exchange()
    assert sorted(successor.states()) == ["ESTABLISHED", "REPLICA"]
    for connection in (mine, theirs):
        server = connection.server
        through(connection, successor).send("PA", b"question")
        assert connection.server == server


def test_a_half_open_connection_is_known_after_a_tenth_of_a_second() -> None:
    cluster = Cluster()
    connection = Connection(cluster.worlds[0])
    connection.send("S")
    cluster.exchange()
    assert cluster.states(1) == []
    cluster.advance(0.3)
    assert cluster.states(1) == ["REPLICA"]
    # The client's retransmission goes where the first SYN went.
    server = connection.server
    connection.sent -= 1
    through(connection, cluster.worlds[1]).send("S")
    assert connection.server == server


def test_what_was_refused_is_not_announced() -> None:
    cluster = Cluster(service(ONE))
    connection = Connection(cluster.worlds[0])
    connection.send("S")
    connection.reply("RA")
    cluster.advance(1)
    assert cluster.states(1) == []


def test_what_a_service_has_announced() -> None:
    off = service(*BACKENDS)
    for sync, known in ((Sync.OFF, 0), (Sync.ESTABLISHED, 0), (Sync.IMMEDIATE, 1)):
        cluster = Cluster(_with(off, sync))
        Connection(cluster.worlds[0]).send("S")
        cluster.exchange()
        assert len(cluster.states(1)) == known
    cluster = Cluster(_with(off, Sync.OFF))
    cluster.worlds[0].connect()
    cluster.advance(1)
    assert cluster.states(1) == []


def _with(one: Service, sync: Sync) -> Service:
    return replace(one, sync=sync)


def test_replicas_are_load_of_their_backends() -> None:
    cluster = Cluster(service(*BACKENDS, scheduler="least-connections"))
    first, second, _ = cluster.worlds
    servers = [first.connect(client(number)).server for number in range(2)]
    cluster.exchange()
    assert sum(second.active().values()) == 2
    assert {second.connect(client(2)).server, *servers} == {ONE, TWO, THREE}


def test_a_used_flow_stays_and_an_unused_one_expires_everywhere() -> None:
    cluster = Cluster(service(*BACKENDS, protocol=Protocol.UDP))
    first, second, _ = cluster.worlds
    used, unused = client(1), client(2)
    for each in (used, unused):
        assert first.handle(udp(each, VIP, b"first")).reason is Reason.FORWARD
    cluster.advance(1)
    assert len(cluster.states(1)) == 2
    for _ in range(8):
        for _ in range(50):
            cluster.advance(0.1)
        first.handle(udp(used, VIP, b"again"))
    for world in (first, second):
        assert [str(view.client) for view in world.flows()] == [used]


def test_who_joins_copies_what_is_there() -> None:
    cluster = Cluster()
    first, second, third = cluster.worlds
    cluster.dead.add(2)
    cluster.see()
    for number in range(4):
        first.connect(client(number))
        second.connect(client(10 + number))
    cluster.exchange()
    cluster.kill(0)
    # What nobody alive owns is copied as well.
    cluster.dead.remove(2)
    cluster.see()
    second.balancer.announcer.begin_copy()
    while second.balancer.announcer.copy():
        cluster.exchange()
    cluster.exchange()
    assert third.states() == ["REPLICA"] * 8
    assert first.balancer.announcer.count == 0


def test_more_announcements_than_there_is_room_for_are_made_up_for() -> None:
    cluster = Cluster()
    world = cluster.worlds[0]
    announcer = world.balancer.announcer
    announcer.start(1, int(world.now * 10), 3)
    for number in range(4):
        world.connect(client(number))
    assert announcer.lost
    cluster.take(0)  # and these are lost as well
    announcer.begin_copy()
    assert not announcer.lost
    assert announcer.copy()
    cluster.exchange()
    assert not announcer.copy()
    cluster.exchange()
    assert cluster.states(1) == ["REPLICA"] * 4


def test_two_nodes_that_opened_the_same_connection_agree() -> None:
    cluster = Cluster(service(*BACKENDS))
    first, second, third = cluster.worlds
    second.connect(client(5))  # so that round-robin differs
    one, other = first.connect(), second.connect()
    assert one.server != other.server
    cluster.exchange()
    # The higher node is right, and all have its backend.
    assert first.balancer.replicas.conflicts == 1
    for world in (first, second, third):
        (view,) = [view for view in world.flows() if str(view.client) == CLIENT]
        assert str(view.backend) == other.server
    assert second.balancer.replicas.conflicts == 1


def test_a_backend_that_only_one_node_has_is_no_replica() -> None:
    cluster = Cluster(nodes=2)
    cluster.worlds[1].apply(service(TWO, THREE))
    cluster.worlds[0].connect()
    cluster.exchange()
    assert cluster.states(1) == []
    assert cluster.worlds[1].balancer.replicas.unmatched == 1


def test_anything_may_be_received() -> None:
    world = Cluster(nodes=1).worlds[0]
    for garbage in (b"", b"\xff" * RECORD_SIZE, bytes(3 * RECORD_SIZE + 7)):
        world.balancer.replicas.receive(bytearray(garbage), 10_000)
        world.check()
    assert world.states() == []


class Nodes(RuleBasedStateMachine):
    """Connections move between nodes that die, join and lose messages: no packet of an announced
    connection ever goes to another backend than its first one."""

    @initialize(nat=st.sampled_from(["dnat", "full"]))
    def begin(self, nat: str) -> None:
        self.cluster = Cluster(nat=nat)
        self.connections: dict[int, Connection] = {}

    def node(self, choice: int) -> World:
        living = self.cluster.living()
        return self.cluster.worlds[living[choice % len(living)]]

    @rule(number=st.integers(0, 5), at=st.integers(0, 2))
    def connect(self, number: int, at: int) -> None:
        if number not in self.connections:
            self.connections[number] = self.node(at).connect(client(number))
            self.cluster.exchange()

    @rule(number=st.integers(0, 5), at=st.integers(0, 2), back=st.integers(0, 2))
    def talk(self, number: int, at: int, back: int) -> None:
        if connection := self.connections.get(number):
            server, source = connection.server, connection.source
            through(connection, self.node(at)).send("PA", b"question")
            assert (connection.server, connection.source) == (server, source)
            self.cluster.exchange()
            through(connection, self.node(back)).reply("PA", b"answer")
            self.cluster.exchange()

    @rule(number=st.integers(0, 5), at=st.integers(0, 2))
    def push(self, number: int, at: int) -> None:
        if connection := self.connections.get(number):
            through(connection, self.node(at)).reply("PA", b"news")
            self.cluster.exchange()

    @rule(number=st.integers(0, 5), at=st.integers(0, 2))
    def end(self, number: int, at: int) -> None:
        if connection := self.connections.pop(number, None):
            through(connection, self.node(at)).send("R")
            self.cluster.exchange()
            self.cluster.advance(11)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0]))
    def wait(self, seconds: float) -> None:
        self.cluster.advance(seconds)

    @rule(node=st.integers(0, 2))
    def die(self, node: int) -> None:
        if len(self.cluster.living()) > 1 and node not in self.cluster.dead:
            self.cluster.kill(node)

    @rule(node=st.integers(0, 2))
    def join(self, node: int) -> None:
        """It comes back with nothing, and copies before it serves."""
        if node not in self.cluster.dead:
            return
        fresh = World(*self.cluster.worlds[node].services)
        fresh.now = max(self.cluster.worlds[one].now for one in self.cluster.living())
        fresh.balancer.announcer.start(node + 1, int(fresh.now * 10))
        self.cluster.worlds[node] = fresh
        self.cluster.dead.remove(node)
        self.cluster.see()
        for one in self.cluster.living():
            announcer = self.cluster.worlds[one].balancer.announcer
            announcer.begin_copy()
            while announcer.copy():
                self.cluster.exchange()
        self.cluster.exchange()

    @invariant()
    def everybody_knows_every_connection(self) -> None:
        for node in self.cluster.living() if hasattr(self, "cluster") else ():
            known = {
                str(view.client): str(view.backend) for view in self.cluster.worlds[node].flows()
            }
            for connection in self.connections.values():
                assert known.get(connection.client) == connection.server

    @invariant()
    def one_node_owns_each(self) -> None:
        if not hasattr(self, "cluster"):
            return
        for connection in self.connections.values():
            owners = [
                node
                for node in self.cluster.living()
                for view in self.cluster.worlds[node].flows()
                if str(view.client) == connection.client and view.state is not State.REPLICA
            ]
            assert len(owners) <= 1


Nodes.TestCase.settings = settings(max_examples=10, stateful_step_count=25, deadline=None)
TestNodes = Nodes.TestCase
