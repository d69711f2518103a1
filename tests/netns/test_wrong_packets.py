"""Malformed and out-of-state packets to the VIP, beside valid traffic."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPOption_NOP
from scapy.packet import Packet, Raw

from featherlb.lab import Lab
from featherlb.lab.namespaces import VIP
from featherlb.lab.servers import HttpServer
from tests.netns.conftest import Up
from tests.netns.traffic import ask, ask_concurrently, let_forward, wait_for
from tests.netns.wire import Capture, send, with_right_checksums

pytestmark = pytest.mark.usefixtures("balanced")

STRANGER = "10.0.0.200"
"""A second address of the client, so that answers reach it; only wrong packets come from it."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(backends=2) as lab, HttpServer(lab.backends[0]):
        lab.client.run(["ip", "addr", "add", f"{STRANGER}/24", "dev", "eth0"])
        yield lab


DNAT, FULL, NOBODY = 80, 81, 82
"""Ports of the VIP: those of a backend in either NAT mode, and one without."""


@pytest.fixture(scope="module")
def balanced(lab: Lab, featherlb: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One instance for all tests; its host forwards."""
    path = tmp_path_factory.mktemp("wrong") / "lb.yaml"
    path.write_text(
        "services:\n"
        f"  - {{name: dnat, vip: '{VIP}:{DNAT}', backends: ['10.0.1.2:8080']}}\n"
        f"  - {{name: full, vip: '{VIP}:{FULL}', nat: full, backends: ['10.0.1.2:8080']}}\n"
        f"  - {{name: nobody, vip: '{VIP}:{NOBODY}', backends: []}}\n"
    )
    let_forward(lab.balancer)
    with featherlb(lab, "--config", str(path)):
        yield


ports = itertools.count(4000)


def tcp(flags: str, port: int = DNAT, **fields: int) -> Packet:
    """A packet of the stranger's to the VIP, from a port of its own; `fields` are TCP's."""
    return IP(src=STRANGER, dst=VIP, ttl=64) / TCP(
        sport=next(ports), dport=port, seq=1000, flags=flags, **fields
    )


def about(capture: Capture, packet: Packet) -> list[Packet]:
    """What a capture has seen of the connection that a packet of the stranger's belongs to."""
    port = packet[TCP].sport
    seen = [one for one in capture.packets(STRANGER) if TCP in one]
    return [one for one in seen if port in (one[TCP].sport, one[TCP].dport)]


def answers(capture: Capture, packet: Packet) -> list[Packet]:
    return [one for one in about(capture, packet) if one.dst == STRANGER]


def cut(packet: Packet, length: int) -> bytes:
    """The packet's first `length` bytes, with an IP header that says so."""
    packet = packet.copy()
    packet.len = length
    return bytes(packet)[:length]


def wrong(port: int) -> dict[str, bytes]:
    """Packets to this port of the VIP."""
    return {
        "bad TCP checksum": bytes(tcp("S", port, chksum=0xDEAD)),
        "bad IP checksum": bytes(
            IP(src=STRANGER, dst=VIP, chksum=0xDEAD) / TCP(dport=port, flags="S")
        ),
        "no TCP header at all": cut(tcp("S", port), 20),
        "half a TCP header": cut(tcp("S", port), 30),
        "TCP header less one byte": cut(tcp("S", port), 39),
        "total length beyond the packet": bytes(
            IP(src=STRANGER, dst=VIP, len=1500) / TCP(dport=port, flags="S")
        ),
        "data offset beyond the packet": bytes(tcp("S", port, dataofs=15)),
        "data offset below a TCP header": bytes(tcp("S", port, dataofs=4)),
        "data offset 0": bytes(tcp("S", port, dataofs=0)),
        "SYN and FIN": bytes(tcp("SF", port)),
        "SYN and RST": bytes(tcp("SR", port)),
        "no flag": bytes(tcp("", port)),
        "every flag": bytes(tcp("FSRPAUEC", port)),
        "out-of-state RST": bytes(tcp("R", port)),
        "later fragment": bytes(IP(src=STRANGER, dst=VIP, frag=100, proto=6) / Raw(b"x" * 64)),
        "first fragment too short for ports": bytes(
            IP(src=STRANGER, dst=VIP, flags="MF", proto=6) / Raw(b"\x0f\xa0")
        ),
        "zero bytes": bytes(40),
    }


@pytest.mark.parametrize("port", [DNAT, FULL])
def test_wrong_packets_get_no_answer_and_disturb_nobody(lab: Lab, port: int) -> None:
    with (
        Capture(lab.backends[0], "eth0") as at_backend,
        Capture(lab.client, "eth0") as at_client,
        ThreadPoolExecutor(1) as others,
    ):
        ask(lab.client, port=port)
        good = others.submit(ask_concurrently, lab.client, 150, 10, port)
        for packet in wrong(port).values():
            send(lab, [packet] * 20)
        assert len(good.result()) == 150
        # What the queue held before this has been looked at when this is answered.
        assert ask(lab.client, port=port).backend == "backend1"
        assert [p for p in at_client.packets(STRANGER) if p.dst == STRANGER] == []
        # A packet with a wrong TCP checksum may get as far as the backend, still wrong.
        arrived = at_backend.packets(STRANGER)
        if port == DNAT:
            assert [p for p in arrived if bytes(p) == with_right_checksums(p)] == []


def test_ip_options_pass_through_the_translation(lab: Lab) -> None:
    options = [IPOption_NOP() for _ in range(8)]
    syn = IP(src=STRANGER, dst=VIP, options=options) / tcp("S")[TCP]
    with (
        Capture(lab.backends[0], "eth0") as at_backend,
        Capture(lab.client, "eth0") as at_client,
    ):
        send(lab, [bytes(syn)])
        wait_for(lambda: bool(answers(at_client, syn)), "the backend's SYN-ACK")
        arrived = about(at_backend, syn)[0]
        answer = answers(at_client, syn)[0]
    assert (arrived.dst, arrived[TCP].dport, arrived.ihl) == ("10.0.1.2", 8080, 7)
    assert bytes(arrived) == with_right_checksums(arrived)
    assert (answer.src, answer[TCP].sport, answer[TCP].flags) == (VIP, DNAT, "SA")
    assert bytes(answer) == with_right_checksums(answer)


def test_a_packet_of_an_unknown_connection_is_answered_with_a_reset(lab: Lab) -> None:
    segment = tcp("PA", ack=77777)
    with (
        Capture(lab.backends[0], "eth0") as at_backend,
        Capture(lab.client, "eth0") as at_client,
    ):
        send(lab, [bytes(segment / Raw(b"hello"))])
        wait_for(lambda: bool(answers(at_client, segment)), "a RST")
        (answer,) = answers(at_client, segment)
        ask(lab.client)
        assert about(at_backend, segment) == []
    assert (answer.src, answer[TCP].sport, answer[TCP].dport) == (VIP, DNAT, segment.sport)
    # RFC 9293, section 3.5.2: <SEQ=SEG.ACK><CTL=RST>.
    assert (answer[TCP].flags, answer[TCP].seq) == ("R", 77777)
    assert bytes(answer) == with_right_checksums(answer)


def test_the_reset_of_a_refused_connection_acknowledges_its_syn(lab: Lab) -> None:
    syn = tcp("S", NOBODY)
    with Capture(lab.client, "eth0") as at_client:
        send(lab, [bytes(syn)])
        wait_for(lambda: bool(answers(at_client, syn)), "a RST")
        (answer,) = answers(at_client, syn)
    # RFC 9293, section 3.5.2: <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>.
    assert (answer.src, answer[TCP].flags) == (VIP, "RA")
    assert (answer[TCP].seq, answer[TCP].ack) == (0, 1001)
    assert bytes(answer) == with_right_checksums(answer)


def test_a_packet_whose_ttl_ends_here_comes_back_as_icmp(lab: Lab) -> None:
    syn = IP(src=STRANGER, dst=VIP, ttl=1) / tcp("S")[TCP]
    with (
        Capture(lab.backends[0], "eth0") as at_backend,
        Capture(lab.client, "eth0") as at_client,
    ):
        send(lab, [bytes(syn)])

        def exceeded() -> bool:
            return any(p.dst == STRANGER and ICMP in p for p in at_client.packets(STRANGER))

        wait_for(exceeded, "ICMP time exceeded")
        ask(lab.client)
        assert about(at_backend, syn) == []


def test_other_ports_of_the_vip_and_other_hosts_are_left_alone(lab: Lab) -> None:
    with pytest.raises(ConnectionRefusedError):
        lab.client.connect(VIP, 8888)
    lab.client.run(["ping", "-c1", "-W2", VIP])
    # Forwarded, not balanced: the second backend answers for itself that nobody listens.
    with pytest.raises(ConnectionRefusedError):
        lab.client.connect(lab.backends[1].address, 80)
