"""Scenarios of connections, backends and configurations, in the world around a balancer."""

from dataclasses import replace

import pytest

from featherlb.model import Hook, Redispatch, Timeouts, Verdict
from featherlb.model.reason import Reason
from tests.builders import parse, tcp
from tests.world import (
    BACKENDS,
    CLIENT,
    ONE,
    THREE,
    TWO,
    VIP,
    Connection,
    World,
    backend,
    client,
    service,
)

OTHER_VIP, THIRD_VIP = "192.0.2.11:80", "192.0.2.12:80"
TIMES = Timeouts(half_open=30, established=900, fin=120, closed=10)

both_modes = pytest.mark.parametrize("nat", ["dnat", "full"])


STAY = Redispatch(refused=False, silent=False)


def make_world(
    *backends: str,
    scheduler: str = "round-robin",
    nat: str = "dnat",
    capacity: int = 64,
    source_ports: range = range(1024, 32768),
    redispatch: bool = True,
) -> World:
    one = service(*(backends or BACKENDS), scheduler=scheduler, nat=nat)
    return World(
        one if redispatch else replace(one, redispatch=STAY),
        capacity=capacity,
        timeouts=TIMES,
        source_ports=source_ports,
    )


def refused(connection: Connection, flags: str, reason: Reason) -> str | None:
    """Send a packet that must be dropped for `reason`; the flags of the RST that answers."""
    outcome = connection.lose(flags)
    assert (outcome.verdict, outcome.reason) == (Verdict.DROP, reason)
    for answer in outcome.answers:
        return str(parse(answer)["TCP"].flags)
    return None


# A connection's life


@both_modes
@pytest.mark.parametrize("local", [False, True], ids=["remote client", "local client"])
def test_a_connection_that_the_client_closes(nat: str, local: bool) -> None:
    world = make_world(nat=nat)
    connection = Connection(world, local=local)
    connection.send("S")
    assert connection.state == "SYN_SENT"
    connection.reply("SA")
    assert connection.state == "SYN_RECEIVED"
    connection.send("A")
    assert connection.state == "ESTABLISHED"
    connection.send("PA", b"GET / HTTP/1.0\r\n\r\n")
    connection.reply("A", bytes(1460))
    connection.reply("PA", bytes(13))
    assert world.active() == {ONE: 1, TWO: 0, THREE: 0}
    connection.send("FA")
    assert connection.state == "FIN_WAIT"
    assert world.active()[ONE] == 1
    connection.reply("FA")
    assert world.active()[ONE] == 0
    connection.send("A")
    assert connection.state == "CLOSING"
    world.advance(TIMES.closed - 0.1)
    assert connection.state == "CLOSING"
    world.advance(0.1)
    assert world.flows() == []


@both_modes
def test_a_connection_that_the_backend_closes(nat: str) -> None:
    world = make_world(nat=nat)
    connection = world.connect()
    connection.reply("PA", b"220 ready\r\n")
    connection.reply("FA")
    assert connection.state == "CLOSE_WAIT"
    connection.send("FA")
    connection.reply("A")
    assert connection.state == "CLOSING"
    world.advance(TIMES.closed)
    assert world.flows() == []


@both_modes
def test_a_half_closed_connection_carries_data_for_as_long_as_there_is_some(nat: str) -> None:
    world = make_world(nat=nat)
    connection = world.connect()
    connection.send("FA")
    for _ in range(5):
        world.advance(TIMES.fin - 0.1)
        connection.reply("PA", b"more")
        connection.send("A")
    assert connection.state == "FIN_WAIT"
    world.advance(TIMES.fin)
    assert world.flows() == []


@both_modes
@pytest.mark.parametrize("by", ["client", "backend"])
def test_a_reset_ends_a_connection_and_stragglers_still_pass(nat: str, by: str) -> None:
    world = make_world(nat=nat)
    connection = world.connect()
    (connection.send if by == "client" else connection.reply)("R")
    assert connection.state == "CLOSED"
    assert world.active()[ONE] == 0
    connection.reply("A", b"late")
    connection.send("R")
    assert connection.state == "CLOSED"
    world.advance(TIMES.closed)
    assert world.flows() == []


