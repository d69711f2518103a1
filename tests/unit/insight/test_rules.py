"""insight/rules.py: the rules that a packet meets, by the plans of the goldens."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from featherlb.host import HostPlan, Options
from featherlb.insight.rules import Packet, rules_met
from featherlb.model import Datapath, Endpoint, Hook, NatMode, Protocol
from featherlb.system.ruleset import State
from tests.unit.datapaths.test_goldens import Case, at, both_modes, limited, web

CLIENT, VIP, BACKEND = "10.0.0.7:40000", "10.0.0.10:80", "10.0.1.2:8080"
OWN = {ip_address("10.0.0.1"), ip_address("10.0.1.1"), ip_address("10.0.0.10")}


def packet(
    source: str, destination: str, *, opens: bool = True, worker: int = 0, protocol: str = "tcp"
) -> Packet:
    ends = Endpoint.parse(source), Endpoint.parse(destination)
    return Packet(Protocol[protocol.upper()], *ends, opens, worker, OWN)


def walk(plan: HostPlan, hook: Hook, one: Packet) -> list[str]:
    met, _ = rules_met(plan, hook, one)
    return [f"{rule.table} {rule.chain}: {rule.rule}" for rule in met]


def test_a_packet_to_a_vip_is_untracked_and_queued() -> None:
    plan = Case("", (web(Datapath.NFQUEUE),)).plan()
    met, after = rules_met(plan, Hook.PREROUTING, packet(CLIENT, VIP))
    assert [f"{rule.table} {rule.chain}: {rule.rule}" for rule in met] == [
        "raw FEATHERLB-GUARD-0: ! -i lo -p tcp --syn -d 10.0.0.10 --dport 80 -g FEATHERLB-ORIGIN-0",
        "raw FEATHERLB-RAW-0: -p tcp -d 10.0.0.10 --dport 80 -g FEATHERLB-FORWARD-0",
        "raw FEATHERLB-FORWARD-0: -j CT --notrack",
        "raw FEATHERLB-FORWARD-0: -j NFQUEUE --queue-num 0",
    ]
    assert after.states == {State.UNTRACKED}
    # Rewritten, it passes the filter as what it has become; others don't.
    assert walk(plan, Hook.FORWARD, packet(CLIENT, BACKEND)) == []
    rewritten = replace(after, destination=Endpoint.parse(BACKEND))
    assert walk(plan, Hook.FORWARD, rewritten) == [
        "filter FEATHERLB-FILTER-0: -p tcp -d 10.0.1.2 --dport 8080 -j ACCEPT"
    ]


@pytest.mark.parametrize("worker", [0, 1, 2])
def test_the_client_selects_the_queue(worker: int) -> None:
    options = Options(workers=3, queue=5, hash_seed=0x12345678)
    plan = Case("", (web(Datapath.NFQUEUE),), options).plan()
    met = walk(plan, Hook.PREROUTING, packet(CLIENT, VIP, worker=worker))
    (hashed,) = [line for line in met if "HMARK" in line]
    assert "--hmark-rnd SECRET" in hashed
    assert "12345678" not in hashed
    assert met[-1].endswith(f"-j NFQUEUE --queue-num {5 + worker}")


def test_replies_are_queued_behind_the_routing_decision() -> None:
    plan = Case("", (web(Datapath.NFQUEUE),)).plan()
    reply = packet(BACKEND, CLIENT, opens=False)
    assert walk(plan, Hook.PREROUTING, reply) == [
        "raw FEATHERLB-RAW-0: -p tcp ! --syn -s 10.0.1.2 --sport 8080 -j CT --notrack"
    ]
    assert walk(plan, Hook.POSTROUTING, reply)[-1] == (
        "mangle FEATHERLB-REPLY-0: -j NFQUEUE --queue-num 0"
    )
    assert walk(plan, Hook.POSTROUTING, packet(BACKEND, CLIENT)) == []


@pytest.mark.parametrize("datapath", [Datapath.NFQUEUE, Datapath.OFFLOAD])
def test_clients_that_are_refused_are_dropped_in_front_of_the_queue(datapath: Datapath) -> None:
    plan = Case("", limited(datapath)).plan()

    def last(source: str, destination: str) -> str:
        return walk(plan, Hook.PREROUTING, packet(source, destination))[-1]

    allowed, denied, stranger = "10.0.0.7:40000", "10.1.2.3:40000", "192.0.2.1:40000"
    assert "NFQUEUE" in last(allowed, "10.0.0.10:90")
    assert "a-4 src -j DROP" in last(stranger, "10.0.0.10:90")
    assert "d-4 src -j DROP" in last(denied, "10.0.0.10:90")
    # The ports of other services are theirs, and workers tell those who are to be told.
    for port in (80, 81, 82):
        assert "NFQUEUE" in last(stranger, f"10.0.0.10:{port}")


def test_sets_are_looked_up() -> None:
    service = web(Datapath.NFQUEUE, vips=[at(number) for number in range(10, 20)])
    plan = Case("", (service,)).plan()
    assert plan.sets
    met = walk(plan, Hook.PREROUTING, packet(CLIENT, "10.0.0.15:80"))
    assert "-m set --match-set featherlb-0-vips4 dst,dst" in met[0]
    assert walk(plan, Hook.PREROUTING, packet(CLIENT, "10.0.0.30:80")) == []
    assert walk(plan, Hook.PREROUTING, packet(CLIENT, "10.0.0.15:80", protocol="udp")) == []


def test_pairs_of_full_nat_are_looked_up_with_their_peer() -> None:
    service = web(Datapath.NFQUEUE, NatMode.FULL, backends=range(2, 10))
    plan = Case("", (service,)).plan()
    met = walk(plan, Hook.PREROUTING, packet("10.0.1.5:8080", "10.0.1.1:2000", opens=False))
    assert "src,src,dst" in met[0]
    assert met[-1].endswith("-j NFQUEUE --queue-num 0")
    assert walk(plan, Hook.PREROUTING, packet("10.0.1.5:8080", "10.0.1.9:2000", opens=False)) == []


@pytest.mark.parametrize("datapath", Datapath)
def test_what_is_not_ours_meets_no_rule(datapath: Datapath) -> None:
    plan = Case("", both_modes(datapath)).plan()
    for hook in Hook:
        assert walk(plan, hook, packet(CLIENT, "10.9.9.9:443")) == []


def test_the_kernels_copy_of_a_frame_is_dropped() -> None:
    plan = Case("", (web(Datapath.RAW),)).plan()
    met = walk(plan, Hook.PREROUTING, packet(CLIENT, VIP))
    assert met == ["raw FEATHERLB-COPY-0: -p tcp -d 10.0.0.10 --dport 80 -j DROP"]


def test_an_offloaded_connection_passes_the_filter_as_a_translated_one() -> None:
    plan = Case("", (web(Datapath.OFFLOAD),)).plan()
    assert walk(plan, Hook.PREROUTING, packet(CLIENT, VIP)) == [
        "raw FEATHERLB-CTGUARD-0: ! -i lo -p tcp --syn -d 10.0.0.10 --dport 80"
        " -g FEATHERLB-CTORIGIN-0",
        "raw FEATHERLB-CTRAW-0: -p tcp --syn -d 10.0.0.10 --dport 80 -g FEATHERLB-CTOPEN-0",
        "raw FEATHERLB-CTOPEN-0: -j NFQUEUE --queue-num 0",
    ]
    translated = replace(packet(CLIENT, BACKEND), states=frozenset({State.NEW, State.DNAT}))
    assert walk(plan, Hook.FORWARD, translated) == [
        "filter FEATHERLB-CTFILTER-0: -p tcp -d 10.0.1.2 --dport 8080 -j ACCEPT"
    ]
    assert walk(plan, Hook.FORWARD, packet(CLIENT, VIP))[0].endswith("--dport 80 -j DROP")
