"""Wrong, odd and stray packets at the VIP, while good traffic goes on."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPOption_NOP
from scapy.packet import Packet, Raw

from netns import Lab
from netns.lab import VIP
from netns.servers import HttpServer
from tests.netns.conftest import Up, in_turn
from tests.netns.traffic import ask, ask_concurrently, let_forward, wait_for
from tests.netns.wire import Capture, send, with_right_checksums

STRANGER = "10.0.0.200"
"""A second address of the client, so that answers reach it; only wrong packets come from it."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(backends=2) as lab, HttpServer(lab.backends[0]):
        lab.client.run(["ip", "addr", "add", f"{STRANGER}/24", "dev", "eth0"])
        yield lab


ports = itertools.count(4000)


def tcp(flags: str, **fields: int) -> Packet:
    """A packet of the stranger's to the VIP, from a port of its own; `fields` are TCP's."""
    return IP(src=STRANGER, dst=VIP, ttl=64) / TCP(
        sport=next(ports), dport=80, seq=1000, flags=flags, **fields
    )


def cut(packet: Packet, length: int) -> bytes:
    """The packet's first `length` bytes, with an IP header that says so."""
    packet = packet.copy()
    packet.len = length
    return bytes(packet)[:length]


WRONG = {
    "bad TCP checksum": bytes(tcp("S", chksum=0xDEAD)),
    "bad IP checksum": bytes(IP(src=STRANGER, dst=VIP, chksum=0xDEAD) / TCP(dport=80, flags="S")),
    "no TCP header at all": cut(tcp("S"), 20),
    "half a TCP header": cut(tcp("S"), 30),
    "TCP header less one byte": cut(tcp("S"), 39),
    "total length beyond the packet": bytes(
        IP(src=STRANGER, dst=VIP, len=1500) / TCP(dport=80, flags="S")
    ),
    "data offset beyond the packet": bytes(tcp("S", dataofs=15)),
    "data offset below a TCP header": bytes(tcp("S", dataofs=4)),
    "data offset 0": bytes(tcp("S", dataofs=0)),
    "SYN and FIN": bytes(tcp("SF")),
    "SYN and RST": bytes(tcp("SR")),
    "no flag": bytes(tcp("")),
    "every flag": bytes(tcp("FSRPAUEC")),
    "stray RST": bytes(tcp("R")),
    "later fragment": bytes(IP(src=STRANGER, dst=VIP, frag=100, proto=6) / Raw(b"x" * 64)),
    "first fragment too short for ports": bytes(
        IP(src=STRANGER, dst=VIP, flags="MF", proto=6) / Raw(b"\x0f\xa0")
    ),
    "zero bytes": bytes(40),
}


@in_turn(nat=("dnat", "full"))
def test_wrong_packets_get_no_answer_and_disturb_nobody(lab: Lab, featherlb: Up, nat: str) -> None:
    backend = lab.backends[0]
    options = ("--vip", f"{VIP}:80", "--backend", "10.0.1.2:8080", "--nat", nat)
    with featherlb(lab, *options), Capture(backend, "eth0") as at_backend:
        with Capture(lab.client, "eth0") as at_client, ThreadPoolExecutor(1) as others:
            ask(lab.client)
            good = others.submit(ask_concurrently, lab.client, 300, 10)
            for packet in WRONG.values():
                send(lab, [packet] * 20)
            assert len(good.result()) == 300
            # What the queue held before this has been looked at when this is answered.
            assert ask(lab.client).backend == "backend1"
            answers = [p for p in at_client.packets(STRANGER) if p.dst == STRANGER]
            # A packet with a wrong TCP checksum may get as far as the backend, still wrong.
            arrived = at_backend.packets(STRANGER)
        if nat == "dnat":
            assert [p for p in arrived if bytes(p) == with_right_checksums(p)] == []
        assert answers == []


