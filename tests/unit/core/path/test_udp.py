"""UDP: flows, their ends, and ICMP errors without a backend."""

from dataclasses import replace

import pytest

from featherlb.model import Hook, Protocol, Service, Timeouts, Verdict
from featherlb.model.reason import Reason
from tests.builders import parse, readdressed, tcp, udp, with_checksum
from tests.world import BACKENDS, CLIENT, ONE, TWO, VIP, Outcome, World, backend, client, service

PREROUTING, POSTROUTING = Hook.PREROUTING, Hook.POSTROUTING
CLIENT6, VIP6, ONE6 = "[2001:db8:1::7]:40000", "[2001:db8::10]:80", "[fd00::1]:8080"

both_families = pytest.mark.parametrize(
    ("client", "vip", "server"),
    [(CLIENT, VIP, ONE), (CLIENT6, VIP6, ONE6)],
    ids=["IPv4", "IPv6"],
)
both_modes = pytest.mark.parametrize("nat", ["dnat", "full"])


def datagrams(*backends: str, **fields: object) -> Service:
    """A UDP service; `fields` are those of `model.Service`."""
    return replace(service(*backends, protocol=Protocol.UDP), **fields)  # type: ignore[arg-type]


def ask(world: World, who: str = CLIENT, vip: str = VIP) -> Outcome:
    """The client sends a datagram."""
    return world.handle(udp(who, vip, b"?"))


def answer(world: World, question: Outcome) -> Outcome:
    """The backend answers it."""
    full = question.source.startswith("10.1.0.254")
    hook = PREROUTING if full else POSTROUTING
    return world.handle(udp(question.destination, question.source, b"!"), hook)


@both_families
def test_there_and_back(client: str, vip: str, server: str) -> None:
    world = World(service(server, vips=vip, protocol=Protocol.UDP))
    request, response = udp(client, vip, b"?"), udp(server, client, b"!")
    assert world.handle(request).packet == readdressed(request, client, server)
    assert world.states() == ["UDP_ONE_WAY"]
    assert world.handle(response, POSTROUTING).packet == readdressed(response, vip, client)
    assert world.states() == ["UDP_TWO_WAY"]


def test_a_flow_keeps_its_backend() -> None:
    world = World(datagrams(*BACKENDS))
    first = ask(world).destination
    assert {ask(world).destination for _ in range(5)} == {first}
    assert len(world.flows()) == 1


def test_tcp_and_udp_on_one_endpoint() -> None:
    world = World(service(ONE), replace(datagrams(TWO), name="datagrams"))
    assert world.handle(tcp(CLIENT, VIP, "S")).destination == ONE
    assert ask(world).destination == TWO
    assert world.states() == ["SYN_SENT", "UDP_ONE_WAY"]


@pytest.mark.parametrize("answered", [False, True])
def test_timeouts(answered: bool) -> None:
    world = World(
        datagrams(ONE), timeouts=Timeouts(udp_one_way=5, udp_two_way=50, established=7, fin=7)
    )
    question = ask(world)
    if answered:
        answer(world, question)
    limit = 50 if answered else 5
    world.advance(limit - 0.1)
    assert len(world.flows()) == 1
    ask(world)
    world.advance(limit - 0.1)
    assert len(world.flows()) == 1
    world.advance(0.1)
    assert world.flows() == []
    assert world.active() == {ONE: 0}


def test_unanswered_flows_give_way_to_others() -> None:
    world = World(datagrams(ONE), capacity=2)
    answer(world, ask(world, client(1)))
    for number in range(2, 9):
        ask(world, client(number))
    assert str(world.flows()[0].client) == client(1)
    assert world.states() == ["UDP_ONE_WAY", "UDP_TWO_WAY"]


def test_flows_stay_with_a_backend_that_is_down_as_all_may_be() -> None:
    """The control plane ends them where there is a better one."""
    world = World(datagrams(ONE, TWO))
    ask(world)
    down = [backend(one, down=True) for one in (ONE, TWO)]
    world.apply(service(*down, protocol=Protocol.UDP))
    assert [ask(world).destination for _ in range(3)] == [ONE] * 3