def test_what_backends_do_to_connections_is_counted() -> None:
    world = World(service(ONE))
    refusing, silent, slow, resetting = (Connection(world, client(i)) for i in range(4))
    for connection in (refusing, silent, slow, resetting):
        connection.send("S")
    refusing.reply("RA")
    for connection in (silent, silent, slow):
        connection.sent -= 1
        connection.send("S")  # duplicated by the network, or by somebody: no failure
    assert world.statistics().backends[0].syn_retries == 0
    world.advance(1)
    for connection in (silent, silent, slow):
        connection.sent -= 1
        connection.send("S")
    for connection in (slow, resetting):
        connection.reply("SA")
        connection.send("A")
    resetting.reply("R")
    world.advance(Timeouts().half_open + 1)
    (counted,) = world.statistics().backends
    assert counted.flows == 4
    assert (counted.refused, counted.resets) == (1, 1)
    # Two had to send their SYN again, one of them in vain.
    assert (counted.syn_retries, counted.syn_timeouts) == (2, 1)
    *counts, opened_from, failed_from = world.balancer.views.outcomes(["web"])["web"]
    assert counts == [4, 3, 1, 1_000_000]
    assert (opened_from.bit_count(), failed_from) == (1, opened_from)
    assert world.balancer.views.outcomes(["web"]) == {"web": (4, 3, 1, 1_000_000, 0, 0)}


def test_a_refused_connection_is_scheduled_again() -> None:
    """The backend's kernel answers RST while its server is down: the next attempt moves on."""
    world = make_world(redispatch=False)
    connection = Connection(world)
    connection.send("S")
    assert connection.server == ONE
    connection.reply("RA")
    connection.send("S")
    assert connection.server == TWO
    assert world.statistics().flows == 1


@both_modes
def test_a_retransmitted_syn_goes_to_the_same_backend(nat: str) -> None:
    world = make_world(nat=nat, redispatch=False)
    connection = Connection(world)
    connection.lose("S")
    first = connection.server, connection.source
    for wait in (1, 2, 4, 8, 16):
        world.advance(wait)
        connection.lose("S")
        assert (connection.server, connection.source) == first
    connection.send("S")
    connection.reply("SA")
    connection.send("A")
    assert [one.flows for one in world.statistics().backends] == [1, 0, 0]


def test_a_lost_syn_ack_is_sent_again() -> None:
    world = make_world()
    connection = Connection(world)
    connection.send("S")
    connection.reply("SA")
    connection.lose("S")  # the client has not seen the SYN-ACK: it sends its SYN again
    assert connection.server == ONE
    assert connection.state == "SYN_RECEIVED"
    connection.reply("SA")
    connection.send("A")
    assert connection.state == "ESTABLISHED"


def test_an_incomplete_handshake_expires() -> None:
    world = make_world()
    connection = Connection(world)
    connection.send("S")
    world.advance(TIMES.half_open - 0.1)
    assert world.active()[ONE] == 1
    world.advance(0.1)
    assert world.flows() == []
    assert world.active()[ONE] == 0
    assert refused(connection, "A", Reason.NO_FLOW) == "R"


def test_an_idle_connection_is_forgotten_and_then_refused() -> None:
    world = make_world()
    connection = world.connect()
    for _ in range(3):
        world.advance(TIMES.established - 0.1)
        connection.send("PA", b"keep alive")
    world.advance(TIMES.established)
    assert world.flows() == []
    assert refused(connection, "PA", Reason.NO_FLOW) == "R"


@pytest.mark.parametrize(
    ("story", "state"),
    [
        (">FA <FA >A", "CLOSING"),
        ("<FA >FA <A", "CLOSING"),
        (">R", "CLOSED"),
        ("<R", "CLOSED"),
    ],
)
@both_modes
def test_a_port_used_again_on_a_closed_flow_is_a_new_connection(
    story: str, state: str, nat: str
) -> None:
    world = make_world(nat=nat)
    old = world.connect()
    for step in story.split():
        (old.send if step[0] == ">" else old.reply)(step[1:])
    assert old.state == state
    new = Connection(world, sequence=77)
    new.send("S")
    assert (old.server, new.server) == (ONE, TWO)
    assert new.state == "SYN_SENT"
    assert world.statistics().flows == 1
    new.reply("SA")
    new.send("A")
    assert world.active() == {ONE: 0, TWO: 1, THREE: 0}


