"""Injected faults, as the core decides them; tests/netns/test_faults.py has the engines' part."""

from dataclasses import replace

import pytest

from featherlb.core.path import faults
from featherlb.model import Endpoint, Protocol, Verdict
from featherlb.model.fault import Fault, FaultKind
from featherlb.model.reason import Reason
from tests.builders import parse, tcp, udp
from tests.world import ONE, TWO, VIP, Connection, World, client, endpoints, service

FOREVER = 1e9
FLOWS = 60


def fault(kind: str, number: int = 1, **fields: object) -> Fault:
    until = fields.pop("until", FOREVER)
    return Fault(number, "web", FaultKind(kind), until, **fields)  # type: ignore[arg-type]


def world(*injected: Fault, backends: tuple[str, ...] = (ONE,), **fields: object) -> World:
    made = World(service(*backends, **fields), capacity=256)  # type: ignore[arg-type]
    made.balancer.faults.inject(injected)
    return made


def counts(made: World) -> tuple[int, int]:
    """Flows that the first fault has chosen, and packets that it has met."""
    return made.balancer.faults.counts()[1]


def lost(made: World, first: int = 0) -> set[int]:
    """The clients whose SYN is lost."""
    outcomes = {
        number: Connection(made, client(number)).lose("S") for number in range(first, first + FLOWS)
    }
    return {
        number for number, outcome in outcomes.items() if outcome.reason is Reason.INJECTED_FAULT
    }


def reply_verdict(connection: Connection, flags: str, payload: bytes = b"") -> Verdict:
    """The verdict on a backend's segment, which may be to hold it."""
    made = connection.world
    packet = tcp(
        connection.server,
        connection.source,
        flags,
        seq=connection.replied,
        ack=connection.sent,
        payload=payload,
    )
    made.balancer.attach(bytearray(packet))
    hook = connection.reply_hook
    verdict = Verdict(made.balancer.handle_packet(0, len(packet), hook, 0, made.now))
    made.received += verdict is not Verdict.HOLD
    made.check()
    return verdict


