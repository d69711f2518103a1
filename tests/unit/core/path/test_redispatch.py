"""Flows that get another backend, as the core decides it; tests/netns/test_redispatch.py has the
kernel's part."""

from dataclasses import replace

import pytest

from featherlb.core.path.export import read_flows
from featherlb.model import (
    Endpoint,
    Hook,
    PacketInfo,
    Persistence,
    Protocol,
    Redispatch,
    Role,
    SynCookies,
    Timeouts,
    Verdict,
)
from featherlb.model.reason import Reason
from tests.builders import parse, readdressed, tcp, udp
from tests.unit.core.path.test_icmp import message
from tests.world import (
    CLIENT,
    ONE,
    THREE,
    TWO,
    VIP,
    Connection,
    Outcome,
    World,
    backend,
    client,
    endpoints,
    service,
)

both_modes = pytest.mark.parametrize("nat", ["dnat", "full"])
RETRANSMISSION = 1.0
SLOTS, SLOT_SIZE = 8192, 128
MAX_PENDING, WAIT = 4096, 5.0
"""The limits of core/path/redispatch.py."""


def refuse(connection: Connection, flags: str = "RA", **fields: int) -> Outcome:
    """The backend answers the SYN with a RST."""
    ack = fields.get("ack", connection.sent)
    packet = tcp(connection.server, connection.source, flags, seq=0, ack=ack)
    return connection.world.handle(packet, connection.reply_hook)


def come_back(connection: Connection, outcome: Outcome) -> Outcome:
    """The SYN comes to the OUTPUT hook."""
    (syn,) = outcome.sent_again
    again = connection.world.handle(syn, Hook.OUTPUT)
    if again.verdict is Verdict.REWRITTEN:
        connection.source, connection.server = endpoints(again.packet)
    return again


def started(world: World, who: str = CLIENT) -> Connection:
    """A connection whose SYN is at a backend."""
    connection = Connection(world, who)
    connection.send("S")
    return connection


def again(connection: Connection, wait: float = RETRANSMISSION) -> Outcome:
    """The client retransmits its SYN after `wait` seconds."""
    connection.world.advance(wait)
    connection.sent -= 1
    return connection.send("S")


def moved(world: World) -> dict[str, tuple[int, int]]:
    """By backend, the flows that left it because it refused them, and because it was silent."""
    return {
        str(one.backend): (one.moved_refused, one.moved_silent)
        for one in world.statistics().backends
    }


@both_modes
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("info", [PacketInfo.NONE, PacketInfo.CHECKSUM_NOT_READY])
def test_a_refusal_moves_the_connection(nat: str, local: bool, info: PacketInfo) -> None:
    world = World(service(ONE, TWO, THREE, nat=nat))
    options = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (7, 0)), ("WScale", 7)]
    syn = tcp(CLIENT, VIP, "S", seq=0xFFFFFFFF, options=options, window=64240)
    hook = Hook.OUTPUT if local else Hook.PREROUTING
    sent = syn
    if info:  # only the pseudo-header is summed
        sent = syn[:36] + bytes(2) + syn[38:]
    connection = Connection(world, local=local, sequence=0)
    connection.source, connection.server = endpoints(world.handle(sent, hook, info).packet)
    assert connection.server == ONE
    outcome = refuse(connection)
    assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.REDISPATCHED)
    assert outcome.answers == ()
    assert outcome.sent_again == (syn,)
    assert world.flows() == []
    result = come_back(connection, outcome)
    assert connection.server == TWO
    expected = readdressed(syn, connection.source, TWO)
    # From the network, it would have passed this host as a router.
    assert parse(result.packet).ttl == parse(syn).ttl - (not local)
    assert result.packet[20:] == expected[20:]
    (view,) = world.flows()
    assert view.tried == ((Endpoint.parse(ONE), "refused"),)
    connection.reply("SA")
    connection.send("A")
    assert connection.state == "ESTABLISHED"
    first, second, _ = world.statistics().backends
    assert (first.refused, first.moved_refused, first.active) == (1, 1, 0)
    assert (second.flows, second.active) == (1, 1)
    counts = world.balancer.views.outcomes(["web"])["web"]
    assert counts[:4] + counts[6:10] + counts[12:16] == (1, 1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0)
    assert counts[4] == counts[5] == counts[10] != 0  # the client's network


@both_modes
def test_attempts_are_limited_and_then_the_client_is_told(nat: str) -> None:
    fourth = "10.1.0.4:8080"
    world = World(service(ONE, TWO, THREE, fourth, nat=nat))
    connection = started(world)
    servers = [connection.server]
    for _ in range(2):
        come_back(connection, refuse(connection))
        servers.append(connection.server)
    assert servers == [ONE, TWO, THREE]
    outcome = refuse(connection)
    assert (outcome.reason, outcome.sent_again) == (Reason.REPLY, ())
    assert endpoints(outcome.packet) == (VIP, CLIENT)
    assert connection.state == "CLOSED"


