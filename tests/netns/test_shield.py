"""The program that answers SYNs in the kernel: it makes the answers of a worker."""

import shutil
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import IPOption_NOP
from scapy.layers.l2 import Dot1Q, Ether

from featherlb.model import SynCookies, Vip
from featherlb.system import privileges
from featherlb.system.shield import Offer, Shield
from featherlb.system.vip_program import keys_of
from tests.builders import ip, ipv6_extensions, rebuilt, tcp
from tests.world import ONE, SECRET, World, service

pytestmark = [
    pytest.mark.no_packets("the program alone, without a worker"),
    pytest.mark.skipif(shutil.which("clang") is None, reason="needs clang"),
]

V4, V6 = "192.0.2.10", "2001:db8::10"
SCALES = {V4: 10, V6: -1}
PASSED, REDIRECTED = 0xFFFFFFFF, 7
CLIENTS = {V4: "198.51.100.7:40000", V6: "[2001:db8:1::7]:40000"}
OPTIONS: dict[str, list[Any]] = {
    "none": [],
    "MSS": [("MSS", 1300)],
    "Linux": [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)],
    "Windows": [("MSS", 1440), ("NOP", None), ("WScale", 8), ("NOP", None), ("NOP", None),
                ("SAckOK", b"")],
    "jumbo": [("MSS", 8960), ("NOP", None), ("WScale", 15)],
    "twice": [("MSS", 1400), ("MSS", 9000), ("SAckOK", b"")],
    "malformed": [("SAckOK", b""), (254, b"1234"), ("MSS", 500)],
}  # fmt: skip


def at(address: str, port: int = 80) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@pytest.fixture(scope="module")
def shield() -> Iterator[Shield]:
    with ThreadPoolExecutor(1) as supervisor:  # capabilities are a thread's own
        supervisor.submit(privileges.drop_capabilities, privileges.SUPERVISOR).result()
        one = supervisor.submit(Shield, SECRET).result()
    one.serve(
        {
            Vip(ip_address(V4), 80, 80): Offer(1400, SCALES[V4]),
            Vip(ip_address(V4), 8000, 8010): Offer(1460, 7),
            Vip(ip_address(V6), 1, 65535): Offer(1400, SCALES[V6]),
            Vip(ip_address(V6), 81, 81): Offer(0, 7),
        }
    )
    yield one
    one.close()


def frame(packet: bytes, address: str) -> bytes:
    """To the MAC address of the interface that a test run pretends."""
    kind = 0x86DD if ":" in address else 0x0800
    return bytes(Ether(dst="00:00:00:00:00:00", src="02:00:00:00:00:02", type=kind)) + packet


def answer_of_a_worker(packet: bytes, address: str) -> bytes:
    one = replace(service(ONE, vips=at(address)), mss=1400, syn_cookies=SynCookies.ALWAYS)
    world = World(one)
    world.now = time.monotonic()
    world.balancer.cookies.set_shield(False, {"web": (SCALES[address],)}, 0)
    (answer,) = world.handle(packet).answers
    return answer


@pytest.mark.parametrize("address", [V4, V6])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_answers_as_a_worker_does(shield: Shield, address: str, options: list[Any]) -> None:
    syn = tcp(CLIENTS[address], at(address), "S", seq=0xFFFFFFFF, options=options)
    before = shield.answered()
    # A new slot of time may begin between the two.
    for _ in range(2):
        run = shield.program.run(frame(syn, address))
        answer = answer_of_a_worker(syn, address)
        if run.packet[14:] == answer:
            break
    assert run.result == REDIRECTED
    assert run.packet[14:] == answer == rebuilt(answer)
    assert run.packet[:12] == bytes.fromhex("020000000002") + bytes(6)
    assert shield.answered() > before


def test_data_in_a_syn_is_not_taken(shield: Shield) -> None:
    syn = tcp(CLIENTS[V4], at(V4), "S", payload=bytes(1000))
    answer = shield.program.run(frame(syn, V4)).packet[14:]
    assert answer == rebuilt(answer)
    assert len(answer) == 44


def damaged(packet: bytes, offset: int, more: int = 1) -> bytes:
    return packet[:offset] + bytes((packet[offset] + more,)) + packet[offset + 1 :]


SYN = tcp(CLIENTS[V4], at(V4), "S")
OTHERS = {
    "ACK": frame(tcp(CLIENTS[V4], at(V4), "A"), V4),
    "SYN-ACK": frame(tcp(CLIENTS[V4], at(V4), "SA"), V4),
    "RST": frame(tcp(CLIENTS[V4], at(V4), "R"), V4),
    "another port": frame(tcp(CLIENTS[V4], at(V4, 81), "S"), V4),
    "beyond a range": frame(tcp(CLIENTS[V4], at(V4, 8011), "S"), V4),
    "taken out of all ports": frame(tcp(CLIENTS[V6], at(V6, 81), "S"), V6),
    "another address": frame(tcp(CLIENTS[V4], "192.0.2.11:80", "S"), V4),
    "IP options": frame(
        tcp(CLIENTS[V4], at(V4), "S", header=ip(CLIENTS[V4], at(V4), options=[IPOption_NOP()])), V4
    ),
    "a fragment": frame(
        tcp(CLIENTS[V4], at(V4), "S", header=ip(CLIENTS[V4], at(V4), flags="MF")), V4
    ),
    "loopback": frame(tcp("127.0.0.1:40000", at(V4), "S"), V4),
    "multicast": frame(tcp("224.0.0.5:40000", at(V4), "S"), V4),
    "the VIP itself": frame(tcp(at(V4, 90), at(V4), "S"), V4),
    "a damaged header": frame(damaged(SYN, 8), V4),
    "cut short": frame(SYN, V4)[:50],
    "options that are not there": frame(damaged(SYN, 32, 0x10), V4),
    "IPv6 loopback": frame(tcp("[::1]:40000", at(V6), "S"), V6),
    "an extension header": frame(
        tcp(CLIENTS[V6], at(V6), "S", header=ipv6_extensions(CLIENTS[V6], at(V6), "destination")),
        V6,
    ),
    "a VLAN tag": bytes(Ether(dst="00:00:00:00:00:00", type=0x8100) / Dot1Q(type=0x800)) + SYN,
}


@pytest.mark.parametrize("packet", OTHERS.values(), ids=OTHERS)
def test_all_else_goes_on_as_it_is(shield: Shield, packet: bytes) -> None:
    run = shield.program.run(packet)
    assert (run.result, run.packet) == (PASSED, packet)


def test_ports_are_few_prefixes() -> None:
    def blocks(first: int, last: int) -> list[tuple[int, int]]:
        keys = keys_of(Vip(ip_address(V4), first, last))
        return [(struct.unpack("=I", key[:4])[0] - 128, int.from_bytes(key[20:])) for key in keys]

    assert blocks(80, 80) == [(16, 80)]
    assert blocks(8000, 8010) == [(13, 8000), (15, 8008), (16, 8010)]
    assert blocks(1, 65535) == [(0, 0)]
    assert len(blocks(2, 65534)) == 29
