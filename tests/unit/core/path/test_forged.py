"""Segments of nobody who sees the connection: they are passed on and change nothing."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scapy.layers.inet import ICMP, IP

from featherlb.core.flows.tcp_state import State
from featherlb.model import Hook, PacketInfo, Timeouts, Verdict
from featherlb.model.reason import Reason
from tests.builders import tcp
from tests.unit.core.path.test_scenarios import both_modes
from tests.world import CLIENT, ONE, TWO, VIP, Connection, Outcome, World, service

BLIND = 0x5A5A5A5A
"""A guess: far from all numbers of a `Connection`."""


def doubtful(world: World) -> int:
    return sum(one.doubtful for one in world.statistics().backends)


def forge(
    world: World,
    connection: Connection,
    flags: str,
    *,
    reply: bool = False,
    seq: int = BLIND,
    ack: int = BLIND,
) -> Outcome:
    """A segment in the name of one end, with these numbers."""
    if reply:
        packet = tcp(connection.server, connection.source, flags, seq=seq, ack=ack)
        return world.handle(packet, connection.reply_hook)
    return world.handle(tcp(connection.client, connection.vip, flags, seq=seq, ack=ack))


@both_modes
@pytest.mark.parametrize("reply", [False, True], ids=["client", "backend"])
@pytest.mark.parametrize("flags", ["R", "RA", "FA"])
def test_a_blind_close_and_a_syn_leave_the_connection(nat: str, reply: bool, flags: str) -> None:
    world = World(service(ONE, TWO, nat=nat))
    connection = world.connect()
    assert forge(world, connection, flags, reply=reply).verdict is Verdict.REWRITTEN
    assert forge(world, connection, "S").destination == connection.server
    assert world.states() == ["ESTABLISHED"]
    assert doubtful(world) == 2
    assert connection.send("PA", b"x").destination == ONE
    connection.reply("PA", b"y")


@pytest.mark.parametrize("flags", ["R", "FA"])
def test_a_blind_close_does_not_make_room_at_a_full_backend(flags: str) -> None:
    world = World(service(ONE))
    connection = world.connect()
    forge(world, connection, flags)
    assert world.active() == {ONE: 1}
    connection.send("FA")  # half-closed, the backend still works for the client
    assert world.active() == {ONE: 1}
    connection.reply("FA")
    assert world.active() == {ONE: 0}


def test_only_the_numbers_in_flight_reset() -> None:
    world = World(service(ONE))
    connection = world.connect()
    connection.send("PA", bytes(100))  # not acknowledged yet
    for sequence in (connection.sent - 101, connection.sent + 1):
        forge(world, connection, "R", seq=sequence & 0xFFFFFFFF)
        assert world.states() == ["ESTABLISHED"]
    forge(world, connection, "R", seq=(connection.sent - 100) & 0xFFFFFFFF)
    assert world.states() == ["CLOSED"]


def test_a_damaged_reset_is_none() -> None:
    """Its receiver drops it: a client could have its connection and its place at the backend."""
    world = World(service(ONE))
    connection = world.connect()
    packet = tcp(CLIENT, VIP, "R", seq=connection.sent)
    world.handle(packet[:-1] + b"\x01")
    assert world.states() == ["ESTABLISHED"]
    world.handle(packet, info=PacketInfo.CHECKSUM_NOT_READY)
    assert world.states() == ["CLOSED"]


def test_traffic_of_both_ends_brings_a_flow_back() -> None:
    """The receiver has answered a RST in flight with a challenge ACK (RFC 5961 section 3.2)."""
    world = World(service(ONE))
    connection = world.connect()
    connection.send("PA", bytes(100))
    forge(world, connection, "R", seq=connection.sent)
    assert (world.states(), world.active()) == (["CLOSED"], {ONE: 0})
    for _ in range(3):
        connection.reply("A")
    assert world.states() == ["CLOSED"]
    connection.send("A")
    assert (world.states(), world.active()) == (["ESTABLISHED"], {ONE: 1})


def test_a_refusal_acknowledges_the_syn() -> None:
    world = World(service(ONE))
    connection = Connection(world)
    syn = connection.sent
    connection.send("S")
    for flags, ack in (("R", 0), ("RA", syn), ("RA", BLIND)):
        forge(world, connection, flags, reply=True, ack=ack)
        assert world.states() == ["SYN_SENT"]
    (backend,) = world.statistics().backends
    assert (backend.refused, backend.doubtful) == (0, 3)
    forge(world, connection, "RA", reply=True, ack=(syn + 1) & 0xFFFFFFFF)
    (backend,) = world.statistics().backends
    assert (world.states(), backend.refused) == (["CLOSED"], 1)


def test_a_blind_ack_completes_no_handshake() -> None:
    world = World(service(ONE))
    connection = Connection(world)
    connection.send("S")
    connection.reply("SA")
    forge(world, connection, "A", seq=connection.sent)
    assert world.states() == ["SYN_RECEIVED"]
    connection.send("A")
    assert world.states() == ["ESTABLISHED"]


def test_another_syn_before_an_answer_is_another_attempt() -> None:
    world = World(service(ONE))
    first = Connection(world)
    first.send("S")
    second = Connection(world, sequence=99)
    second.handshake()
    assert second.state == "ESTABLISHED"
    forge(world, second, "R")
    assert second.state == "ESTABLISHED"


@pytest.mark.parametrize("source", ["127.0.0.1", "224.0.0.5", "240.0.0.1", "0.0.0.0", "192.0.2.10"])
def test_martians_open_no_flow(source: str) -> None:
    world = World(service(ONE))
    syn = tcp(f"{source}:4000", VIP, "S")
    assert world.handle(syn).reason is Reason.MARTIAN
    assert world.flows() == []
    if source == "192.0.2.10":  # this host's own
        assert world.handle(syn, Hook.OUTPUT).reason is Reason.FORWARD


def test_another_vip_is_no_client_either() -> None:
    other = service(TWO, name="other", vips="192.0.2.11:80")
    world = World(service(ONE), other)
    syn = tcp("192.0.2.11:4000", VIP, "S")
    assert world.handle(syn).reason is Reason.MARTIAN
    world.apply(service(ONE))
    assert world.handle(syn).reason is Reason.FORWARD


def test_only_a_refusal_of_this_very_syn_counts() -> None:
    """Anybody can send RSTs in a backend's name."""
    world = World(service(ONE))
    connection = Connection(world)
    connection.send("S")
    for number in (connection.sent - 1, connection.sent + 1, BLIND):
        forge(world, connection, "RA", reply=True, ack=number & 0xFFFFFFFF)
        forge(world, connection, "R", reply=True, seq=number & 0xFFFFFFFF)
    assert world.states() == ["SYN_SENT"]
    assert world.statistics().backends[0].refused == 0
    forge(world, connection, "RA", reply=True, ack=connection.sent)
    assert world.statistics().backends[0].refused == 1