def test_the_client_is_told_when_every_other_backend_was_tried_or_is_full() -> None:
    full = backend(TWO, max_connections=1)
    world = World(service(backend(ONE), full))
    started(world, client(1)), started(world, client(2))
    assert world.active() == {ONE: 1, TWO: 1}
    connection = started(world)
    assert connection.server == ONE
    assert refuse(connection).reason is Reason.REPLY
    assert moved(world) == {ONE: (0, 0), TWO: (0, 0)}


def test_backends_that_have_failed_of_late_come_last() -> None:
    """Else each client would meet all of them."""
    world = World(service(ONE, TWO, THREE))
    first = started(world, client(1))
    come_back(first, refuse(first))
    assert first.server == TWO
    again(first)
    assert first.server == THREE
    for number in (2, 3, 4):
        other = started(world, client(number))
        if other.server == ONE:
            come_back(other, refuse(other))
            assert other.server == THREE
    world.advance(10)
    last = started(world)
    while last.server != ONE:
        last = started(world, CLIENT.replace("40000", str(world.received)))
    come_back(last, refuse(last))
    assert last.server == TWO


def test_backups_take_what_primaries_refuse() -> None:
    spare = backend(TWO, role=Role.BACKUP)
    world = World(service(backend(ONE), spare))
    connection = started(world)
    come_back(connection, refuse(connection))
    assert connection.server == TWO


@pytest.mark.parametrize("scheduler", ["round-robin", "least-connections", "maglev", "source-hash"])
def test_the_same_scheduler_picks_the_next_backend(scheduler: str) -> None:
    """Whichever it is, a consistent one picks the same again."""
    nexts = set()
    for _ in range(2):
        world = World(service(ONE, TWO, THREE, scheduler=scheduler))
        connection = started(world)
        first = connection.server
        come_back(connection, refuse(connection))
        assert connection.server != first
        nexts.add(connection.server)
    assert len(nexts) == 1


def test_a_client_is_bound_to_the_backend_that_took_its_connection() -> None:
    bound = replace(service(ONE, TWO, THREE), persistence=Persistence(300.0, 32))
    world = World(bound)
    connection = started(world)
    come_back(connection, refuse(connection))
    assert started(world, CLIENT.replace("40000", "40001")).server == connection.server == TWO


@pytest.mark.parametrize(
    ("flags", "fields"),
    [("R", {"seq": 0}), ("RA", {"ack": 4711}), ("RA", {"ack": 0})],
)
def test_only_a_rst_that_acknowledges_the_syn_refuses_it(
    flags: str, fields: dict[str, int]
) -> None:
    """A client ignores any other (RFC 9293 section 3.10.7.3)."""
    world = World(service(ONE, TWO))
    connection = started(world)
    assert refuse(connection, flags, **fields).reason is Reason.REPLY
    assert moved(world) == {ONE: (0, 0), TWO: (0, 0)}


@both_modes
def test_a_silent_backend_is_replaced_at_the_second_syn(nat: str) -> None:
    world = World(service(ONE, TWO, THREE, nat=nat))
    connection = started(world)
    old_source = connection.source
    again(connection)
    assert connection.server == TWO
    assert world.states() == ["REPLACED", "SYN_SENT"]
    assert world.active() == {ONE: 0, TWO: 1, THREE: 0}
    # The first one answers late.
    late = tcp(ONE, old_source, "SA", seq=77, ack=connection.sent)
    outcome = world.handle(late, connection.reply_hook)
    assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.LATE_ANSWER)
    (answer,) = outcome.answers
    reset = parse(answer)["TCP"]
    assert endpoints(answer) == (old_source, ONE)
    assert (str(reset.flags), reset.seq) == ("R", connection.sent)
    assert world.states() == ["SYN_SENT"]
    connection.reply("SA")
    connection.send("A")
    assert connection.state == "ESTABLISHED"
    first = world.statistics().backends[0]
    assert (first.syn_retries, first.moved_silent, first.syn_timeouts) == (1, 1, 0)


@both_modes
def test_a_backend_that_stays_silent_is_counted_and_forgotten(nat: str) -> None:
    world = World(service(ONE, TWO, nat=nat))
    connection = started(world)
    again(connection)
    connection.reply("SA")
    connection.send("A")
    world.advance(Timeouts().half_open + 1)
    assert world.states() == ["ESTABLISHED"]
    assert world.statistics().backends[0].syn_timeouts == 1


