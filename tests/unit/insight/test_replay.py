"""insight/replay.py: captures through the packet path."""

from collections.abc import Iterator, Sequence
from ipaddress import ip_address

import pytest

from featherlb.config.file import parse
from featherlb.insight.replay import Replay, compare, replay
from featherlb.model import Address
from featherlb.model.errors import ConfigError
from featherlb.model.reason import Reason
from featherlb.system.pcap import Captured
from tests.builders import icmp, tcp, udp
from tests.builders import parse as dissect

VIP, ONE, TWO, THREE = "10.0.0.10:80", "10.0.1.1:8080", "10.0.1.2:8080", "10.0.1.3:8080"


def configured(
    *backends: str, scheduler: str = "rr", vip: str = VIP, more: str = "", top: str = ""
) -> str:
    pool = ", ".join(f"'{one}'" for one in backends)
    return (
        f"{top}services:\n- name: web\n  vip: '{vip}'\n  scheduler: {scheduler}\n{more}"
        f"  backends: [{pool}]\n"
    )


def nobody(name: str) -> Sequence[Address]:
    return []


def run(text: str, packets: Sequence[Captured], seed: int = 1) -> Replay:
    return replay(packets, parse(text, "lb.yaml"), seed, nobody)


def at(time: float, data: bytes) -> Captured:
    return Captured(1_700_000_000 + time, data, len(data))


def client(number: int) -> str:
    return f"10.0.0.{100 + number}:40000"


def connection(
    number: int, start: float = 0.0, vip: str = VIP, end: bool = True
) -> Iterator[Captured]:
    """A connection as a capture on the client's side has it."""
    here = client(number)
    yield at(start, tcp(here, vip, "S", seq=1))
    yield at(start + 0.001, tcp(vip, here, "SA", seq=50, ack=2))
    yield at(start + 0.002, tcp(here, vip, "A", seq=2, ack=51))
    yield at(start + 0.003, tcp(here, vip, "PA", seq=2, ack=51, payload=b"GET"))
    yield at(start + 0.004, tcp(vip, here, "PA", seq=51, ack=5, payload=b"answer"))
    if end:
        yield at(start + 0.005, tcp(vip, here, "R", seq=57, ack=5))


def capture(count: int, **how: object) -> list[Captured]:
    return [
        packet
        for number in range(count)
        for packet in connection(number, number * 0.1, **how)  # type: ignore[arg-type]
    ]


def test_flows_and_outcomes() -> None:
    found = run(configured(ONE, TWO), capture(4))
    assert found.flows() == {"web": {ONE: 2, TWO: 2}}
    assert found.counts() == {"forward": 12, "reply": 12}
    assert (found.packets, found.ignored, found.answers, found.drops) == (24, 0, 0, ())
    assert found.seconds == pytest.approx(0.305)
    first, second = found.openings[:2]
    assert (first.number, first.client, first.vip, first.backend) == (0, client(0), VIP, ONE)
    assert (second.number, second.backend) == (6, TWO)
    assert second.time == pytest.approx(0.1)


@pytest.mark.parametrize("nat", ["dnat", "full"])
def test_the_same_seed_gives_the_same_and_flows_go_on_in_both_nat_modes(nat: str) -> None:
    text = configured(ONE, TWO, THREE, scheduler="random", more=f"  nat: {nat}\n")
    packets = capture(20)
    first, same, other = (run(text, packets, seed) for seed in (7, 7, 8))
    assert first == same
    assert first.counts() == {"forward": 60, "reply": 60}
    assert [one.backend for one in first.openings] != [one.backend for one in other.openings]


def test_what_is_not_of_the_clients_side_is_left_out() -> None:
    packets = [
        at(0.0, tcp(client(0), ONE, "S")),
        at(0.1, tcp(ONE, client(0), "SA")),
        at(0.2, tcp("10.9.9.9:1", "10.8.8.8:443", "S")),
        at(0.3, tcp(VIP, client(5), "A")),
        at(0.4, udp(client(0), VIP, b"x")),
        *connection(0, 1.0),
    ]
    found = run(configured(ONE), packets)
    assert (found.packets, found.ignored) == (6, 5)
    assert found.openings[0].number == 5