def test_a_syn_that_comes_twice_at_once_accuses_nobody() -> None:
    """Who sends each spoofed SYN twice would make every backend look silent."""
    world = World(service(ONE))
    connection = Connection(world)
    connection.lose("S")
    connection.lose("S")
    assert (world.states(), world.statistics().backends[0].syn_retries) == (["SYN_SENT"], 0)
    world.advance(1)
    connection.lose("S")
    assert (world.states(), world.statistics().backends[0].syn_retries) == (["SYN_RETRIED"], 1)


@pytest.mark.parametrize("closer", [">", "<"])
def test_a_half_closed_connection_is_over_after_a_minute_of_silence(closer: str) -> None:
    world = World(service(ONE, TWO), timeouts=Timeouts(fin=120))
    old = world.connect()
    (old.send if closer == ">" else old.reply)("FA")
    world.advance(59)
    assert forge(world, old, "S").destination == ONE
    world.advance(60)
    assert forge(world, old, "S").destination == TWO


def test_a_backend_that_has_lost_the_connection_opens_another() -> None:
    world = World(service(ONE))
    old = world.connect()
    new = Connection(world, sequence=77)
    new.replied = 123_456_789
    new.send("S")
    assert world.states() == ["ESTABLISHED"]
    new.reply("SA")
    assert world.states() == ["SYN_RECEIVED"]
    new.send("A")
    forge(world, old, "R", seq=old.sent)
    assert world.states() == ["ESTABLISHED"]
    new.reply("R")
    assert world.states() == ["CLOSED"]


def test_a_connection_joined_midway_is_believed_until_both_ends_agree() -> None:
    world = World(service(ONE, scheduler="source-hash"))
    old = Connection(world, sequence=1_000_000)
    old.server, old.source = ONE, CLIENT
    old.replied = 7_000_000
    forge(world, old, "A")  # before the first real one
    old.send("PA", b"x")
    old.reply("PA", b"y")
    old.send("A")
    assert world.states() == ["ESTABLISHED"]
    for flags in ("R", "FA"):
        forge(world, old, flags)
        forge(world, old, flags, reply=True)
    assert world.states() == ["ESTABLISHED"]
    old.reply("FA")
    assert world.states() == ["CLOSE_WAIT"]


@pytest.mark.parametrize("first", [0xFFFF0000, 0xFFFFFFFF])
def test_large_windows_and_long_transfers(first: int) -> None:
    """Numbers wrap; a window of 1 MB is in use, so its scale counts."""
    world = World(service(ONE))
    scale = [("WScale", 7)]
    syn = tcp(CLIENT, VIP, "S", seq=first, options=scale)
    outcome = world.handle(syn)
    client, server = CLIENT, outcome.destination
    reply = Hook.POSTROUTING
    sent = (first + 1) & 0xFFFFFFFF
    world.handle(tcp(server, client, "SA", seq=10, ack=sent, options=scale), reply)
    world.handle(tcp(CLIENT, VIP, "A", seq=sent, ack=11))
    for _ in range(5):
        for _ in range(64):  # 1 MB in flight
            world.handle(tcp(CLIENT, VIP, "A", seq=sent, ack=11, payload=bytes(16384)))
            sent = (sent + 16384) & 0xFFFFFFFF
        world.handle(tcp(server, client, "A", seq=11, ack=sent), reply)
    world.handle(tcp(CLIENT, VIP, "R", seq=sent))
    assert world.states() == ["CLOSED"]