@both_modes
@pytest.mark.parametrize("story", [">FA <FA >A", ">FA <FA", ">R", "<R", ">FA", "<FA", ""])
def test_a_closed_connection_leaves_its_port_to_one_with_the_backend_itself(
    story: str, nat: str
) -> None:
    """The backend's SYN-ACK tells; one that comes again before the end is of the old one."""
    world = make_world(nat=nat)
    old = world.connect()
    for step in story.split():
        (old.send if step[0] == ">" else old.reply)(step[1:])
    ended = old.state == "CLOSED" or story.endswith(">A")
    outcome = world.handle(tcp(ONE, old.source, "SA"), old.reply_hook)
    passed = ended and nat == "dnat"
    assert outcome.reason is (Reason.NOT_OURS if passed else Reason.REPLY)
    assert len(world.flows()) == (not passed)


@both_modes
@pytest.mark.parametrize("answered", [False, True], ids=["before SYN-ACK", "after SYN-ACK"])
def test_a_late_reset_of_the_previous_connection_does_not_end_the_new_one(
    nat: str, answered: bool
) -> None:
    """A late segment of the old one makes the client, whose new SYN is out, reset the old one and
    send the SYN again: the same SYN, so it belongs to the same backend."""
    world = make_world(nat=nat, redispatch=False)
    new = Connection(world, sequence=3)
    new.send("S")
    if answered:
        new.reply("SA")
    state = new.state
    Connection(world, sequence=0xFFFFFF00).send("R")
    assert new.state == state
    world.advance(1)
    again = Connection(world, sequence=3)
    again.send("S")
    assert (new.server, again.server) == (ONE, ONE)
    if not answered:
        assert new.state == "SYN_RETRIED"
        Connection(world, sequence=0xFFFFFF00).send("R")
        assert new.state == "SYN_RETRIED"
        new.reply("SA")
    # Its own one ends it.
    new.send("R")
    assert new.state == "CLOSED"


def test_a_syn_on_a_live_connection_stays_on_its_backend() -> None:
    """The client has lost its state: the backend's challenge ACK makes it reset the old
    connection, after which its SYN is a new one (RFC 9293 section 3.5.1)."""
    world = make_world()
    connection = world.connect()
    connection.lose("S")
    assert connection.server == ONE
    assert connection.state == "ESTABLISHED"
    connection.reply("A")
    connection.lose("R")
    new = Connection(world, sequence=5)
    new.send("S")
    assert new.server == TWO


def test_a_reset_while_data_flows_does_not_end_the_connection() -> None:
    """A forged one, as both ends keep sending (tcp_state.py)."""
    world = make_world()
    connection = world.connect()
    world.handle(tcp(CLIENT, VIP, "R", seq=31337))
    for _ in range(10):
        world.advance(TIMES.closed - 0.1)
        connection.send("PA", b"x")
        connection.reply("A")


# Mid-stream


def restarted(world: World, scheduler: str, nat: str = "dnat") -> World:
    """A balancer that knows the same services and none of the flows."""
    fresh = make_world(scheduler=scheduler, nat=nat)
    fresh.advance(world.now - fresh.now)
    return fresh


@pytest.mark.parametrize("scheduler", ["source-hash", "five-tuple-hash", "maglev"])
def test_a_consistent_scheduler_adopts_connections_after_a_restart(scheduler: str) -> None:
    world = make_world(scheduler=scheduler)
    connections = [world.connect(client(number)) for number in range(12)]
    assert len({connection.server for connection in connections}) > 1
    fresh = restarted(world, scheduler)
    for connection in connections:
        before = connection.server
        connection.world = fresh
        connection.send("PA", b"as if nothing had happened")
        assert connection.server == before
        connection.reply("PA", b"fine")
        connection.send("FA")
        connection.reply("FA")
        assert connection.state == "CLOSING"


@pytest.mark.parametrize(("scheduler", "nat"), [("round-robin", "dnat"), ("maglev", "full")])
def test_any_other_resets_them(scheduler: str, nat: str) -> None:
    world = make_world(scheduler=scheduler, nat=nat)
    connection = world.connect()
    connection.world = restarted(world, scheduler, nat)
    outcome = connection.lose("PA", b"hello?")
    (answer,) = outcome.answers
    reset = parse(answer)
    # What the client expects next, so it believes the RST (RFC 5961 section 3.2).
    assert (reset["TCP"].seq, str(reset["TCP"].flags)) == (connection.replied, "R")
    assert connection.world.flows() == []