def test_a_retransmitted_syn_whose_answer_was_lost_stays() -> None:
    world = World(service(ONE, TWO))
    connection = started(world)
    connection.reply("SA")
    again(connection)
    assert connection.server == ONE
    assert world.states() == ["SYN_RECEIVED"]


@both_modes
def test_a_backend_with_an_earlier_connection_is_not_silent(nat: str) -> None:
    """It sends a challenge ACK; the client resets that connection, and sends its SYN again."""
    world = World(service(ONE, TWO, nat=nat))
    connection = started(world)
    connection.reply("A")
    connection.send("R")
    again(connection)
    assert connection.server == ONE
    assert moved(world) == {ONE: (0, 0), TWO: (0, 0)}


def test_a_duplicate_of_the_syn_stays() -> None:
    """The network makes some; a client waits longer."""
    world = World(service(ONE, TWO))
    connection = started(world)
    again(connection, wait=0.1)
    assert connection.server == ONE
    assert moved(world) == {ONE: (0, 0), TWO: (0, 0)}


def test_one_refuses_and_one_is_silent() -> None:
    world = World(service(ONE, TWO, THREE))
    connection = started(world)
    come_back(connection, refuse(connection))
    again(connection)
    assert connection.server == THREE
    view = next(one for one in world.flows() if str(one.backend) == THREE)
    assert view.tried == ((Endpoint.parse(ONE), "refused"), (Endpoint.parse(TWO), "silent"))
    assert moved(world) == {ONE: (1, 0), TWO: (0, 1), THREE: (0, 0)}
    again(connection)  # there is nobody else
    assert connection.server == THREE


def test_a_syn_that_got_lost_here_is_made_up_for_by_the_clients_next_one() -> None:
    world = World(service(ONE, TWO))
    connection = started(world)
    refuse(connection)  # what is sent again does not arrive
    again(connection)
    assert connection.server == TWO
    assert world.flows()[0].tried == ((Endpoint.parse(ONE), "refused"),)


def test_nobody_waits_for_a_client_that_has_given_up() -> None:
    world = World(service(ONE, TWO))
    refuse(started(world))
    assert len(world.balancer.redispatch.pending) == 1
    world.advance(WAIT)
    assert not world.balancer.redispatch.pending


@pytest.mark.parametrize(
    ("setting", "refused", "silent"),
    [
        (Redispatch(refused=False), False, True),
        (Redispatch(silent=False), True, False),
        (Redispatch(attempts=1), True, True),
    ],
)
def test_each_kind_can_be_switched_off(setting: Redispatch, refused: bool, silent: bool) -> None:
    world = World(replace(service(ONE, TWO), redispatch=setting))
    assert bool(refuse(started(world, client(1))).sent_again) is refused
    second = started(world, client(2))
    before = second.server
    again(second)
    assert (second.server != before) is silent


def test_the_flow_of_a_replaced_backend_ends_without_its_client() -> None:
    """An operator ends it, or its service changes its datapath."""
    world = World(service(ONE, TWO))
    connection = started(world)
    again(connection)
    page = world.balancer.views.copy_records(1, 10, world.now)
    ((number, key, _),) = (one for one in read_flows(page) if one[2].state.name == "REPLACED")
    assert world.balancer.termination.terminate(number, key, True, world.now)
    assert world.balancer.outbox.take() == []
    assert world.states() == ["SYN_SENT"]


def flood(world: World, count: int) -> list[bytes]:
    """The SYNs of many clients, as they are sent to backends."""
    sent = []
    buffer = bytearray(40)
    world.balancer.attach(buffer)
    syn = tcp("10.9.0.0:1024", VIP, "S")
    for number in range(count):
        buffer[:] = syn[:14] + number.to_bytes(2, "big") + syn[16:]
        world.balancer.handle_packet(0, len(buffer), int(Hook.PREROUTING), 0, world.now)
        sent.append(bytes(buffer))
    return sent


def refuse_all(world: World, syns: list[bytes]) -> dict[Reason, int]:
    """What becomes of the RSTs that answer these SYNs."""
    before = world.statistics().reasons
    buffer = bytearray(40)
    world.balancer.attach(buffer)
    reset = tcp("10.1.0.1:8080", "10.9.0.0:1024", "RA", ack=1001)
    for syn in syns:
        addresses, ports = syn[16:20] + syn[12:16], syn[22:24] + syn[20:22]
        buffer[:] = reset[:12] + addresses + ports + reset[24:]
        world.balancer.handle_packet(0, len(buffer), int(Hook.POSTROUTING), 0, world.now)
    after = world.statistics().reasons
    return {reason: after[reason] - before[reason] for reason in Reason}