@both_modes
@pytest.mark.parametrize("answered", [False, True])
def test_flows_move_when_their_backend_leaves(nat: str, answered: bool) -> None:
    def pool(server: str) -> Service:
        return service(server, nat=nat, protocol=Protocol.UDP)

    world = World(pool(ONE))
    before = ask(world)
    if answered:
        answer(world, before)
    world.apply(pool(TWO))
    assert answer(world, before).reason is Reason.REPLY, "what is under way still arrives"
    moved = ask(world)
    assert moved.destination == TWO
    assert answer(world, moved).reason is Reason.REPLY
    assert len(world.flows()) == 1


def test_flows_of_a_drained_backend_stay() -> None:
    world = World(service(ONE, protocol=Protocol.UDP))
    ask(world)
    world.apply(service(backend(ONE, 0), TWO, protocol=Protocol.UDP))
    assert ask(world).destination == ONE
    assert ask(world, client(2)).destination == TWO


def test_flows_of_an_emptied_pool_are_refused() -> None:
    world = World(datagrams(ONE))
    ask(world)
    world.apply(datagrams())
    assert ask(world).reason is Reason.NO_BACKEND
    assert world.flows() == []


def test_a_port_used_towards_two_vips_has_a_flow_of_each() -> None:
    vips = ["192.0.2.10:80", "192.0.2.11:80"]
    world = World(service(ONE, vips=vips, protocol=Protocol.UDP))
    questions = [(vip, ask(world, CLIENT, vip)) for vip in [*vips, *vips]]
    for vip, question in reversed(questions):
        reply = answer(world, question)
        assert (reply.source, reply.destination) == (vip, CLIENT)
    assert len(world.flows()) == len({question.source for _, question in questions}) == 2


# Responses


def test_a_flow_ends_with_its_last_response() -> None:
    world = World(datagrams(*BACKENDS, responses=2))
    question = ask(world)
    answer(world, question)
    assert len(world.flows()) == 1
    answer(world, question)
    assert world.flows() == []
    assert answer(world, question).reason is Reason.NOT_OURS
    assert ask(world).destination != question.destination


def test_each_datagram_is_answered_by_that_many() -> None:
    world = World(datagrams(ONE, responses=1))
    question = ask(world)
    ask(world)
    answer(world, question)
    assert world.states() == ["UDP_TWO_WAY"]
    answer(world, question)
    assert world.states() == []


def test_no_response_is_awaited() -> None:
    world = World(datagrams(ONE, TWO, responses=0))
    assert [ask(world).destination for _ in range(4)] == [ONE, TWO, ONE, TWO]
    assert world.flows() == []
    assert world.active() == {ONE: 0, TWO: 0}


# One-packet scheduling


@both_modes
def test_every_datagram_is_scheduled(nat: str) -> None:
    world = World(replace(service(*BACKENDS, nat=nat, protocol=Protocol.UDP), one_packet=True))
    questions = [ask(world) for _ in range(6)]
    assert [question.destination for question in questions] == [*BACKENDS, *BACKENDS]
    for question in reversed(questions):
        reply = answer(world, question)
        assert (reply.source, reply.destination) == (VIP, CLIENT)
    # In `dnat` mode the replies of one backend to one client cannot be told apart.
    assert len(world.flows()) == (3 if nat == "dnat" else 6)
    world.advance(1000)
    assert world.flows() == []


@both_modes
def test_one_packet_flows_end_with_their_response(nat: str) -> None:
    world = World(
        replace(service(ONE, TWO, nat=nat, protocol=Protocol.UDP), one_packet=True, responses=1)
    )
    questions = [ask(world) for _ in range(6)]
    for question in questions:
        assert answer(world, question).reason is Reason.REPLY
    assert world.flows() == []
    assert world.active() == {ONE: 0, TWO: 0}


def test_one_packet_flows_of_one_client_fill_the_table_and_leave_it() -> None:
    service_ = replace(service(ONE, nat="full", protocol=Protocol.UDP), one_packet=True)
    world = World(service_, capacity=16)
    questions = [ask(world) for _ in range(40)]
    assert world.statistics().evicted == 24
    assert [answer(world, question).reason for question in questions] == (
        [Reason.NOT_OURS] * 24 + [Reason.REPLY] * 16
    )
    world.advance(1000)
    assert world.flows() == []