# Backends come and go


@both_modes
def test_weight_0_drains_a_backend(nat: str) -> None:
    world = make_world(ONE, TWO, nat=nat)
    old = world.connect()
    assert old.server == ONE
    drained = backend(ONE, 0, sources=service(ONE, nat=nat).backends[0].sources)
    world.apply(service(drained, TWO, nat=nat))
    for number in range(1, 5):
        assert world.connect(client(number)).server == TWO
    old.send("PA", b"goes on")
    old.reply("PA", b"sure")
    assert world.active() == {ONE: 1, TWO: 4}


def test_weight_0_keeps_handshakes_that_have_begun() -> None:
    world = make_world(ONE, TWO)
    connection = Connection(world)
    connection.lose("S")
    world.apply(service(backend(ONE, 0), TWO))
    connection.handshake()
    assert connection.server == ONE


@both_modes
def test_connections_of_a_removed_backend_continue(nat: str) -> None:
    world = make_world(ONE, TWO, nat=nat)
    old = world.connect()
    world.apply(service(TWO, nat=nat))
    old.send("PA", b"still there?")
    old.reply("PA", b"yes")
    assert [world.connect(client(n)).server for n in (1, 2)] == [TWO, TWO]
    old.send("FA")
    old.reply("FA")
    world.advance(TIMES.closed)
    assert len(world.flows()) == 2


@both_modes
@pytest.mark.parametrize("story", [">S", ">S <SA", ">S <SA >A", ">S <SA >A <PA >A"])
@pytest.mark.parametrize(
    ("fate", "moves"), [("down", True), ("gone", True), ("drained", False), ("well", False)]
)
def test_a_syn_leaves_a_backend_that_is_down_or_gone(
    nat: str, story: str, fate: str, moves: bool
) -> None:
    """Whatever the connection's state: who sends one has none that could break."""
    world = make_world(ONE, TWO, nat=nat, redispatch=False)
    old = Connection(world)
    for step in story.split():
        (old.send if step[0] == ">" else old.reply)(step[1:])
    first, second = service(ONE, TWO, nat=nat).backends
    weight = 1 if fate == "well" else 0
    changed = replace(first, weight=weight, down=fate == "down")
    wanted = (second,) if fate == "gone" else (changed, second)
    world.apply(replace(service(nat=nat), backends=wanted, redispatch=STAY))
    if len(story) > 8:  # without a SYN the connection continues
        old.send("PA", b"still there?")
        old.reply("A")
    for _ in range(3):
        world.advance(1)
        new = Connection(world, sequence=77)
        new.lose("S")
        assert new.server == (TWO if moves else ONE)
    assert len(world.flows()) == 1
    if moves:
        new.reply("SA")
        new.send("A")
        assert new.state == "ESTABLISHED"
        assert world.active()[TWO] == 1


@both_modes
def test_a_returning_backend_starts_over(nat: str) -> None:
    world = make_world(ONE, TWO, nat=nat)
    old = world.connect()
    world.apply(service(TWO, nat=nat))
    world.advance(1)
    world.apply(service(ONE, TWO, nat=nat))
    world.advance(1)
    assert world.active() == {ONE: 0, TWO: 0}
    old.send("PA", b"x")
    old.reply("PA", b"y")
    new = [world.connect(client(number)).server for number in range(1, 5)]
    assert sorted(new) == [ONE, ONE, TWO, TWO]
    old.send("R")
    world.advance(TIMES.closed)
    assert world.active() == {ONE: 2, TWO: 2}
    assert [one.flows for one in world.statistics().backends] == [2, 2]


def test_a_removed_service_keeps_its_connections_and_takes_no_new_ones() -> None:
    world = World(service(ONE), service(TWO, name="other", vips=OTHER_VIP), timeouts=TIMES)
    old = world.connect()
    world.apply(service(TWO, name="other", vips=OTHER_VIP))
    old.send("PA", b"x")
    old.reply("PA", b"y")
    assert Connection(world, client(1)).lose("S").verdict is Verdict.PASS
    old.send("R")
    # Its flow is closed, so a SYN would open a new one, of nobody.
    assert old.lose("S").verdict is Verdict.PASS
    assert world.flows() == []
    world.apply(service(ONE), service(TWO, name="other", vips=OTHER_VIP))
    assert world.connect().server == ONE