class Attacked(RuleBasedStateMachine):
    """A connection among forgers who see nothing of it. The model is the two ends: what they have
    sent and closed determines the flow's state, whatever is forged."""

    @initialize(
        sequence=st.sampled_from([0, 1 << 31, 0xFFFFFFF0, 0xFFFFFFFF]), nat=st.sampled_from("df")
    )
    def open(self, sequence: int, nat: str) -> None:
        self.world = World(service(ONE, TWO, nat="dnat" if nat == "d" else "full"))
        self.connection = Connection(self.world, sequence=sequence)
        self.connection.replied = (sequence + 0x20000000) & 0xFFFFFFFF
        self.connection.handshake()
        self.server = self.connection.server
        self.closed: set[str] = set()
        self.reset = False
        self.forged = 0

    def alive(self) -> bool:
        return not self.reset

    @precondition(lambda self: self.alive() and "client" not in self.closed)
    @rule(size=st.integers(0, 1400), lost=st.booleans())
    def send(self, size: int, lost: bool) -> None:
        (self.connection.lose if lost else self.connection.send)("PA", bytes(size))

    @precondition(lambda self: self.alive() and "backend" not in self.closed)
    @rule(size=st.integers(0, 1400))
    def reply(self, size: int) -> None:
        self.connection.reply("PA", bytes(size))

    @precondition(lambda self: self.alive() and "client" not in self.closed)
    @rule()
    def close(self) -> None:
        self.connection.send("FA")
        self.closed.add("client")

    @precondition(lambda self: self.alive() and "backend" not in self.closed)
    @rule()
    def close_backend(self) -> None:
        self.connection.reply("FA")
        self.closed.add("backend")

    @precondition(lambda self: self.alive() and not self.closed)
    @rule(reply=st.booleans())
    def really_reset(self, reply: bool) -> None:
        (self.connection.reply if reply else self.connection.send)("R")
        self.reset = True

    @rule()
    def wait(self) -> None:
        self.world.advance(0.1)

    @precondition(lambda self: self.alive() and len(self.closed) < 2)
    @rule(
        flags=st.sampled_from(["S", "A", "PA", "FA", "R", "RA"]),
        reply=st.booleans(),
        distance=st.integers(1 << 21, (1 << 32) - (1 << 21)),
        other=st.integers(1 << 21, (1 << 32) - (1 << 21)),
    )
    def forge(self, flags: str, reply: bool, distance: int, other: int) -> None:
        ours, theirs = self.connection.sent, self.connection.replied
        if reply:
            ours, theirs = theirs, ours
        forge(
            self.world,
            self.connection,
            flags,
            reply=reply and flags != "S",
            seq=(ours + distance) & 0xFFFFFFFF,
            ack=(theirs + other) & 0xFFFFFFFF,
        )

    @precondition(lambda self: self.alive() and len(self.closed) < 2)
    @rule(
        about_reply=st.booleans(),
        distance=st.integers(1 << 21, (1 << 32) - (1 << 21)),
        mtu=st.sampled_from([0, 68, 552, 1400]),
    )
    def forge_error(self, about_reply: bool, distance: int, mtu: int) -> None:
        """In the name of a router that could not forward a segment."""
        connection = self.connection
        ends, number = (connection.source, connection.server), connection.sent
        if about_reply:
            ends, number = (connection.vip, connection.client), connection.replied
        about = tcp(*ends, "A", seq=(number + distance) & 0xFFFFFFFF)
        receiver = IP(about).src
        error = IP(src="203.0.113.1", dst=receiver) / ICMP(type=3, code=4, nexthopmtu=mtu)
        hook = Hook.PREROUTING if about_reply else connection.reply_hook
        outcome = self.world.handle(bytes(error / about), hook)
        assert outcome.reason is Reason.FORGED_ERROR

    @invariant()
    def the_flow_is_what_the_ends_made_it(self) -> None:
        if not hasattr(self, "world"):
            return
        (view,) = self.world.flows()
        wanted = {
            frozenset[str](): State.ESTABLISHED,
            frozenset({"client"}): State.FIN_WAIT,
            frozenset({"backend"}): State.CLOSE_WAIT,
            frozenset({"client", "backend"}): State.CLOSING,
        }[frozenset(self.closed)]
        assert view.state is (State.CLOSED if self.reset else wanted)
        assert str(view.backend) == self.server


Attacked.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestAttacked = Attacked.TestCase