def test_one_packet_flows_towards_two_vips() -> None:
    vips = ["192.0.2.10:80", "192.0.2.11:80"]
    world = World(replace(service(ONE, vips=vips, protocol=Protocol.UDP), one_packet=True))
    for vip in [*vips, *vips]:
        assert answer(world, ask(world, CLIENT, vip)).source == vip


def test_one_packet_flows_leave_a_member_that_came_back() -> None:
    pool = datagrams(ONE, one_packet=True)
    world = World(pool)
    ask(world)
    world.apply(datagrams(one_packet=True))
    world.apply(pool)
    world.advance(1)
    assert answer(world, ask(world)).reason is Reason.REPLY
    assert world.active() == {ONE: 1}


# Checksums


def test_no_checksum_stays_none() -> None:
    world = World(datagrams(ONE))
    outcome = world.handle(with_checksum(udp(CLIENT, VIP, b"?"), 0))
    assert parse(outcome.packet)["UDP"].chksum == 0


def test_a_computed_zero_is_sent_as_all_ones() -> None:
    """RFC 768: zero means that there is no checksum."""
    world = World(datagrams(ONE))
    checksum = parse(udp(CLIENT, ONE, bytes(2)))["UDP"].chksum
    payload = checksum.to_bytes(2, "big")  # completes the sum to all ones
    outcome = world.handle(udp(CLIENT, VIP, payload))
    assert parse(outcome.packet)["UDP"].chksum == 0xFFFF
    assert outcome.packet == udp(CLIENT, ONE, payload)


# Port unreachable


@both_families
@pytest.mark.parametrize("size", [0, 1, 500, 520, 521, 1192, 1193, 4000])
def test_without_a_backend_the_port_is_unreachable(
    client: str, vip: str, server: str, size: int
) -> None:
    world = World(service(vips=vip, protocol=Protocol.UDP))
    packet = udp(client, vip, bytes(size))
    outcome = world.handle(packet)
    assert (outcome.verdict, outcome.reason) == (Verdict.DROP, Reason.NO_BACKEND)
    (error,) = outcome.answers
    seen, asked = parse(error), parse(packet)
    assert (seen.src, seen.dst) == (asked.dst, asked.src)
    limit = 576 if seen.version == 4 else 1280
    header = 28 if seen.version == 4 else 48
    assert error[header:] == packet[: limit - header]
    kind = seen["ICMP"] if seen.version == 4 else seen["ICMPv6DestUnreach"]
    assert (kind.type, kind.code) == ((3, 3) if seen.version == 4 else (1, 4))
    checksum = "chksum" if seen.version == 4 else "cksum"
    right = kind.getfieldval(checksum)
    delattr(kind, checksum)
    if seen.version == 4:
        del seen.chksum
    assert bytes(seen) == error
    assert right != 0


def flood(world: World, clients: range) -> None:
    """Datagrams of so many clients; the invariants are checked once."""
    for number in clients:
        packet = bytearray(udp(client(number), VIP, b"?"))
        world.balancer.attach(packet)
        world.balancer.handle_packet(0, len(packet), PREROUTING, 0, world.now)
        world.received += 1
    world.check()


def test_new_flows_have_a_budget_during_a_flood_and_known_ones_go_first() -> None:
    """A table of 8,192 flows: a flood begins with 256 without an answer, and 6 may open in each
    tenth of a second then."""
    world = World(datagrams(ONE, TWO), capacity=8192)
    known = ask(world, client(0))
    flood(world, range(1, 256))
    reasons = [ask(world, client(number)).reason for number in range(256, 268)]
    assert reasons == [Reason.FORWARD] * 6 + [Reason.UDP_FLOOD] * 6
    assert ask(world, client(0)).destination == known.destination
    world.now += 0.1
    reasons = [ask(world, client(number)).reason for number in range(268, 276)]
    assert reasons == [Reason.FORWARD] * 6 + [Reason.UDP_FLOOD] * 2
    # Clients on this host are no part of it.
    assert world.handle(udp(client(276), VIP, b"?"), Hook.OUTPUT).verdict is Verdict.REWRITTEN
    # It is over when few are without an answer.
    flows = world.flows()
    assert len(flows) == 256 + 6 + 6 + 1
    for flow in flows[:20]:
        world.handle(udp(str(flow.backend), str(flow.client), b"!"), POSTROUTING)
    assert ask(world, client(277)).reason is Reason.FORWARD