def test_ip_options_pass_through_the_translation(lab: Lab, featherlb: Up) -> None:
    options = [IPOption_NOP() for _ in range(8)]
    syn = IP(src=STRANGER, dst=VIP, options=options) / tcp("S")[TCP]
    with (
        featherlb(lab, "--vip", f"{VIP}:80", "--backend", "10.0.1.2:8080"),
        Capture(lab.backends[0], "eth0") as at_backend,
        Capture(lab.client, "eth0") as at_client,
    ):
        send(lab, [bytes(syn)])

        def answered() -> bool:
            return any(p.dst == STRANGER for p in at_client.packets(STRANGER))

        wait_for(answered, "the backend's SYN-ACK")
        arrived = at_backend.packets(STRANGER)[0]
        answer = next(p for p in at_client.packets(STRANGER) if p.dst == STRANGER)
    assert (arrived.dst, arrived[TCP].dport, arrived.ihl) == ("10.0.1.2", 8080, 7)
    assert bytes(arrived) == with_right_checksums(arrived)
    assert (answer.src, answer[TCP].sport, answer[TCP].flags) == (VIP, 80, "SA")
    assert bytes(answer) == with_right_checksums(answer)


def test_a_packet_of_an_unknown_connection_is_answered_with_a_reset(
    lab: Lab, featherlb: Up
) -> None:
    with (
        featherlb(lab, "--vip", f"{VIP}:80", "--backend", "10.0.1.2:8080", "--scheduler", "rr"),
        Capture(lab.backends[0], "eth0") as at_backend,
        Capture(lab.client, "eth0") as at_client,
    ):
        stray = tcp("PA", ack=77777)
        send(lab, [bytes(stray / Raw(b"hello"))])

        def answers() -> list[Packet]:
            return [p for p in at_client.packets(STRANGER) if p.dst == STRANGER]

        wait_for(lambda: bool(answers()), "a RST")
        (answer,) = answers()
        ask(lab.client)
        assert at_backend.packets(STRANGER) == []
    assert (answer.src, answer[TCP].sport, answer[TCP].dport) == (VIP, 80, stray.sport)
    # RFC 9293, section 3.5.2: <SEQ=SEG.ACK><CTL=RST>.
    assert (answer[TCP].flags, answer[TCP].seq) == ("R", 77777)
    assert bytes(answer) == with_right_checksums(answer)


def test_the_reset_of_a_refused_connection_acknowledges_its_syn(lab: Lab, featherlb: Up) -> None:
    with (
        featherlb(lab, "--vip", f"{VIP}:80"),
        Capture(lab.client, "eth0") as at_client,
    ):
        send(lab, [bytes(tcp("S"))])

        def answers() -> list[Packet]:
            return [p for p in at_client.packets(STRANGER) if p.dst == STRANGER]

        wait_for(lambda: bool(answers()), "a RST")
        (answer,) = answers()
    # RFC 9293, section 3.5.2: <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>.
    assert (answer.src, answer[TCP].flags) == (VIP, "RA")
    assert (answer[TCP].seq, answer[TCP].ack) == (0, 1001)
    assert bytes(answer) == with_right_checksums(answer)


def test_a_packet_whose_ttl_ends_here_comes_back_as_icmp(lab: Lab, featherlb: Up) -> None:
    syn = IP(src=STRANGER, dst=VIP, ttl=1) / tcp("S")[TCP]
    with (
        featherlb(lab, "--vip", f"{VIP}:80", "--backend", "10.0.1.2:8080"),
        Capture(lab.backends[0], "eth0") as at_backend,
        Capture(lab.client, "eth0") as at_client,
    ):
        send(lab, [bytes(syn)])

        def exceeded() -> bool:
            return any(p.dst == STRANGER and ICMP in p for p in at_client.packets(STRANGER))

        wait_for(exceeded, "ICMP time exceeded")
        ask(lab.client)
        assert at_backend.packets(STRANGER) == []


def test_other_ports_of_the_vip_and_other_hosts_are_left_alone(lab: Lab, featherlb: Up) -> None:
    let_forward(lab.balancer)
    with featherlb(lab, "--vip", f"{VIP}:80", "--backend", "10.0.1.2:8080"):
        with pytest.raises(ConnectionRefusedError):
            lab.client.connect(VIP, 81)
        lab.client.run(["ping", "-c1", "-W2", VIP])
        # Forwarded, not balanced: the second backend answers for itself that nobody listens.
        with pytest.raises(ConnectionRefusedError):
            lab.client.connect(lab.backends[1].address, 80)