def test_a_service_that_changes_its_nat_mode_keeps_its_connections() -> None:
    world = make_world(ONE)
    kept = world.connect()
    world.apply(service(ONE, nat="full"))
    full = world.connect(client(1))
    assert full.source.startswith("10.1.0.254:")
    world.apply(service(ONE))
    for connection in (kept, full):
        connection.send("PA", b"x")
        connection.reply("PA", b"y")
        connection.send("R")
    world.advance(TIMES.closed)
    assert world.flows() == []


def test_a_service_that_changes_its_scheduler_keeps_its_connections() -> None:
    world = make_world()
    connections = [world.connect(client(number)) for number in range(3)]
    world.apply(service(*BACKENDS, scheduler="least-connections"))
    assert [connection.server for connection in connections] == list(BACKENDS)
    connections[1].send("R")
    assert world.connect(client(9)).server == TWO


def test_an_empty_pool_refuses_until_a_backend_joins() -> None:
    world = World(service())
    connection = Connection(world)
    assert refused(connection, "S", Reason.NO_BACKEND) == "RA"
    world.apply(service(ONE))
    connection.handshake()
    world.apply(service())
    assert refused(Connection(world, client(1)), "S", Reason.NO_BACKEND) == "RA"
    connection.send("PA", b"x")


def test_least_connections_follows_the_flows() -> None:
    world = make_world(scheduler="least-connections")
    first = [world.connect(client(number)) for number in range(6)]
    assert world.active() == dict.fromkeys(BACKENDS, 2)
    for connection in first:
        if connection.server == TWO:
            connection.reply("FA")
    assert [world.connect(client(number)).server for number in (10, 11)] == [TWO, TWO]
    world.advance(TIMES.established)
    assert world.active() == dict.fromkeys(BACKENDS, 0)
    assert world.flows() == []


# Tuples


def test_one_client_port_towards_two_vips_with_the_same_backend() -> None:
    """In `dnat` mode the backend could not tell the two apart: the second gets another port."""
    first, second = service(ONE), service(ONE, name="other", vips=[OTHER_VIP, THIRD_VIP])
    world = World(first, second, timeouts=TIMES)
    old = world.connect()
    new = world.connect(CLIENT, OTHER_VIP)
    assert old.source == CLIENT
    assert new.source != CLIENT
    assert new.source.split(":")[0] == CLIENT.split(":")[0]
    for connection in (old, new):
        connection.send("PA", b"x")
        connection.reply("PA", b"y")
    old.send("FA")
    old.reply("FA")
    old.send("A")
    third = world.connect(CLIENT, THIRD_VIP)  # the first is closed: it is given up
    assert third.source == CLIENT
    assert [str(view.vip) for view in world.flows()] == [THIRD_VIP, OTHER_VIP]


def test_full_nat_tells_them_apart() -> None:
    first, second = (
        service(ONE, nat="full"),
        service(ONE, name="other", vips=OTHER_VIP, nat="full"),
    )
    world = World(first, second)
    connections = [world.connect(CLIENT, one) for one in (VIP, OTHER_VIP)]
    assert len({connection.source for connection in connections}) == 2
    for connection in connections:
        connection.reply("PA", b"y")


def test_a_client_on_the_balancers_host_may_have_the_vips_address() -> None:
    """And the port of its connection, too: both ends of the flow look alike."""
    world = make_world(ONE)
    connection = world.connect("192.0.2.10:40000", local=True)
    other = world.connect("192.0.2.10:80", local=True)
    for each in (connection, other):
        each.send("PA", b"x")
        each.reply("PA", b"y")
        each.send("FA")
        each.reply("FA")
        assert each.state == "CLOSING"


def test_a_backend_may_be_a_client_of_its_own_service() -> None:
    world = make_world(ONE, TWO)
    connection = world.connect(f"{ONE.split(':')[0]}:40000")
    assert connection.server == ONE
    connection.send("PA", b"x")
    connection.reply("PA", b"y")


def test_a_local_client_of_a_local_backend() -> None:
    local = backend("192.0.2.10:8080", local=True)
    world = World(service(local))
    connection = world.connect("127.0.0.1:40000", local=True)
    reply = tcp(connection.server, connection.source, seq=1)
    assert world.handle(reply, Hook.OUTPUT).verdict is Verdict.PASS
    connection.send("PA", b"x")
    connection.reply("PA", b"y")