def test_copies_of_syns_are_bounded() -> None:
    """A later flow takes an earlier one's place; its client is told of the refusal."""
    world = World(replace(service(ONE, TWO), syn_cookies=SynCookies.OFF), capacity=SLOTS + 1)
    syns = flood(world, SLOTS + 1)
    outcome = refuse_all(world, syns[:2])
    assert (outcome[Reason.REPLY], outcome[Reason.REDISPATCHED]) == (1, 1)
    assert world.statistics().unkept_syns == 1


def test_a_syn_with_too_much_data_is_not_kept() -> None:
    world = World(service(ONE, TWO))
    connection = Connection(world)
    connection.send("S", bytes(SLOT_SIZE))
    assert refuse(connection).reason is Reason.REPLY
    assert world.statistics().unkept_syns == 1


def test_flows_that_wait_are_bounded() -> None:
    world = World(replace(service(ONE, TWO), syn_cookies=SynCookies.OFF), capacity=MAX_PENDING + 1)
    outcome = refuse_all(world, flood(world, MAX_PENDING + 1))
    assert (outcome[Reason.REPLY], outcome[Reason.REDISPATCHED]) == (1, MAX_PENDING)


@pytest.mark.parametrize("version", [4, 6])
@both_modes
def test_an_unreachable_backend_is_one_that_refuses(nat: str, version: int) -> None:
    """A router, or this host without an answer to ARP, says so before the client's second SYN."""
    vip, backends, who, router, sources = {
        4: (VIP, (ONE, TWO), CLIENT, "10.1.0.200", ["10.1.0.254"]),
        6: (
            "[2001:db8::10]:80",
            ("[2001:db8:1::1]:8080", "[2001:db8:1::2]:8080"),
            "[2001:db8:9::9]:40000",
            "2001:db8:1::200",
            ["2001:db8:1::254"],
        ),
    }[version]
    world = World(service(*backends, vips=vip, nat=nat, sources=sources))
    connection = Connection(world, who, vip)
    translated = connection.send("S").packet
    kind, code = {4: (3, 1), 6: (1, 3)}[version]
    host = str(Endpoint.parse(connection.source).address)
    error = message(router, host, kind, code, bytes(4), translated[:48])
    outcome = world.handle(error, Hook.OUTPUT)
    assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.REDISPATCHED)
    come_back(connection, outcome)
    assert connection.server == backends[1]


def test_an_error_about_anything_but_the_syn_gets_to_the_client() -> None:
    world = World(service(ONE, TWO))
    connection = started(world)
    other = tcp(CLIENT, ONE, "A", seq=connection.sent)
    host = CLIENT.partition(":")[0]
    for kind, code, packet in ((3, 1, other), (11, 0, other), (3, 4, other)):
        error = message("10.1.0.200", host, kind, code, bytes(4), packet)
        assert world.handle(error, Hook.OUTPUT).reason is Reason.ICMP_ERROR
    connection.reply("SA")
    late = tcp(CLIENT, ONE, "S", seq=connection.sent - 1)
    error = message("10.1.0.200", host, 3, 1, bytes(4), late)
    assert world.handle(error, Hook.OUTPUT).reason is Reason.ICMP_ERROR


@pytest.mark.parametrize("whole", [True, False])
@both_modes
def test_a_datagram_to_a_closed_port_goes_to_another_backend(nat: str, whole: bool) -> None:
    """If the error quotes all of it; in any case the next one does."""
    world = World(service(ONE, TWO, nat=nat, protocol=Protocol.UDP))
    query = udp(CLIENT, VIP, b"who?")
    sent = world.handle(query).packet
    source, server = endpoints(sent)
    quoted = sent if whole else sent[:28]
    host = source.partition(":")[0]
    error = message(server.partition(":")[0], host, 3, 3, bytes(4), quoted)
    hook = Hook.PREROUTING if nat == "full" else Hook.POSTROUTING
    outcome = world.handle(error, hook)
    if whole:
        assert outcome.reason is Reason.REDISPATCHED
        assert outcome.sent_again == (query,)
        result = world.handle(outcome.sent_again[0], Hook.OUTPUT)
    else:
        assert outcome.reason is Reason.ICMP_ERROR
        result = world.handle(query)
    assert endpoints(result.packet)[1] == TWO
    assert parse(result.packet)["UDP"].payload.load == b"who?"
    assert moved(world) == {ONE: (1, 0), TWO: (0, 0)}


def test_a_backend_that_has_answered_datagrams_keeps_its_flow() -> None:
    world = World(service(ONE, TWO, protocol=Protocol.UDP))
    sent = world.handle(udp(CLIENT, VIP, b"who?")).packet
    world.handle(udp(ONE, CLIENT, b"me"), Hook.POSTROUTING)
    host = CLIENT.partition(":")[0]
    error = message(ONE.partition(":")[0], host, 3, 3, bytes(4), sent)
    assert world.handle(error, Hook.POSTROUTING).reason is Reason.ICMP_ERROR