def test_drops_and_their_reasons() -> None:
    packets = [
        at(0.0, tcp(client(0), VIP, "A")),
        *connection(1, 1.0),
        at(2.0, tcp(client(2), VIP, "SF")),
        at(3.0, icmp("10.0.0.7", "10.0.0.10")),
    ]
    found = run(configured(ONE), packets)
    assert [(one.number, one.reason) for one in found.drops] == [
        (0, "no-flow"),
        (7, "bad-flags"),
        (8, "echo"),
    ]
    assert (found.drops[0].source, found.drops[0].destination) == (client(0), VIP)
    assert found.answers >= 1
    refused = run(configured(), capture(2))
    assert refused.counts() == {"no-backend": 2, "no-flow": 4}


def test_time_passes_as_in_the_capture() -> None:
    text = configured(ONE, top="timeouts: {established: 60s}\n")
    late = tcp(client(0), VIP, "PA", seq=5, payload=b"more")
    within = [*connection(0, end=False), at(59.0, late)]
    after = [*connection(0, end=False), at(3600.0, late)]
    assert run(text, within).outcomes[5] is Reason.FORWARD
    assert run(text, after).outcomes[5] is Reason.NO_FLOW


def test_packets_as_they_would_leave() -> None:
    seen: list[tuple[str, str, str]] = []

    def watch(packet: Captured, result: bytes, comment: str) -> None:
        one = dissect(result)
        again = type(one)(bytes(one))
        del again.chksum
        del again.payload.chksum
        assert bytes(type(one)(bytes(again))) == result
        seen.append((f"{one.src}:{one.sport}", f"{one.dst}:{one.dport}", comment))

    config = parse(configured(ONE, more="  nat: full\n  source_addresses: [10.0.1.254]\n"), "f")
    replay(capture(1), config, 1, nobody, watch)
    assert seen[0][0].startswith("10.0.1.254:")
    assert seen[0][1:] == (ONE, f"opens a flow of web to {ONE}")
    assert seen[1] == (VIP, client(0), "reply")
    assert seen[3][1:] == (ONE, "forward")


def test_ipv6_and_datagrams() -> None:
    vip, here, there = "[fd00::10]:53", "[fd00::7]:40000", "[fd00:1::1]:53"
    packets = [
        at(0.0, udp(here, vip, b"question")),
        at(0.1, udp(vip, here, b"answer")),
        at(0.2, tcp(here, vip, "S")),
    ]
    found = run(configured(there, vip=vip, more="  protocol: udp\n"), packets)
    assert (found.counts(), found.ignored) == ({"forward": 1, "reply": 1}, 1)
    assert found.openings[0].backend == there


def test_two_configurations_of_one_incident() -> None:
    packets = capture(30)
    before, after = (
        run(configured(*pool, scheduler="maglev"), packets)
        for pool in ((ONE, TWO, THREE), (ONE, THREE))
    )
    difference = compare(before, after)
    assert {one.before for one in difference.flows} == {TWO}
    assert len(difference.flows) == before.flows()["web"][TWO]
    assert difference.packets == {}
    assert not compare(before, before)
    none = compare(before, run(configured(), packets))
    assert len(none.flows) == 30
    assert {one.after for one in none.flows} == {""}
    assert none.packets["forward", "no-backend"] == 30
    assert none.packets["reply", "ignored"] == 90


def test_names_and_configurations_without_services() -> None:
    config = parse(configured("one.example:80"), "f")
    found = replay(capture(1), config, 1, nobody)
    assert found.stand_ins == {"one.example": "198.18.0.1"}
    known = replay(capture(1), config, 1, lambda _: [ip_address("10.7.7.7")])
    assert known.openings[0].backend == "10.7.7.7:80"
    with pytest.raises(ConfigError, match="no service to replay"):
        run("services: []\n", [])


def test_a_snapshot_of_headers_is_enough() -> None:
    packets = [Captured(one.time, one.data[:54], one.length) for one in capture(2)]
    assert run(configured(ONE), packets).counts() == {"forward": 6, "reply": 6}