def test_a_share_of_the_flows_is_chosen_by_the_seed() -> None:
    chosen = [
        lost(world(fault("drop", share=share, seed=seed)))
        for share, seed in ((30, 7), (30, 7), (30, 8), (60, 7), (0.001, 7), (100, 7))
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert 8 <= len(chosen[0]) <= 28  # 18 expected, with a standard deviation of 3.5
    assert chosen[0] < chosen[3]
    assert [len(one) for one in chosen[4:]] == [0, FLOWS]


def test_only_flows_of_the_service_and_the_backend() -> None:
    one, two = (Endpoint.parse(text) for text in (ONE, TWO))
    at_one = world(fault("drop", backends=(one,)), backends=(ONE, TWO))
    assert len(lost(at_one)) == FLOWS // 2
    assert counts(at_one) == (FLOWS // 2, FLOWS // 2)
    assert len(lost(world(fault("drop", backends=(one, two)), backends=(ONE, TWO)))) == FLOWS
    assert lost(world(replace(fault("drop"), service="mail"))) == set()


def test_flows_that_were_open_before_are_left_alone() -> None:
    made = world()
    before = made.connect(client(0))
    made.balancer.faults.inject([fault("drop")])
    before.send("PA", b"x")
    before.reply("PA", b"y")
    assert Connection(made, client(1)).lose("S").reason is Reason.INJECTED_FAULT


def test_a_fault_ends_by_itself_and_its_flows_are_well_again() -> None:
    made = world(fault("drop", loss=100, until=1010.0))
    connection = Connection(made)
    assert connection.lose("S").verdict is Verdict.DROP
    made.advance(11)
    assert not made.balancer.faults.active
    connection.handshake()
    assert counts_of(made) == {1: (1, 1)}
    made.balancer.faults.inject([fault("drop", 2, backends=(Endpoint.parse(TWO),))])
    connection.send("PA", b"x")  # it is asked once more, and never again
    assert counts_of(made) == {2: (0, 0)}


def counts_of(made: World) -> dict[int, tuple[int, int]]:
    return made.balancer.faults.counts()


def test_a_part_of_the_packets_is_lost() -> None:
    outcomes = []
    for _ in range(2):
        made = world(fault("drop", loss=40, seed=3))
        connection = Connection(made)
        while connection.lose("S").verdict is Verdict.DROP:
            pass
        outcomes.append(tuple(connection.lose("PA", b"x").verdict for _ in range(50)))
        assert counts(made)[0] == 1
    assert outcomes[0] == outcomes[1]
    assert 10 <= outcomes[0].count(Verdict.DROP) <= 30  # 20 expected, standard deviation 3.5


def test_lost_on_the_way_to_the_backend_and_back() -> None:
    made = world()
    connection = made.connect()
    other = Connection(made, client(1))
    other.send("S")
    made.balancer.faults.inject([fault("drop")])
    lossy = Connection(made, client(2))
    lossy.server, lossy.source = connection.server, client(2)
    assert lossy.lose("S").verdict is Verdict.DROP
    assert lossy.state == "SYN_SENT"  # it was sent
    assert reply_verdict(lossy, "SA") is Verdict.DROP
    assert lossy.state == "SYN_SENT"  # nothing came
    other.reply("SA")


def test_a_client_that_retries_gets_another_backend() -> None:
    made = world(
        fault("drop", backends=(Endpoint.parse(ONE),)), backends=(ONE, TWO), scheduler="first"
    )
    connection = Connection(made)
    assert connection.lose("S").reason is Reason.INJECTED_FAULT
    made.advance(1)
    connection.handshake()
    assert connection.server == TWO


def test_data_resets_a_connection() -> None:
    for from_client in (True, False):
        made = world(fault("reset"))
        connection = made.connect()
        if from_client:
            outcome = connection.lose("PA", b"GET")
            assert outcome.reason is Reason.INJECTED_FAULT
        else:
            assert reply_verdict(connection, "PA", b"220") is Verdict.DROP
        sent = outcome.answers if from_client else made.balancer.outbox.take()
        resets = {endpoints(packet): parse(packet)["TCP"] for packet in sent}
        assert resets.keys() == {(VIP, connection.client), (connection.source, connection.server)}
        assert resets[VIP, connection.client].seq == connection.replied
        assert resets[connection.source, connection.server].seq == connection.sent
        assert made.flows() == []
        assert counts(made) == (1, 1)
        # What comes late is refused, too.
        assert connection.lose("PA", b"GET").reason is Reason.NO_FLOW


def test_a_datagram_is_refused() -> None:
    made = world(fault("reset"), protocol=Protocol.UDP)
    outcome = made.handle(udp(client(0), VIP, b"query"))
    (answer,) = outcome.answers
    assert outcome.reason is Reason.INJECTED_FAULT
    assert parse(answer)["ICMP"].type == 3
    assert made.flows() == []


@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_the_backends_packets_are_held_and_come_again(nat: str) -> None:
    made = world(fault("delay", delay=0.08), nat=nat)
    injected = made.balancer.faults
    connection = Connection(made)
    connection.send("S")
    assert reply_verdict(connection, "SA") is Verdict.HOLD
    assert injected.due == pytest.approx(made.now + 0.08)
    assert connection.state == "SYN_SENT"  # it has not come yet
    injected.releasing = True
    connection.reply("SA")
    injected.releasing = False
    connection.send("A")
    connection.send("PA", b"GET")
    assert reply_verdict(connection, "PA", b"200") is Verdict.HOLD
    assert counts(made) == (1, 2)


def test_some_packets_are_overtaken() -> None:
    made = world(fault("reorder", seed=1))
    connection = Connection(made)
    connection.send("S")
    verdicts = [reply_verdict(connection, "A", b"x") for _ in range(100)]
    assert 10 <= verdicts.count(Verdict.HOLD) <= 40  # 25 expected, standard deviation 4.3
    assert made.balancer.faults.due == pytest.approx(made.now + faults.OVERTAKEN)


def test_no_more_are_held_than_there_is_room_for() -> None:
    made = world(fault("delay", delay=1.0))
    connection = Connection(made)
    connection.send("S")
    made.balancer.faults.held = 4096
    connection.reply("SA")
    assert counts(made) == (1, 0)


def test_the_first_of_several_faults_chooses() -> None:
    made = world(fault("drop", 1, share=50), fault("delay", 2, delay=1.0))
    lossy = lost(made)
    assert counts_of(made) == {1: (len(lossy), len(lossy)), 2: (FLOWS - len(lossy), 0)}
